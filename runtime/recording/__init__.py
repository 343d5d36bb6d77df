"""A video as operations on streams, from a manifest alone."""
