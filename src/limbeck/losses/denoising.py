"""Denoising losses: the ordinary one and the exact one for samples that are still noisy (anchored at a level)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser
from limbeck.errors import unknown
from limbeck.noise import Process, spread

SIGMA_DATA = 0.5


def _edm(process: Process, t: Tensor, sd: float) -> Tensor:
    sigma = process.sigma(t)
    return (sigma**2 + sd**2) / (sigma * sd) ** 2


def _velocity(process: Process, t: Tensor, sd: float) -> Tensor:
    a, s = process.a(t), process.s(t)
    return ((a * process.ds(t) - s * process.da(t)) / s) ** 2


# weights of the squared x0 error that make it the named error
WEIGHTS: dict[str, Callable[[Process, Tensor, float], Tensor]] = {
    "x0": lambda process, t, sd: torch.ones_like(t, dtype=torch.float64),
    "edm": _edm,
    "eps": lambda process, t, sd: process.sigma(t) ** -2,
    "signal_eps": lambda process, t, sd: process.a(t) ** 2 * process.sigma(t) ** -2,  # a eps: what VSD trains its critic on
    "v": lambda process, t, sd: ((process.a(t) ** 2 + process.s(t) ** 2) / process.s(t)) ** 2,
    "velocity": _velocity,
    "min_snr_5": lambda process, t, sd: (process.sigma(t) ** -2).clamp(max=5.0),
}


def denoising_target(process: Process, x: Tensor, x_t: Tensor, eps: Tensor, t: Tensor, level: Tensor | None = None) -> Tensor:
    """The x0 target whose conditional mean is the denoiser of the law of x: x itself, or for an x at noise ``level``

    D* = (x_t + s_t^2 S*) / a_t with the conditional score S* = -eps / s_{t|level} (arXiv 2510.27684, Eq. 11-12).
    """
    if level is None:
        return x
    _, s = process.transition(level, t)
    return (x_t - spread(process.s(t) ** 2 / s, x) * eps) / spread(process.a(t), x)


def importance_weight(process: Process, x_t: Tensor, x0: Tensor, eps: Tensor, t: Tensor, tempered: bool = True) -> Tensor:
    """q(x_t | x0) / q(x_t | x_level) for x_t made with eps from a noisy x whose clean prediction is x0, (B,), without gradient.

    exp(-|m|^2 / 2) / exp(-|eps|^2 / 2) with the mixed noise m = (x_t - a_t x0) / s_t, up to a factor that depends on t alone;
    ``tempered`` to the power 1/d (means over the d elements), without which it explodes (arXiv 2503.06674).
    """
    m = (x_t - spread(process.a(t), x_t) * x0) / spread(process.s(t), x_t)
    square = (eps.double().square() - m.double().square()).flatten(1).detach()
    return torch.exp(0.5 * (square.mean(1) if tempered else square.sum(1)))


def denoising_errors(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Cond | None = None,
    *,
    weight: str = "edm",
    sigma_data: float = SIGMA_DATA,
    level: Tensor | None = None,
    damping: float = 10.0,
    relative: bool = False,
    clean: Tensor | None = None,
    importance: Literal["tempered", "raw", "none"] = "tempered",
) -> Tensor:
    """w(t) mean |D(x_t, t, cond) - D*|^2 of every sample, (B,).

    ``x`` (B, ...) is data and gets no gradient; ``t`` (B,); ``eps`` fresh noise like x. ``weight``: x0, edm, eps, signal_eps,
    v, velocity or min_snr_5 name the error that the weighted x0 error equals. ``level`` (B,): x is noisy at that time (see
    :func:`denoising_target`); the weight is then damped by min(1, damping s_{t|level}^2), since D* blows up as t -> level;
    ``relative``: of (s_{t|level} / s_t)^2, which is 1 for clean x and does not depend on the unit of noise.

    ``clean`` (B, ...), the clean prediction that a noisy x was made with, is learned in place of D*, undamped, with the
    ``importance`` of :func:`importance_weight`. Its mean is the denoiser of the noised law of ``clean`` with the raw weight.
    """
    if weight not in WEIGHTS:
        raise unknown("loss weight", weight, WEIGHTS)
    process, x = denoiser.process, x.detach()
    x_t = process.diffuse(x, eps, t, level)
    w = WEIGHTS[weight](process, t, sigma_data)
    if clean is not None:
        target = clean.detach()
        if importance != "none":
            w = w * importance_weight(process, x_t, target, eps, t, importance == "tempered")
    else:
        target = denoising_target(process, x, x_t, eps, t, level)
    if level is not None and clean is None:
        variance = process.transition(level, t)[1] ** 2
        w = w * (damping * (variance / process.s(t) ** 2 if relative else variance)).clamp(max=1.0)
    error = (denoiser(x_t, t, cond) - target).square().flatten(1).mean(1)
    return w.to(error) * error


def denoising_loss(denoiser: Denoiser, x: Tensor, t: Tensor, eps: Tensor, cond: Cond | None = None, **how: Any) -> Tensor:
    """E w(t) mean |D(x_t, t, cond) - D*|^2 over elements, then samples; a scalar: the mean of :func:`denoising_errors`."""
    return denoising_errors(denoiser, x, t, eps, cond, **how).mean()
