"""Reading, validating and synthesising checkpoints. Start at `reader.open_checkpoint`."""
