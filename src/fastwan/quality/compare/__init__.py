"""Two bundles side by side: kernels matched by ONNX node, and numbers matched by tensor."""
