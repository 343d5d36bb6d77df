"""Nodes of ComfyUI that play bundles. ComfyUI itself is imported by `host` alone, when a node runs.

Its interface is the one of its custom nodes: classes with ``INPUT_TYPES``, ``RETURN_TYPES`` and
``FUNCTION``. Nothing of ComfyUI is copied here.
"""
