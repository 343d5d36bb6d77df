"""Goldens: what the CPU reference makes of an accuracy set, kept to be compared with later."""
