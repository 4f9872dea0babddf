"""Continuous-time consistency (sCM, arXiv 2410.11081; rCM, arXiv 2510.08431): the tangent, its normalisations, the loss.

TrigFlow on data of unit standard deviation: x_t = cos t x_0 + sin t e, f(x, t) = cos t x - sin t F(x, t), and f is constant
along the path dx/dt = F_T(x, t) exactly where df/dt = -cos t (F - F_T) - sin t (x + dF/dt) is 0.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, guided
from limbeck.errors import LimbeckError, unknown
from limbeck.noise import TrigFlow, spread

EDGE = 1e-4  # how close t may come to 0 and pi/2, where sin t and cos t divide


def angle(t: Tensor) -> Tensor:
    """t moved into [1e-4, pi/2 - 1e-4], where the velocity and the noise-to-signal ratio exist; float64."""
    return t.double().clamp(EDGE, math.pi / 2 - EDGE)


def trig_velocity(
    denoiser: Denoiser, x: Tensor, t: Tensor, cond: Cond | None = None, w: float | Tensor = 1.0, *, sigma_data: float = 1.0
) -> Tensor:
    """F(x, t) = (cos t x - f(x, t)) / sin t of a denoiser f in TrigFlow(sigma_data), guided at w; shape of x.

    x (B, ...) and F are in units of sigma_data; t (B,) in (0, pi/2). Raises LimbeckError for a denoiser of another process,
    and where sin t is too small to divide by: see :func:`angle`.
    """
    process = denoiser.process
    if not isinstance(process, TrigFlow) or process.sigma_data != sigma_data:
        raise LimbeckError(
            f"a denoiser in TrigFlow({sigma_data:g}) is expected, not in {process}; see limbeck.denoisers.in_process"
        )
    t = t.double()
    if bool((t.sin() < EDGE / 4).any()):
        raise LimbeckError(f"t={float(t.min()):.3g}: the velocity divides by sin t; keep times within limbeck.losses.angle(t)")
    f = guided(denoiser, sigma_data * x, t, cond, w) / sigma_data
    return (spread(t.cos(), x) * x - f) / spread(t.sin(), x)


def _rcm(r: float, t: Tensor) -> tuple[Tensor, Tensor, float]:
    return torch.cos(t) * torch.sqrt(1 - r**2 * torch.sin(t) ** 2), r * torch.cos(t) * torch.sin(t), 1.0


def _scm(r: float, t: Tensor) -> tuple[Tensor, Tensor, float]:
    return torch.cos(t) ** 2, r * torch.cos(t) * torch.sin(t), r


# weights of F - F_T, of x_t and of cos t sin t dF/dt
WARMUPS: dict[str, Callable[[float, Tensor], tuple[Tensor, Tensor, float]]] = {"rcm": _rcm, "scm": _scm}


def consistency_tangent(
    F: Tensor, F_T: Tensor, x_t: Tensor, t: Tensor, dF: Tensor, r: float = 1.0, warmup: str = "rcm"
) -> Tensor:
    """g = -w_1 (F - F_T) - w_2 x_t - w_3 cos t sin t dF/dt, shape of x_t; cos t df/dt where r = 1 (rCM, Algorithm 1).

    ``dF``: cos t sin t dF/dt along (F_T, 1). ``r`` in [0, 1] warms the derivative up: "rcm" has the weights
    cos t sqrt(1 - r^2 sin^2 t), r cos t sin t and 1, "scm" cos^2 t, r cos t sin t and r.
    """
    if warmup not in WARMUPS:
        raise unknown("warm-up", warmup, WARMUPS)
    if not 0 <= r <= 1:
        raise LimbeckError(f"the warm-up r is {r:g}: it goes from 0 to 1")
    of_F, of_x, of_dF = WARMUPS[warmup](r, t.double())
    return -spread(of_F, x_t) * (F - F_T) - spread(of_x, x_t) * x_t - of_dF * dF


def _square(g: Tensor) -> Tensor:
    norm = g.double().flatten(1).square().sum(1)  # float64: many elements
    return norm.reshape(-1, *(1,) * (g.ndim - 1))


TANGENT_NORMALISERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "norm": lambda g, c: g / (_square(g).sqrt() + c).to(g),  # sCM and rCM's code
    "root": lambda g, c: g / (_square(g) + c).sqrt().to(g),  # rCM's text: the loss is |g|^2 / (|g|^2 + c)
    "clamp": lambda g, c: g.clamp(-1, 1),  # sCM's other choice
    "none": lambda g, c: g,
}


def normalise_tangent(g: Tensor, kind: str = "norm", c: float = 0.1) -> Tensor:
    """g (B, ...) at a length below 1 per sample: g / (|g| + c), g / sqrt(|g|^2 + c), elements clamped to [-1, 1], or g.

    Raises LimbeckError for an unknown kind, or a c that is not positive.
    """
    if kind not in TANGENT_NORMALISERS:
        raise unknown("normalisation of the tangent", kind, TANGENT_NORMALISERS)
    if not c > 0:
        raise LimbeckError(f"c={c:g}: the constant beside the tangent's length must be positive")
    return TANGENT_NORMALISERS[kind](g, c)


def continuous_loss(F: Tensor, still: Tensor, g: Tensor) -> Tensor:
    """mean |F - sg[F^-] - sg[g]|^2 over elements, then samples; a scalar whose gradient is -2 g . dF / numel at F = F^-.

    Its value is mean |g|^2 whatever the student has learned: log the tangent's length before normalisation instead.
    """
    return (F - (still + g).detach()).square().flatten(1).mean(1).mean()
