"""Students on their way home."""
