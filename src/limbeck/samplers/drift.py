"""Sampling in a process that drifts towards a known end point: without the drift, any solver serves."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from limbeck.denoisers import Cond, Denoiser
from limbeck.noise import Process, spread


@dataclass(frozen=True)
class Driftless(Process):
    """The same signal and noise levels as ``process``, without its drift."""

    process: Process

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.process.t_min

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return self.process.t_max

    def a(self, t: Tensor) -> Tensor:
        return self.process.a(t)

    def s(self, t: Tensor) -> Tensor:
        return self.process.s(t)

    def da(self, t: Tensor) -> Tensor:
        return self.process.da(t)

    def ds(self, t: Tensor) -> Tensor:
        return self.process.ds(t)

    def time_of(self, sigma: Tensor) -> Tensor:
        return self.process.time_of(sigma)


class Undrifted:
    """A denoiser of x_t = a x0 + s e + d(t) y seen as a denoiser of x_t - d(t) y, for a known y (B, ...).

    Start a solver at x - d(times[0]) y; with final=False add d(times[-1]) y to what it returns.
    """

    def __init__(self, denoiser: Denoiser, y: Tensor):
        self.denoiser, self.y = denoiser, y
        self.process: Process = Driftless(denoiser.process)
        self.null: Mapping[str, Tensor] | None = denoiser.null

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.denoiser(x_t + spread(self.denoiser.process.d(t), x_t) * self.y, t, cond)
