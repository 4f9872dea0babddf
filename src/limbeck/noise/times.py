"""Time laws: quantile functions that map uniform numbers u in [0, 1) to times, so that noise keyed by sample decides.

Laws of the noise-to-signal ratio sigma = s/a serve every process through :class:`InSigma`. All values are float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.noise.grids import shift_times
from limbeck.noise.process import Process

TimeLaw = Callable[[Tensor], Tensor]
_BELOW_ONE = 1 - 2.0**-53


def _normal(u: Tensor) -> Tensor:
    u = u.double()  # keep the quantile finite at u = 0
    return torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))


def _edges(weights: Sequence[float], count: int) -> list[float]:
    """Where u passes from one of ``count`` items to the next."""
    total = sum(weights)
    if len(weights) != count or count == 0 or min(weights) < 0 or not 0 < total < math.inf:
        raise LimbeckError(f"{count} items need {count} weights >= 0 with a positive sum, not {tuple(weights)}")
    return [part / total for part in accumulate(weights)][:-1]


@dataclass(frozen=True)
class Uniform:
    """U(low, high)."""

    low: float
    high: float

    def __call__(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u.double()


@dataclass(frozen=True)
class UniformInteger:
    """Uniform over the integers low, ..., high (both included)."""

    low: int
    high: int

    def __post_init__(self):
        if self.high < self.low:
            raise LimbeckError(f"no integer between low={self.low} and high={self.high}; raise high or lower low")

    def __call__(self, u: Tensor) -> Tensor:
        return (self.low + torch.floor(u.double() * (self.high - self.low + 1))).clamp(max=self.high)


@dataclass(frozen=True)
class LogUniform:
    """ln t uniform between ln low and ln high."""

    low: float
    high: float

    def __call__(self, u: Tensor) -> Tensor:
        return self.low * (self.high / self.low) ** u.double()


@dataclass(frozen=True)
class LogNormal:
    """ln t ~ N(mean, std^2): EDM's training law with mean -1.2, std 1.2."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, u: Tensor) -> Tensor:
        return torch.exp(self.mean + self.std * _normal(u))


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(N(mean, std^2)): SD3's law; SiD-DiT uses mean ln 2, std 1.6."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal(u))


@dataclass(frozen=True)
class Karras:
    """t^(1/rho) uniform between low and high: the continuous form of the EDM grid."""

    low: float = 0.002
    high: float = 80.0
    rho: float = 7.0

    def __call__(self, u: Tensor) -> Tensor:
        low, high = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return (low + (high - low) * u.double()) ** self.rho


@dataclass(frozen=True)
class Power:
    """Beta(exponent, 1) on [0, 1]: the density exponent t^(exponent - 1)."""

    exponent: float

    def __call__(self, u: Tensor) -> Tensor:
        return u.double() ** (1 / self.exponent)


@dataclass(frozen=True)
class Choice:
    """values[i] with probability proportional to weights[i] (None: uniform)."""

    values: tuple[float, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        self._edges()

    def _edges(self) -> list[float]:
        return _edges(self.weights if self.weights is not None else [1.0] * len(self.values), len(self.values))

    def __call__(self, u: Tensor) -> Tensor:
        edges = torch.tensor(self._edges(), dtype=torch.float64, device=u.device)
        index = torch.searchsorted(edges, u.double().contiguous(), right=True)
        return torch.tensor(self.values, dtype=torch.float64, device=u.device)[index]


@dataclass(frozen=True)
class Mixture:
    """laws[i] with probability proportional to weights[i]; one u serves the choice and the law."""

    laws: tuple[TimeLaw, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        _edges(self.weights, len(self.laws))

    def __call__(self, u: Tensor) -> Tensor:
        u = u.double()
        t = torch.full_like(u, torch.nan)
        edges = [0.0, *_edges(self.weights, len(self.laws)), 1.0]
        for law, low, high in zip(self.laws, edges, edges[1:], strict=False):
            if high > low:  # each law overwrites its predecessors from its own edge on
                t = torch.where(u >= low, law(((u - low) / (high - low)).clamp(0, _BELOW_ONE)), t)
        return t


@dataclass(frozen=True)
class Clamped:
    """A law cut to [low, high]; what falls outside sits on the border."""

    law: TimeLaw
    low: float
    high: float

    def __call__(self, u: Tensor) -> Tensor:
        return self.law(u).clamp(self.low, self.high)


@dataclass(frozen=True)
class Shifted:
    """A law on [0, 1] seen through the flow shift t -> shift t / (1 + (shift - 1) t)."""

    law: TimeLaw
    shift: float

    def __call__(self, u: Tensor) -> Tensor:
        return shift_times(self.law(u), self.shift)


@dataclass(frozen=True)
class Mapped:
    """A law seen through a function of the time, e.g. torch.atan for TrigFlow."""

    law: TimeLaw
    function: Callable[[Tensor], Tensor]

    def __call__(self, u: Tensor) -> Tensor:
        return self.function(self.law(u))


@dataclass(frozen=True)
class Snapped:
    """A law whose times are moved to the nearest point of a grid (discrete-sigma networks)."""

    law: TimeLaw
    grid: tuple[float, ...]

    def __call__(self, u: Tensor) -> Tensor:
        t = self.law(u)
        grid = torch.tensor(sorted(self.grid), dtype=torch.float64, device=t.device)
        right = torch.searchsorted(grid, t.contiguous()).clamp(1, len(grid) - 1)
        return torch.where(t - grid[right - 1] <= grid[right] - t, grid[right - 1], grid[right])


@dataclass(frozen=True)
class InSigma:
    """A law of sigma = s/a as a law of a process's own time, cut to the process's range."""

    law: TimeLaw
    process: Process

    def __call__(self, u: Tensor) -> Tensor:
        return self.process.time_of(self.law(u)).clamp(self.process.t_min, self.process.t_max)


def between(process: Process, u: Tensor, low: Tensor, high: Tensor, rho: float | None = 7.0, shift: float = 1.0) -> Tensor:
    """Times (B,) between ``low`` and ``high`` (B,) of a process for uniform numbers u (B,), each sample in its own interval.

    Karras' spacing of sigma = s/a with this rho (``high`` must have a signal left), or (None) uniform in the process's time;
    with a ``shift``, uniform in the time in [0, 1] that the flow shift then carries into the interval.
    """
    if rho is None and shift != 1:
        low, high = shift_times(low, 1 / shift), shift_times(high, 1 / shift)
        return shift_times(low + (high - low) * u.double(), shift)
    if rho is None:
        return low + (high - low) * u.double()
    least, most = (process.sigma(t) ** (1 / rho) for t in (low, high))
    return process.time_of((least + (most - least) * u.double()) ** rho)
