"""FastWan nodes for ComfyUI. ``fastwan-export comfyui --install`` puts this file there.

Everything is in the package fastwan-export, which ComfyUI's own Python needs.
"""

import sys

try:
    from fastwan.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
except ModuleNotFoundError as error:
    raise ImportError(
        f"the Python package {error.name!r} is missing: "
        f'"{sys.executable}" -m pip install "fastwan-export[comfyui]"'
    ) from error

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
