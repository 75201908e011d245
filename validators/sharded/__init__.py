"""Checkpoints that are directories: their files read by their own formats, and told as one checkpoint."""
