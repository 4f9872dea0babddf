"""Penalties on pictures and scenes, each a mean over all that it is given; text-to-3D adds them to its loss with weights that ramp.

Weights of such terms usually move with the step: :func:`limbeck.noise.ramp`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError


def orientation(weights: Tensor, normals: Tensor, directions: Tensor, opacity: Tensor) -> Tensor:
    """Visible surfaces face the camera: sum w max(0, n . d)^2 over the number of rays with opacity > 0 (arXiv 2112.03907, Eq. 11).

    ``weights`` (B, H, W, S) are detached; ``normals`` (B, H, W, S, 3) point outwards; ``directions`` (B, H, W, 3) of the rays;
    ``opacity`` (B, 1, H, W).
    """
    away = (normals * directions[..., None, :]).sum(-1).clamp(min=0)
    return (weights.detach() * away.square()).sum() / (opacity > 0).sum().clamp(min=1)


def sparsity(opacity: Tensor) -> Tensor:
    """Mean of sqrt(opacity^2 + 0.01): less is seen; smooth at 0."""
    return (opacity.square() + 0.01).sqrt().mean()


def opaqueness(opacity: Tensor) -> Tensor:
    """Mean cross-entropy of the opacity with itself, in nats: pixels are full or empty. Clamped to [1e-3, 1 - 1e-3]."""
    clamped = opacity.clamp(1e-3, 1 - 1e-3)
    return F.binary_cross_entropy(clamped, clamped)


def binary_entropy(weights: Tensor) -> Tensor:
    """Mean entropy in bits of the samples' weights as chances: surfaces are thin. Clamped to [1e-5, 1 - 1e-5]."""
    p = weights.clamp(1e-5, 1 - 1e-5)
    return -(p * p.log2() + (1 - p) * torch.log2(1 - p)).mean()


def depth_variance(variance: Tensor, opacity: Tensor) -> Tensor:
    """Mean variance of depth along the rays with opacity > 0.5; 0 if there is none. Both (B, 1, H, W)."""
    seen = opacity > 0.5
    return torch.where(seen, variance, 0).sum() / seen.sum().clamp(min=1)


def eikonal(gradients: Tensor) -> Tensor:
    """Mean of (|grad s| - 1)^2 over gradients (..., 3) of a signed distance (arXiv 2002.10099)."""
    return (gradients.norm(dim=-1) - 1).square().mean()


def total_variation(image: Tensor, power: int = 2) -> Tensor:
    """Mean |difference|^power of pixels one below the other plus that of neighbours in a row; image (B, C, H, W), at least 2 x 2.

    Of colours, depths, or a map of normals, whose smoothness it is.
    """
    if image.ndim != 4 or min(image.shape[-2:]) < 2:
        raise LimbeckError(f"an image of shape {tuple(image.shape)}: total variation takes (B, C, H, W), H and W at least 2")
    if power not in (1, 2):
        raise LimbeckError(f"power={power}: total variation is of absolute differences, 1, or of squared ones, 2")
    down, across = image.diff(dim=-2), image.diff(dim=-1)
    return down.abs().pow(power).mean() + across.abs().pow(power).mean()


def mean_scale(log_scales: Tensor) -> Tensor:
    """Mean extent of splats in world units, from ``log_scales`` (N, 3)."""
    return log_scales.exp().mean()
