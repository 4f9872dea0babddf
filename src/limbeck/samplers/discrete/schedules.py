"""Noise schedules of discrete diffusion: the total noise up to time t in [0, 1] and its rate. Times are float64 tensors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import LimbeckError


@dataclass(frozen=True)
class LogLinear:
    """total = -log(1 - (1 - floor) t): on an absorbing graph a symbol is masked with probability (1 - floor) t."""

    floor: float = 1e-3

    def __post_init__(self):
        if not 0 < self.floor < 1:
            raise LimbeckError(f"floor={self.floor:g} must lie in (0, 1); 1e-3 is usual")

    def total(self, t: Tensor) -> Tensor:
        return -torch.log1p(-(1 - self.floor) * t)

    def rate(self, t: Tensor) -> Tensor:
        return (1 - self.floor) / (1 - (1 - self.floor) * t)


@dataclass(frozen=True)
class Geometric:
    """total = low^(1 - t) high^t, for uniform graphs. SEDD's published runs use 1e-4 and 20."""

    low: float = 1e-4
    high: float = 20.0

    def __post_init__(self):
        if not 0 < self.low < self.high:
            raise LimbeckError(f"low={self.low:g} and high={self.high:g} must satisfy 0 < low < high")

    def total(self, t: Tensor) -> Tensor:
        return self.low ** (1 - t) * self.high**t

    def rate(self, t: Tensor) -> Tensor:
        return self.total(t) * math.log(self.high / self.low)


@dataclass(frozen=True)
class Linear:
    """total = low + slope t: a constant rate."""

    slope: float = 5.0
    low: float = 1e-4

    def __post_init__(self):
        if self.slope <= 0 or self.low < 0:
            raise LimbeckError(f"slope={self.slope:g} must be positive and low={self.low:g} not negative")

    def total(self, t: Tensor) -> Tensor:
        return self.low + self.slope * t

    def rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.slope)


Schedule = LogLinear | Geometric | Linear


def uniform_times(steps: int, end: float) -> Tensor:
    """steps + 1 equally spaced times from 1 to ``end``, float64."""
    if steps < 1 or not 0 < end < 1:
        raise LimbeckError(f"{steps} steps from 1 to {end:g}: give at least one step, and an end in (0, 1), e.g. 1e-3")
    return 1 - (1 - end) * torch.arange(steps + 1, dtype=torch.float64) / steps
