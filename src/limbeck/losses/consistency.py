"""Consistency losses: two neighbouring points of one path must be mapped to the same clean point."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser
from limbeck.errors import LimbeckError, unknown
from limbeck.networks import RngCapture
from limbeck.noise import spread

Distance = Callable[[Tensor, Tensor], Tensor]


def pseudo_huber(x: Tensor, y: Tensor, c: float | None = None, reduce: str = "sample") -> Tensor:
    """sqrt(|x - y|^2 + c^2) - c, shape (B,) (iCT, arXiv 2310.14189).

    ``reduce``: "sample", one Euclidean norm over all elements of a sample (the paper), c = 0.00054 sqrt(d) by default;
    or "element", each element for itself, then the mean (other codes; there the same c makes another loss, nearly L1).
    c = 0 is the norm itself (ECT), with gradient 0 at distance 0.
    """
    c = 0.00054 * math.sqrt(x[0].numel()) if c is None else c
    gap = (x - y).flatten(1)
    if c == 0 and reduce in ("sample", "element"):
        return gap.abs().mean(1) if reduce == "element" else torch.linalg.vector_norm(gap, dim=1)
    square = gap.square()
    if reduce == "sample":
        return torch.sqrt(square.sum(1) + c**2) - c
    if reduce == "element":
        return (torch.sqrt(square + c**2) - c).mean(1)
    raise unknown("reduction", reduce, ["sample", "element"])


def squared(x: Tensor, y: Tensor) -> Tensor:
    """mean |x - y|^2 over the elements of a sample, shape (B,)."""
    return (x - y).square().flatten(1).mean(1)


def consistency_pair(
    student: Denoiser, target: Denoiser, x_high: Tensor, t_high: Tensor, x_low: Tensor, t_low: Tensor, cond: Cond | None = None
) -> tuple[Tensor, Tensor]:
    """(f(x_high, t_high), sg f^-(x_low, t_low)), in the shape of x; both calls see the same dropout masks.

    The points belong to one path: made from one x0 and one eps (consistency training), or x_low is a teacher's ODE step
    from x_high (distillation). Only the student's call at the larger noise is differentiated.
    Raises LimbeckError where t_low is not below t_high in noise.
    """
    process = student.process
    if bool((process.sigma(t_low) >= process.sigma(t_high)).any()):
        raise LimbeckError("a consistency pair needs t_low below t_high in noise; check the order of the grid")
    rng = RngCapture(x_high.device)
    high = student(x_high, t_high, cond)
    with torch.no_grad(), rng.replay():
        low = target(x_low, t_low, cond)
    if high.dtype in (torch.float16, torch.bfloat16):  # their difference underflows where the points are close
        high = high.float()
    return high, low.to(high).detach()


def consistency_loss(
    student: Denoiser,
    target: Denoiser,
    x_high: Tensor,
    t_high: Tensor,
    x_low: Tensor,
    t_low: Tensor,
    cond: Cond | None = None,
    *,
    distance: Distance = pseudo_huber,
    weight: Tensor | None = None,
) -> Tensor:
    """E w d(f(x_high, t_high), sg f^-(x_low, t_low)) of a :func:`consistency_pair`, a scalar; ``weight`` (B,)."""
    gap = distance(*consistency_pair(student, target, x_high, t_high, x_low, t_low, cond))
    return (gap if weight is None else weight.to(gap) * gap).mean()


class FromZero:
    """A consistency function continued to f(x, 0) = x, where its network's ln t does not exist."""

    def __init__(self, f: Denoiser):
        self.f, self.process, self.null = f, f.process, f.null

    def __call__(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return torch.where(spread(t, x) > 0, self.f(x, t.clamp(min=1e-6), cond), x)
