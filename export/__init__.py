"""Checkpoint to ONNX: readers, modules, quantisation, exporters and graph passes."""
