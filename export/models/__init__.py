"""Export-friendly modules of the three networks, under the tensor names of their checkpoints."""
