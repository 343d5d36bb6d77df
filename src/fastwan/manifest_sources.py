"""Where the weights of a bundle come from, as its manifest tells."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from fastwan.manifest_fields import Digest, Text


class Record(BaseModel):
    """A part of a manifest: read strictly, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HubSource(Record):
    """A checkpoint on the Hugging Face hub.

    Attributes:
        repo: ``owner/name``.
        commit: full hash, so that the same weights can be fetched again.
    """

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")


class Adapter(Record):
    """A LoRA file that was merged into the checkpoint's weights.

    Attributes:
        file: its name.
        scale: the caller's, beside what the file itself says.
        ranks: those of its pairs of matrices, each once.
        tensors: of the transformer that it changes.
    """

    file: Text
    sha256: Digest
    scale: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
    ranks: Annotated[tuple[int, ...], Field(max_length=64)] = ()
    tensors: int = Field(ge=1)
