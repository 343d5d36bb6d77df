"""The graphs of a bundle in torch, with the numbers that a Blackwell GPU's FP4 units would give."""
