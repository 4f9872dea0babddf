"""The loop and what it stands on: noise keyed by sample, checkpoints, random states, tracking."""
