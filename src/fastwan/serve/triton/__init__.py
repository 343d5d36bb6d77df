"""A bundle as a model of NVIDIA Triton Inference Server, by its Python backend."""
