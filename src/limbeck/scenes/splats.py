"""Gaussian splats: what one is, where a set of them begins, its covariances and colours.

A set of N is a tuple of six tensors, so that a trainer may hold them as parameters (``Splats(**parameters)``). What
changes their number is in :mod:`limbeck.scenes.density`, pictures of them in :mod:`limbeck.scenes.splatting`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.scenes.harmonics import C0, MAX_DEGREE, degree_of, sh_basis

NEIGHBOURS = 3  # how far a new Gaussian reaches: the mean distance to that many others
_ROWS = 2048  # points whose distances to all others are in memory at once

# Of Adam with eps 1e-15 in the paper's code; those of the means times the scene's radius, falling exponentially to a hundredth
LEARNING_RATES = {"means": 1.6e-4, "log_scales": 5e-3, "quaternions": 1e-3, "logits": 5e-2, "sh0": 2.5e-3, "shN": 1.25e-4}


class Splats(NamedTuple):
    """N Gaussians, unconstrained, all of one floating dtype (arXiv 2308.04079).

    ``means`` (N, 3) in world units; ``log_scales`` (N, 3), the natural logarithms of the axes' standard deviations;
    ``quaternions`` (N, 4), wxyz of any length but 0; ``logits`` (N,) of the opacities; ``sh0`` (N, 1, 3) and ``shN`` (N, K - 1,
    3), K = 1, 4, 9 or 16 coefficients of colour minus 0.5 (0 black, 1 white), apart because they learn at different rates.
    """

    means: Tensor
    log_scales: Tensor
    quaternions: Tensor
    logits: Tensor
    sh0: Tensor
    shN: Tensor

    @property
    def harmonics(self) -> Tensor:
        """All K coefficients, (N, K, 3)."""
        return torch.cat([self.sh0, self.shN], 1)

    @property
    def degree(self) -> int:
        """Of the harmonics, 0 to 3."""
        return degree_of(1 + self.shN.shape[1])


def check_splats(splats: Splats) -> None:
    """Raise LimbeckError for shapes that do not fit, numbers that are not finite, and quaternions of length 0."""
    N = len(splats.means)
    shapes = [tuple(x.shape) for x in splats]
    K = 1 + splats.shN.shape[1] if splats.shN.ndim == 3 else 0
    if shapes != [(N, 3), (N, 3), (N, 4), (N,), (N, 1, 3), (N, K - 1, 3)]:
        named = ", ".join(f"{name} {shape}" for name, shape in zip(Splats._fields, shapes, strict=True))
        raise LimbeckError(f"splats do not fit: {named}; expected (N, 3), (N, 3), (N, 4), (N,), (N, 1, 3), (N, K - 1, 3)")
    degree_of(K)
    for name, x in zip(Splats._fields, splats, strict=True):
        if not bool(x.isfinite().all()):
            which = int((~x.isfinite()).reshape(N, -1).any(1).nonzero()[0])
            raise LimbeckError(f"splat {which} has {name} that are not finite: lower the learning rate, or drop it first")
    zero = splats.quaternions.abs().amax(1) == 0 if N else splats.logits > 0
    if bool(zero.any()):
        raise LimbeckError(f"splat {int(zero.nonzero()[0])} has a quaternion of length 0: (1, 0, 0, 0) is no rotation")


def rotations(quaternions: Tensor) -> Tensor:
    """R (..., 3, 3) of quaternions wxyz (..., 4) of any length but 0."""
    w, x, y, z = F.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def covariance_roots(splats: Splats) -> Tensor:
    """M = R S, (N, 3, 3): the covariance in the world is M M^T."""
    return rotations(splats.quaternions) * splats.log_scales.exp()[:, None]


def colours(splats: Splats, directions: Tensor, degree: int | None = None) -> Tensor:
    """max(0, sum_k c_k Y_k(direction) + 0.5) for unit directions (..., N, 3) from the camera, (..., N, 3).

    ``degree``: of the harmonics that are active (default: all).
    """
    degree = splats.degree if degree is None else degree
    if degree > splats.degree:
        raise LimbeckError(f"degree={degree} is asked for, but these splats have harmonics of degree {splats.degree}")
    basis = sh_basis(directions, degree)
    active = splats.harmonics[:, : basis.shape[-1]]
    return (torch.einsum("...nk,nkc->...nc", basis, active) + 0.5).clamp(min=0)


def splats_from_points(
    points: Tensor, colour: Tensor | float = 0.5, degree: int = 0, opacity: float = 0.1, least_scale: float = 1e-4
) -> Splats:
    """Round splats at ``points`` (N, 3) of ``colour`` (N, 3) in [0, 1], without dependence on the direction yet.

    The scale is the mean distance to the 3 nearest other points, at least ``least_scale``. Raises LimbeckError for fewer
    than 2 points or an opacity outside (0, 1).
    """
    N = len(points)
    if N < 2 or points.shape != (N, 3) or not bool(points.isfinite().all()):
        raise LimbeckError(f"points of shape {tuple(points.shape)}: splats begin at (N, 3) finite points, N at least 2")
    if not 0 < opacity < 1:
        raise LimbeckError(f"opacity={opacity:g}: it must lie between 0 and 1, both excluded")
    if not 0 <= degree <= MAX_DEGREE:
        raise LimbeckError(f"degree={degree}: splats have harmonics of degree 0 to {MAX_DEGREE}")
    scale = nearest_distances(points).clamp(min=least_scale)
    sh0 = ((torch.as_tensor(colour).to(points) - 0.5) / C0).expand(N, 3)
    return Splats(
        means=points.clone(),
        log_scales=scale.log()[:, None].repeat(1, 3),
        quaternions=points.new_tensor([1.0, 0.0, 0.0, 0.0]).repeat(N, 1),
        logits=points.new_full((N,), math.log(opacity / (1 - opacity))),
        sh0=sh0[:, None].clone(),
        shN=points.new_zeros(N, (degree + 1) ** 2 - 1, 3),
    )


def nearest_distances(points: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """The mean distance of each of (N, 3) points to the nearest others, (N,); N^2 work in blocks of rows."""
    k = min(neighbours, len(points) - 1)
    parts = []
    for start in range(0, len(points), _ROWS):
        distance = torch.cdist(points[start : start + _ROWS], points, compute_mode="donot_use_mm_for_euclid_dist")
        rows = torch.arange(len(distance), device=points.device)
        distance[rows, start + rows] = math.inf  # itself, of which there may be copies
        parts.append(distance.topk(k, largest=False).values.mean(1))
    return torch.cat(parts)


def ball(u: Tensor, radius: float = 1.0) -> Tensor:
    """Points uniform in a ball around the origin, (N, 3), of uniform numbers ``u`` (N, 3) in [0, 1)."""
    r, z, turn = radius * u[:, 0] ** (1 / 3), 2 * u[:, 1] - 1, 2 * math.pi * u[:, 2]
    across = (1 - z * z).clamp(min=0).sqrt()
    return r[:, None] * torch.stack([across * turn.cos(), across * turn.sin(), z], 1)
