"""A recording played on a device: memory, launches, CUDA graphs."""
