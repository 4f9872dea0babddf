"""How a role is trained, and how its weights are averaged: options, pure functions of the iteration."""

from dataclasses import dataclass
from typing import Literal

from limbeck.errors import LimbeckError, unknown

EIGHT_BIT = {"adam8bit": "Adam8bit", "adamw8bit": "AdamW8bit"}
"""Optimizers of bitsandbytes, by kind."""


@dataclass(frozen=True)
class OptimizerOptions:
    """How a role is trained. The learning rate is lr x warm-up x decay, a pure function of the iteration."""

    lr: float = 1e-4
    kind: Literal["adam", "adamw", "radam", "sgd", "adam8bit", "adamw8bit"] = "adam"
    """8-bit: both moments in a byte each (needs bitsandbytes)."""
    betas: tuple[float, float] = (0.0, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    """Iterations of linear warm-up."""
    decay: Literal["constant", "cosine", "linear"] = "constant"
    final: float = 0.02
    """Where cosine and linear decay end, as a share of lr."""
    halve_every: int = 0
    """Iterations after which the rate is halved, over and over, whatever the decay (0: never)."""
    restarts: int = 1
    """Warm-up and decay run so many times, each over an equal part of the run."""
    clip: float | None = None
    """Largest norm of the role's gradient (None: not clipped)."""
    clip_value: float | None = None
    """Largest size of any one element of the gradient, after the norm was clipped (None: not clipped)."""
    anew: tuple[int, ...] = ()
    """Iterations before which the optimizer forgets its state, and warm-up and decay begin anew."""

    def __post_init__(self):
        if self.restarts > 1 and self.anew:
            raise LimbeckError(
                f"restarts={self.restarts} and anew={self.anew} both say when the schedule begins again; give one"
            )
        if self.restarts < 1:
            raise LimbeckError(f"restarts={self.restarts}: warm-up and decay run at least once")
        if self.halve_every < 0:
            raise LimbeckError(f"halve_every={self.halve_every} is a number of iterations, or 0: the rate is never halved")
        if self.lr < 0 or self.warmup < 0 or (self.clip is not None and self.clip <= 0):
            raise LimbeckError(f"lr={self.lr:g}, warmup={self.warmup} and clip={self.clip} must be positive (clip may be None)")
        if not (self.eps >= 0 and self.weight_decay >= 0 and all(0 <= beta < 1 for beta in self.betas)):
            raise LimbeckError(
                f"eps={self.eps:g} and weight_decay={self.weight_decay:g} must not be negative, and betas={self.betas} must lie in [0, 1)"
            )
        if self.clip_value is not None and self.clip_value <= 0:
            raise LimbeckError(f"clip_value={self.clip_value:g} would leave no gradient; give a positive value, or None")

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate of iteration ``step`` of ``total``."""
        from limbeck.noise import ramp

        if self.restarts > 1:
            part = -(-total // self.restarts)
            step, total = step % part, part
        begin = max((r for r in self.anew if r <= step), default=0)
        end = min((r for r in self.anew if r > step), default=total)
        warm = min((step - begin + 1) / self.warmup, 1.0) if self.warmup else 1.0
        if self.halve_every:
            warm *= 0.5 ** ((step - begin) // self.halve_every)
        if self.decay == "constant":
            return self.lr * warm
        return self.lr * warm * ramp(step, begin + self.warmup, 1.0, self.final, end, self.decay)


@dataclass(frozen=True)
class EmaOptions:
    """Weights averaged over iterations k = 1, 2, ...: e <- beta_k e + (1 - beta_k) w.

    constant: beta = value. half_life: value iterations, never more than ``ramp`` of the run so far (SiD: 0.05).
    power: beta = (1 - 1/k)^(1 + value) (EDM2, arXiv 2312.02696). inverse: 1 - beta = 1 / (1 + value k).
    """

    kind: Literal["constant", "half_life", "power", "inverse"] = "inverse"
    value: float = 0.05
    ramp: float | None = None

    def decay(self, k: int) -> float:
        """beta_k for k >= 1."""
        if self.kind == "constant":
            return self.value
        if self.kind == "half_life":
            life = self.value if self.ramp is None else min(self.value, self.ramp * k)
            return 0.5 ** (1 / max(life, 1e-8))
        if self.kind == "power":
            return (1 - 1 / k) ** (1 + self.value)
        if self.kind == "inverse":
            return 1 - 1 / (1 + self.value * k)
        raise unknown("EMA kind", self.kind, ["constant", "half_life", "inverse", "power"])
