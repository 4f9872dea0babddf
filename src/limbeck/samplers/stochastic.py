"""Stochastic samplers: ancestral sampling and EDM's churn. ``noise(i)`` gives the fresh normal numbers of step i."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, times_like
from limbeck.errors import LimbeckError
from limbeck.noise import Process
from limbeck.samplers.ode import heun_step, path_of
from limbeck.samplers.steps import Noise, check_nodes, drawn


def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond | None = None,
    *,
    noise: Noise | None = None,
    final: bool = True,
) -> Tensor:
    """x_to ~ q(x_to | x, x0) with the denoiser's x0: DDPM's sampler (arXiv 2006.11239, Eq. 7, posterior variance).

    The same as DDIM with eta = 1; equals diffusers' DDPM (fixed_small) and, as x / a, EulerAncestralDiscrete schedulers.
    """
    process, nodes = denoiser.process, check_nodes(denoiser.process, times)
    for i, (t, t_to) in enumerate(pairwise(nodes)):
        mean, std = process.posterior(x, denoiser(x, times_like(x, t), cond), t, t_to)
        x = mean + std.item() * drawn(noise, i, x, "ancestral sampling")
    return denoiser(x, times_like(x, nodes[-1]), cond) if final else x


def stochastic_edm(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond | None = None,
    *,
    noise: Noise | None = None,
    s_churn: float = 40.0,
    s_min: float = 0.05,
    s_max: float = 50.0,
    s_noise: float = 1.003,
    order: int = 2,
    path: str | None = None,
    final: bool = True,
) -> Tensor:
    """EDM's stochastic sampler (arXiv 2206.00364, Algorithm 2; defaults: its ImageNet-64 values) for every process.

    Where s_min <= sigma <= s_max, a step begins by raising sigma = s / a by the factor 1 + min(s_churn / N, sqrt(2) - 1) with
    fresh noise of standard deviation ``s_noise``; N counts the steps. ``order`` 2 corrects as :func:`heun` does (its equal at
    s_churn = 0), 1 is Euler (diffusers' EulerDiscrete and EDMEuler schedulers). The raised time may exceed t_max, as in EDM.
    """
    nodes, path = check_nodes(denoiser.process, times), path_of(denoiser.process, path)
    if s_churn < 0 or s_noise < 0 or order not in (1, 2):
        raise LimbeckError(f"churn needs s_churn >= 0, s_noise >= 0 and order 1 or 2, not {s_churn:g}, {s_noise:g}, {order}")
    gamma = min(s_churn / max(len(nodes) - (not final), 1), math.sqrt(2) - 1)
    for i, t in enumerate(nodes if final else nodes[:-1]):
        if gamma > 0 and s_min <= denoiser.process.sigma(t).item() <= s_max:
            x, t = _churned(denoiser.process, x, t, gamma, s_noise * drawn(noise, i, x, f"s_churn = {s_churn:g}"))
        x0 = denoiser(x, times_like(x, t), cond)
        x = x0 if i == len(nodes) - 1 else heun_step(denoiser, x, x0, t, nodes[i + 1], cond, path, order)
    return x


def _churned(process: Process, x: Tensor, t: Tensor, gamma: float, n: Tensor) -> tuple[Tensor, Tensor]:
    # the transition to sigma (1 + gamma), in a form that is finite where no signal is left
    keep = 1 / (1 + gamma)
    raised = process.time_of(process.sigma(t) * (1 + gamma))
    s, s_raised = process.s(t).item(), process.s(raised).item()
    return keep * s_raised / s * x + s_raised * math.sqrt(1 - keep**2) * n, raised
