"""Grids of times and curricula: pure functions of the step, float64."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import LimbeckError, unknown


def shift_times(t: Tensor, shift: float) -> Tensor:
    """The flow shift t -> shift t / (1 + (shift - 1) t) on [0, 1]; shift = exp(mu) where mu is given."""
    return shift * t.double() / (1 + (shift - 1) * t.double())


def ramp(
    step: int,
    start: int,
    begin: float,
    finish: float,
    end: int,
    shape: str = "linear",
) -> float:
    """A value that goes from ``begin`` at step ``start`` to ``finish`` at step ``end`` and stays outside.

    ``shape``: linear, sqrt (fast first) or cosine (slow at both ends).
    """
    share = min(max((step - start) / max(end - start, 1), 0.0), 1.0)
    if shape == "sqrt":
        share = math.sqrt(share)
    elif shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    elif shape != "linear":
        raise unknown("ramp shape", shape, ["linear", "sqrt", "cosine"])
    return begin + (finish - begin) * share


def karras_grid(n: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """n decreasing noise levels, t^(1/rho) equally spaced (EDM, Eq. 5), without the final 0."""
    _check_levels(n, low, high)
    share = torch.arange(n, dtype=torch.float64) / max(n - 1, 1)
    grid = (high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    grid[-1], grid[0] = low, high  # exactly
    return grid


def linear_grid(n: int, high: float = 1.0, low: float = 0.0, shift: float = 1.0) -> Tensor:
    """n decreasing times high, ..., before low: high - i (high - low) / n; few-step grids t_init (1 - i/n)."""
    if n < 1 or not low < high:
        raise LimbeckError(f"a grid of times needs n >= 1 and low < high, not n={n}, low={low:g}, high={high:g}")
    t = high - torch.arange(n, dtype=torch.float64) * (high - low) / n
    return shift_times(t, shift) if shift != 1.0 else t


def log_grid(n: int, low: float, high: float) -> Tensor:
    """n decreasing times equally spaced in ln t, from high to low (n = 1: high)."""
    _check_levels(n, low, high)
    grid = torch.exp(torch.linspace(math.log(high), math.log(low), n, dtype=torch.float64))
    grid[-1], grid[0] = low, high  # exactly
    return grid


def _check_levels(n: int, low: float, high: float) -> None:
    if n < 1 or not 0 < low < high:
        raise LimbeckError(f"a grid of noise levels needs n >= 1 and 0 < low < high, not n={n}, low={low:g}, high={high:g}")


def ddpm_grid(n: int, steps: int = 1000, spacing: str = "trailing") -> Tensor:
    """n decreasing indices out of 0..steps-1 with the spacings named in arXiv 2305.08891, Table 2.

    Those of diffusers' schedulers (steps_offset 0), ties of the rounding included; n = 1 of "linspace" is the last index.
    """
    if not 1 <= n <= steps:
        raise LimbeckError(f"cannot take n={n} of {steps} steps; choose 1 <= n <= {steps}")
    if spacing == "trailing":
        return torch.from_numpy(np.arange(steps, 0, -steps / n)[:n].round() - 1)
    if spacing == "leading":
        return torch.arange(n - 1, -1, -1, dtype=torch.float64) * (steps // n)
    if spacing == "linspace":
        grid = np.linspace(0, steps - 1, n).round()[::-1] if n > 1 else np.array([steps - 1.0])
        return torch.from_numpy(grid.copy())
    raise unknown("spacing", spacing, ["leading", "linspace", "trailing"])


def check_decreasing(times: Sequence[float] | Tensor, name: str = "times") -> Tensor:
    """The times as a float64 tensor; raises LimbeckError unless they decrease strictly."""
    t = torch.as_tensor(times, dtype=torch.float64)
    if t.ndim != 1 or len(t) == 0 or not bool(t.isfinite().all() and (t[1:] < t[:-1]).all()):
        found = [round(v, 6) for v in t.flatten().tolist()]
        raise LimbeckError(f"{name} must decrease strictly, not {found}; sort them or remove what repeats")
    return t


def doubling_points(step: int, total: int, s0: int = 10, s1: int = 1280) -> int:
    """N(k) of iCT: s0 2^floor(k/K') intervals, at most s1, plus one; 0 <= step < total.

    K' = floor(total / (log2 floor(s1/s0) + 1)) (arXiv 2310.14189, Table 1). Raises LimbeckError where K' = 0.
    """
    _check_points(step, total, s0, s1)
    stages = math.log2(s1 // s0) + 1
    stage_length = math.floor(total / stages)
    if stage_length == 0:
        raise LimbeckError(
            f"iCT's curriculum from s0={s0} to s1={s1} needs at least {math.ceil(stages)} steps, not {total}; "
            "raise the number of iterations or lower s1"
        )
    return min(s0 * 2 ** (step // stage_length), s1) + 1


def growing_points(step: int, total: int, s0: int = 2, s1: int = 150) -> int:
    """N(k) of the original consistency training, growing like a square root (arXiv 2303.01469, App. C)."""
    _check_points(step, total, s0, s1)
    return math.ceil(math.sqrt(step / total * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1


def _check_points(step: int, total: int, s0: int, s1: int) -> None:
    if s0 < 1 or s1 < s0:
        raise LimbeckError(f"the curriculum needs 1 <= s0 <= s1, not s0={s0}, s1={s1}")
    if not 0 <= step < total:
        raise LimbeckError(f"step {step} lies outside the planned {total} steps; raise the number of iterations")


def lognormal_cells(grid: Tensor, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """p(i), i = 0..N-2: the lognormal mass between grid[i] and grid[i + 1], for a monotone grid of N noise levels (iCT)."""
    edges = torch.erf((torch.log(grid.double()) - mean) / (math.sqrt(2) * std))
    p, rises = edges[1:] - edges[:-1], grid[1:] > grid[:-1]
    if len(grid) < 2 or not bool(rises.all() or (grid[1:] < grid[:-1]).all()):
        raise LimbeckError(f"the cells need at least two noise levels that rise or fall strictly, not {grid.tolist()}")
    return p / p.sum()
