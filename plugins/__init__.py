"""The FP4 attention: CUDA kernels, TensorRT plugin, loader and the torch reference."""
