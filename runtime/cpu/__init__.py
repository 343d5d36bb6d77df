"""The CPU reference over ONNX Runtime."""
