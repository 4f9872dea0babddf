"""Stochastic sampling of trajectory consistency models: jump below the next node, then noise again up to it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, times_like
from limbeck.errors import LimbeckError
from limbeck.noise import DDPM, Process
from limbeck.samplers.steps import Noise, check_nodes, ddim_step, drawn, scalar


def tcd(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond | None = None,
    *,
    eta: float = 0.3,
    noise: Noise | None = None,
    below: Sequence[float] | Tensor | None = None,
    final: bool = True,
) -> Tensor:
    """Gamma sampling (TCD, arXiv 2402.19159): x_s' = Phi(x_t, D, t, s'), then noise from s' up to the next node s.

    eta (gamma) in [0, 1]: 0 is deterministic DDIM, 1 jumps to the process's least noisy time (multistep consistency
    sampling). ``below``: s' for every node s but the first; None: (1 - eta) s in the process's own time, rounded down to an
    index for DDPM. ``noise(i)`` serves step i. Equals diffusers' TCDScheduler, which ends at index 0: append 0 and set final=False.
    """
    process, nodes = denoiser.process, check_nodes(denoiser.process, times)
    if not 0 <= eta <= 1:
        raise LimbeckError(f"eta must lie in [0, 1], not {eta:g}: 0 is deterministic, 1 begins anew from clean data")
    lows = times_below(process, nodes[1:], eta) if below is None else torch.as_tensor(below, dtype=torch.float64).cpu()
    if lows.shape != nodes[1:].shape or bool((lows > nodes[1:]).any()):
        raise LimbeckError(f"below needs one time for each of the {len(nodes) - 1} nodes after the first, none above its node")
    for i, ((t, s), low) in enumerate(zip(pairwise(nodes), lows, strict=True)):
        x = ddim_step(process, x, denoiser(x, times_like(x, t), cond), t, low)
        if bool(low < s):
            keep, std = process.transition(low, s)
            x = scalar(keep, x) * x + scalar(std, x) * drawn(noise, i, x, f"tcd with eta = {eta:g}")
    return denoiser(x, times_like(x, nodes[-1]), cond) if final else x


def times_below(process: Process, s: Tensor, eta: float) -> Tensor:
    """s' = (1 - eta) s, not below the process's least noisy time; an index of DDPM's table."""
    low = (1 - eta) * s
    low = torch.floor(low) if isinstance(process, DDPM) else low
    return torch.minimum(low.clamp(min=process.t_min), s)
