"""A bundle at its full size on a GPU that emulates FP4, held against the torch module."""
