"""fastwan-export: FastWan-QAD text-to-video models as TensorRT engines for NVIDIA Blackwell."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
