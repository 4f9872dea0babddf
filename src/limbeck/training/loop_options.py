"""How long a loop runs, and how often it does what."""

from dataclasses import dataclass

from limbeck.errors import LimbeckError


@dataclass(frozen=True)
class LoopOptions:
    """How long and how often. ``batch`` counts samples per draw; ``micro_batches`` split it to save memory."""

    iterations: int
    batch: int = 128
    micro_batches: int = 1
    seed: int = 0
    checkpoint_every: int = 500
    evaluate_every: int = 0
    """Iterations between evaluations (0: none)."""
    log_every: int = 10
    keep: int = 2

    def __post_init__(self):
        if self.iterations < 1 or self.batch < 1 or not 1 <= self.micro_batches <= self.batch:
            raise LimbeckError(
                f"iterations={self.iterations}, batch={self.batch} and micro_batches={self.micro_batches} must be at least 1, "
                "and there are at most as many micro-batches as samples in the batch"
            )
