"""The gate of a pipeline: a bundle against its baseline, in stages that can each be chosen."""
