"""Points along rays: where rays cross a box or a ball, stratified and importance samples, and quadrature by optical thickness.

A sample at distance t stands for a piece of its ray of length delta. With the thickness tau_i = sigma_i delta_i of each piece,

    alpha_i = 1 - exp(-tau_i),  T_i = exp(-sum_{j<i} tau_j),  w_i = T_i alpha_i,  sum w_i = 1 - exp(-sum tau_i)    (arXiv 2003.08934).

Pieces always tile [near, far], so that a constant density is integrated exactly. Nothing here is random: the caller gives the
uniform numbers, or none for the middles.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError

FLOOR = 1e-5  # added to each weight before importance sampling, so that no piece is out of reach


class Samples(NamedTuple):
    """Distances ``t`` (..., S) along rays, increasing, and the length ``delta`` (..., S) of the piece each stands for, in world
    units; both 0 on rays that miss.
    """

    t: Tensor
    delta: Tensor


def box_range(origins: Tensor, directions: Tensor, radius: float = 1.0) -> tuple[Tensor, Tensor]:
    """(near, far), each (...), between which rays (..., 3) are inside the box [-radius, radius]^3 and ahead; (0, 0) for a miss."""
    _check_radius(radius)
    tiny = torch.finfo(directions.dtype).eps ** 2
    slope = torch.where(directions.abs() < tiny, tiny, directions)
    middle, half = -origins / slope, radius / slope.abs()
    return _ahead((middle - half).amax(-1), (middle + half).amin(-1))


def ball_range(origins: Tensor, directions: Tensor, radius: float = 1.0) -> tuple[Tensor, Tensor]:
    """As :func:`box_range`, for the ball of that radius about the origin; directions have length 1."""
    _check_radius(radius)
    middle = -(origins * directions).sum(-1)
    nearest = origins + middle[..., None] * directions
    half = (radius**2 - nearest.square().sum(-1)).clamp(min=0).sqrt()
    return _ahead(middle - half, middle + half)


def _check_radius(radius: float) -> None:
    if not radius > 0:
        raise LimbeckError(f"radius={radius:g}: a box or ball to look into needs a positive one, in world units")


def _ahead(near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    near = near.clamp(min=0)
    hit = far > near
    return torch.where(hit, near, 0), torch.where(hit, far, 0)


def stratified(near: Tensor, far: Tensor, count: int, u: Tensor | None = None) -> Samples:
    """``count`` samples of [near, far] (...), one at share ``u`` (..., count) in [0, 1) of each equal piece (default: its middle)."""
    if count < 1:
        raise LimbeckError(f"{count} samples per ray: take at least 1")
    width = ((far - near) / count)[..., None]
    place = torch.arange(count, dtype=near.dtype, device=near.device) + (0.5 if u is None else u)
    return Samples(near[..., None] + place * width, width.expand(*near.shape, count))


def importance(near: Tensor, far: Tensor, weights: Tensor, count: int, u: Tensor | None = None) -> Tensor:
    """``count`` distances (..., count), increasing, with density proportional to weights + 1e-5 in equal pieces of [near, far].

    ``weights`` (..., S) of the pieces; sample i is the quantile (i + u_i) / count, u (..., count) in [0, 1) (default: 0.5).
    Detached: where to look is not differentiated.
    """
    with torch.no_grad():
        weights = weights + FLOOR
        S = weights.shape[-1]
        cdf = F.pad((weights / weights.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
        quantile = (torch.arange(count, dtype=cdf.dtype, device=cdf.device) + (0.5 if u is None else u)) / count
        quantile = quantile.expand(*cdf.shape[:-1], count).contiguous()
        piece = (torch.searchsorted(cdf, quantile, right=True) - 1).clamp(0, S - 1)
        low, high = cdf.gather(-1, piece), cdf.gather(-1, piece + 1)
        place = piece + ((quantile - low) / (high - low)).clamp(0, 1)
        return near[..., None] + place * ((far - near) / S)[..., None]


def blurred(weights: Tensor) -> Tensor:
    """Weights (..., S) that reach into the pieces beside them: (max(w_{i-1}, w_i) + max(w_i, w_{i+1})) / 2 (arXiv 2103.13415, Eq. 18)."""
    wide = F.pad(weights, (1, 1))
    most = torch.maximum(wide[..., 1:], wide[..., :-1])
    return (most[..., 1:] + most[..., :-1]) / 2


def merged(near: Tensor, far: Tensor, *distances: Tensor) -> Samples:
    """All distances in one sequence; each stands for what is nearer to it than to the others within [near, far]."""
    t = torch.cat(distances, -1).sort(-1).values
    edges = torch.cat([near[..., None], (t[..., 1:] + t[..., :-1]) / 2, far[..., None]], -1)
    return Samples(t, edges.diff(dim=-1))


def ray_weights(thickness: Tensor) -> tuple[Tensor, Tensor]:
    """(weights (..., S), opacity (...)) of pieces of optical thickness (..., S) >= 0, front to back."""
    through = thickness.cumsum(-1)
    weights = torch.exp(thickness - through) * -torch.expm1(-thickness)
    return weights, -torch.expm1(-through[..., -1])


def neus_thickness(before: Tensor, after: Tensor, sharpness: Tensor | float) -> Tensor:
    """Optical thickness (...) of a piece from its signed distances at both ends (arXiv 2106.10689, Eq. 13).

    1 - exp(-tau) = max((Phi(s_i) - Phi(s_{i+1})) / Phi(s_i), 0) with Phi(s) = sigmoid(sharpness s): tau is a difference of two
    logarithms of sigmoids, exact where Phi underflows. Distances are positive outside; sharpness in 1 / world units.
    """
    return F.relu(F.logsigmoid(sharpness * before) - F.logsigmoid(sharpness * after))


def volsdf_density(distance: Tensor, sharpness: Tensor | float) -> Tensor:
    """k Psi(-s), Psi the Laplace distribution's CDF of scale 1/k (arXiv 2106.12052, Eq. 2 and 3 with alpha = 1 / beta = k).

    ``distance`` s (...) is positive outside; ``sharpness`` k in 1 / world units (k <= 80 keeps training stable).
    """
    half = 0.5 * torch.exp(-sharpness * distance.abs())
    return sharpness * torch.where(distance > 0, half, 1 - half)
