"""Solvers of the probability-flow ODE in a process's own coefficients.

One convention for all of them: ``x`` is the state at ``times[0]``; ``times`` are the nodes at which the denoiser is asked, in
the process's time, strictly decreasing, float64. With ``final=True`` the last step goes from ``times[-1]`` to clean data, which
is the denoiser's x0 there (in every method: EDM's last Euler step, DDIM with alpha = 1, DPM-Solver++ with sigma = 0); N nodes
are then N steps. With ``final=False`` the state at ``times[-1]`` is returned after N - 1 steps.

Solvers run in the dtype of x with float64 coefficients and in the caller's gradient mode. For a state in float64 around a
float32 network (EDM), pass x.double() and a denoiser that casts.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, times_like
from limbeck.errors import LimbeckError, unknown
from limbeck.noise import Process
from limbeck.noise.process import SMALLEST
from limbeck.samplers.steps import Noise, check_nodes, ddim_step, drawn

Path = Literal["sigma", "flow"]


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond | None = None,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    final: bool = True,
) -> Tensor:
    """DDIM (arXiv 2010.02502): a_to x0 + sqrt(s_to^2 - std^2) eps + std n with std = eta times the posterior's.

    eta in [0, 1]: 0 is the deterministic first-order solver, 1 is ancestral sampling (``noise(i)`` serves step i).
    One denoiser call per step. Equals diffusers' DDIMScheduler.
    """
    process, nodes = denoiser.process, check_nodes(denoiser.process, times)
    if not 0 <= eta <= 1:
        raise LimbeckError(f"eta must lie in [0, 1], not {eta:g}: 0 is deterministic, 1 ancestral")
    for i, (t, t_to) in enumerate(pairwise(nodes)):
        x0 = denoiser(x, times_like(x, t), cond)
        if eta > 0:
            std = eta * process.s(t_to) * process.transition(t_to, t)[1] / process.s(t)
            x = ddim_step(process, x, x0, t, t_to, std, drawn(noise, i, x, f"ddim with eta = {eta:g}"))
        else:
            x = ddim_step(process, x, x0, t, t_to)
    return denoiser(x, times_like(x, nodes[-1]), cond) if final else x


def euler(
    denoiser: Denoiser, x: Tensor, times: Sequence[float] | Tensor, cond: Cond | None = None, *, final: bool = True
) -> Tensor:
    """Euler's method for x / a over sigma = s / a, which is deterministic DDIM: the same numbers under both names.

    Equals Euler over sigma for variance exploding and over t for plain rectified flow, and diffusers' EulerDiscrete (its
    sample is x / a), EDMEuler and FlowMatchEulerDiscrete schedulers. One denoiser call per step.
    """
    return ddim(denoiser, x, times, cond, final=final)


def path_of(process: Process, path: str | None = None) -> str:
    """In which variable a second-order method averages slopes; default "sigma" unless the process ends without signal.

    "sigma": y = x / a over p = s / a (EDM, diffusers' HeunDiscreteScheduler); "flow": y = x / (a + s) over p = s / (a + s)
    (rectified flow's own time, diffusers' FlowMatchHeunDiscreteScheduler), finite where a = 0. In both dy/dp = (y - x0) / p.
    """
    if path is None:
        end = process.a(torch.tensor(process.t_max, dtype=torch.float64))
        return "sigma" if end.item() >= SMALLEST else "flow"
    if path not in ("sigma", "flow"):
        raise unknown("path", path, ["sigma", "flow"])
    return path


def on_path(process: Process, t: Tensor, path: str) -> tuple[float, float]:
    """(scale, p) at t with x = scale y; raises LimbeckError where the path "sigma" has no signal to divide by."""
    a, s = process.a(t).item(), process.s(t).item()
    if path == "flow":
        return a + s, s / (a + s)
    if a < SMALLEST:
        raise LimbeckError(f"no signal is left at time {t.item():.6g} (a = {a:.3g}); start later or use path='flow'")
    return a, s / a


def heun_step(
    denoiser: Denoiser, x: Tensor, x0: Tensor, t: Tensor, t_to: Tensor, cond: Cond | None, path: str, order: int = 2
) -> Tensor:
    """Euler's step from t to t_to, corrected with the slope at t_to (order 2); x0 is the denoiser's at (x, t)."""
    (scale, p), (scale_to, p_to) = (on_path(denoiser.process, time, path) for time in (t, t_to))
    y = x / scale
    slope = (y - x0) / p
    y_to = y + (p_to - p) * slope
    if order == 2:
        slope_to = (y_to - denoiser(scale_to * y_to, times_like(x, t_to), cond)) / p_to
        y_to = y + (p_to - p) / 2 * (slope + slope_to)
    return scale_to * y_to


def heun(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond | None = None,
    *,
    path: str | None = None,
    final: bool = True,
) -> Tensor:
    """Heun's second-order method, EDM's deterministic sampler (arXiv 2206.00364, Algorithm 1).

    Every step is corrected except the final one to clean data: 2N - 1 denoiser calls for N nodes (2N - 2 with final=False).
    ``path``: the variable, see :func:`path_of`. Equals diffusers' HeunDiscrete and FlowMatchHeunDiscrete schedulers.
    """
    nodes, path = check_nodes(denoiser.process, times), path_of(denoiser.process, path)
    for t, t_to in pairwise(nodes):
        x = heun_step(denoiser, x, denoiser(x, times_like(x, t), cond), t, t_to, cond, path)
    return denoiser(x, times_like(x, nodes[-1]), cond) if final else x


def dpm_solver_pp_2m(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond | None = None,
    *,
    lower_order_final: bool = False,
    final: bool = True,
) -> Tensor:
    """DPM-Solver++(2M), data prediction, midpoint form (arXiv 2211.01095, Algorithm 2), in lambda = ln(a / s).

    x_to = (s_to / s) x + (a_to - a s_to / s) [(1 + 1/2r) D_i - 1/2r D_(i-1)] with r = h_(i-1) / h_i and h the step of lambda;
    the first step is of first order. ``lower_order_final`` also makes the last step to times[-1] so, for few steps that end
    there (final=False). One denoiser call per step. Equals diffusers' DPMSolverMultistep and EDMDPMSolverMultistep schedulers.
    """
    process, nodes = denoiser.process, check_nodes(denoiser.process, times)
    lam = (-torch.log(process.sigma(nodes))).tolist()
    previous: Tensor | None = None
    for i, (t, t_to) in enumerate(pairwise(nodes)):
        x0 = denoiser(x, times_like(x, t), cond)
        guess = x0
        if previous is not None and math.isfinite(lam[i - 1]) and not (lower_order_final and i == len(nodes) - 2):
            guess = x0 + (lam[i + 1] - lam[i]) / (2 * (lam[i] - lam[i - 1])) * (x0 - previous)
        x, previous = ddim_step(process, x, guess, t, t_to), x0
    return denoiser(x, times_like(x, nodes[-1]), cond) if final else x
