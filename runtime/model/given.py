"""Tensors, generators and dtypes of torch's that a caller gives, without importing torch."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import torch


def given_torch() -> ModuleType | None:
    """The module torch where this process has imported it; None elsewhere.

    Where it is None, nothing that a caller gives can be of torch.
    """
    return sys.modules.get("torch")


def tensor_or_array(array: Any) -> Any:
    """A numpy array for the caller: a tensor over the same memory where torch is imported."""
    loaded = given_torch()
    return array if loaded is None else loaded.from_numpy(array)


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether `value` is a tensor of torch."""
    loaded = given_torch()
    return loaded is not None and isinstance(value, loaded.Tensor)


def is_generator(value: object) -> TypeGuard[torch.Generator]:
    """Whether `value` is a generator of torch."""
    loaded = given_torch()
    return loaded is not None and isinstance(value, loaded.Generator)


def is_dtype(value: object) -> TypeGuard[torch.dtype]:
    """Whether `value` is a dtype of torch."""
    loaded = given_torch()
    return loaded is not None and isinstance(value, loaded.dtype)
