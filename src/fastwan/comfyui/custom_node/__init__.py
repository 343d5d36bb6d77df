"""FastWan nodes for ComfyUI. ``fastwan-export comfyui --install`` puts this file there.

Everything is in the package fastwan-export, which ComfyUI's own Python needs.
"""

import sys

try:
    from fastwan.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
except ModuleNotFoundError as error:
    missing = error.name or "fastwan"
    if missing.split(".")[0] == "fastwan":
        advice = "install the wheel or the checkout of fastwan-export there, see docs/comfyui.md"
    else:
        from fastwan.install import extra_of, how_to_install

        advice = how_to_install(extra_of(missing))
    raise ImportError(f"{sys.executable} lacks the Python package {missing!r}: {advice}") from error

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
