"""Positions u on the way from clean data (0) to noise (1), equal segments of it, and the function that jumps inside one.

The paper puts a border into the segment above it, where nothing is left to jump over; here it ends the one below.
"""

import math
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser
from limbeck.errors import unknown
from limbeck.noise import DDPM, Clamped, InSigma, Karras, Mapped, Process, TimeLaw, Uniform
from limbeck.samplers import ddim_step
from limbeck.training import Keyed


def positions(kind: str, process: Process, low: float, high: float) -> TimeLaw:
    """How positions in [0, 1] become times of a process: t(0) is its least noisy time, t(1) the noisiest.

    "time": equal steps of its own time (an index of DDPM: T u - 1, as trailing spacing counts); "karras" and "angle": sigma =
    s/a from ``low`` to ``high``, sigma^(1/7) or arctan(sigma) in equal steps. Raises LimbeckError for another kind.
    """
    if kind == "time":
        first = -1.0 if isinstance(process, DDPM) else 0.0
        return Clamped(Uniform(first, process.t_max), process.t_min, process.t_max)
    if kind == "karras":
        return InSigma(Karras(low, high), process)
    if kind == "angle":
        return InSigma(Clamped(Mapped(Uniform(0.0, math.atan(high)), torch.tan), low, high), process)
    raise unknown("schedule", kind, ["angle", "karras", "time"])


def trailing(steps: int, start: float = 1.0) -> Tensor:
    """The positions start, ..., start / steps of ``steps`` equal steps from ``start`` to clean data."""
    return start * torch.arange(steps, 0, -1, dtype=torch.float64) / steps


def segment(n: Tensor, k: int, grid: int) -> Tensor:
    """The segment m in 0..k-1 of the grid points n in 1..grid, (1)."""
    return (n * k - 1) // grid


def draw(noise: Keyed, k: int, grid: int, target: str) -> tuple[Tensor, Tensor, Tensor]:
    """(u, u_n, u_e) per sample, (B,) float64: u_e <= u_n < u inside one of k segments. k divides ``grid``."""
    n = noise.randint("time", 1, grid + 1)
    low = segment(n, k, grid) * (grid // k)  # (1)
    u, u_n, border = n.double() / grid, torch.maximum(n - 1, low).double() / grid, low.double() / grid  # (2)
    if target == "border":
        return u, u_n, border
    return u, u_n, torch.minimum(border + (u_n - border) * noise.uniform("target"), u_n)  # (3)


class Jump:
    """A denoiser as the consistency function f(., ., t_end) (B,): it answers where the path is at t_end, not at 0."""

    def __init__(self, denoiser: Denoiser, t_end: Tensor):
        self.denoiser, self.t_end = denoiser, t_end
        self.process: Process = denoiser.process
        self.null: Any = denoiser.null

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return ddim_step(self.process, x_t, self.denoiser(x_t, t, cond), t, self.t_end)  # (4)
