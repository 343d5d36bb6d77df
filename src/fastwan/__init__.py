"""fastwan-export: FastWan-QAD text-to-video models as TensorRT engines for NVIDIA Blackwell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastwan.runtime.pipeline import FastWanPipeline

__version__ = "0.1.0"

__all__ = ["FastWanPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    # The pipeline brings torch, which no command's --help has to wait for.
    if name == "FastWanPipeline":
        from fastwan.runtime.pipeline import FastWanPipeline

        return FastWanPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
