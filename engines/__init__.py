"""ONNX to engines: builders, layer records, cost model and cache."""
