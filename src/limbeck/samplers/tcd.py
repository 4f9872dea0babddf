"""Stochastic sampling of trajectory consistency models: jump below the next node, then noise again up to it."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, times_like
from limbeck.errors import LimbeckError
from limbeck.noise import DDPM
from limbeck.samplers.steps import Noise, check_nodes, ddim_step, drawn, scalar


def tcd(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond | None = None,
    *,
    eta: float = 0.3,
    noise: Noise | None = None,
    below: Callable[[Tensor], Tensor] | None = None,
    final: bool = True,
) -> Tensor:
    """Gamma sampling (TCD, arXiv 2402.19159): x_s' = Phi(x_t, D, t, s'), then noise from s' up to the next node s.

    eta (gamma) in [0, 1]: 0 is deterministic DDIM, 1 jumps to the process's least noisy time (multistep consistency
    sampling). ``below`` maps s to s' <= s; None: s' = (1 - eta) s in the process's own time, rounded down to an index for
    DDPM. ``noise(i)`` serves step i. Equals diffusers' TCDScheduler, which ends at index 0: append 0 and set final=False.
    """
    process, nodes = denoiser.process, check_nodes(denoiser.process, times)
    if not 0 <= eta <= 1:
        raise LimbeckError(f"eta must lie in [0, 1], not {eta:g}: 0 is deterministic, 1 begins anew from clean data")
    for i, (t, s) in enumerate(pairwise(nodes)):
        x0 = denoiser(x, times_like(x, t), cond)
        low = _below(process, s, eta) if below is None else torch.minimum(below(s), s)
        x = ddim_step(process, x, x0, t, low)
        if bool(low < s):
            keep, std = process.transition(low, s)
            x = scalar(keep, x) * x + scalar(std, x) * drawn(noise, i, x, f"tcd with eta = {eta:g}")
    return denoiser(x, times_like(x, nodes[-1]), cond) if final else x


def _below(process: object, s: Tensor, eta: float) -> Tensor:
    low = (1 - eta) * s
    return torch.floor(low) if isinstance(process, DDPM) else low.clamp(min=getattr(process, "t_min", 0.0))
