"""Features of images that need no trained network: what a Frechet distance of a person's own data is measured in.

They see the layout of a picture (4x4 pooled pixels), its sharpness, texture and noise (energies of Haar subbands) and
whether details are edges or grain (sparsity of the subbands). They know no objects. Whitened on one data set, they have
that set's own scale: figures in them compare models of the same data at the same size, and nothing else. They are not
the FID of the literature; for that, give your own features, e.g. of an Inception network.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.metrics import moments

FLOOR = 1e-4  # energy of an amplitude of 0.01, about one level of 8 bits: below it a picture is flat


def image_features(x: Tensor) -> Tensor:
    """Features (N, D), float64, of images (N, C, H, W) in [-1, 1] (not clamped), H and W at least 4; differentiable.

    Per channel: the means of a 4x4 grid (2x2 for more than 4 channels), and per level of an orthonormal Haar transform
    (up to 3, the coarsest at least 2x2) the log root mean square of each of its three subbands and the log ratio of the
    mean absolute coefficient to it. D = 28 for grayscale and 84 for RGB images of 16x16 and more.
    Raises LimbeckError for another shape.
    """
    if x.ndim != 4 or min(x.shape[2:]) < 4 or not x.is_floating_point():
        raise LimbeckError(
            f"images have shape {tuple(x.shape)} and dtype {x.dtype}: features need (N, C, H, W), H, W >= 4, float"
        )
    x = x.double()
    parts = [F.adaptive_avg_pool2d(x, 4 if x.shape[1] <= 4 else 2)]
    for _ in range(min(3, min(x.shape[2:]).bit_length() - 2)):
        x, details = haar(x)
        energy = details.square().mean((-2, -1)) + FLOOR  # (N, C, 3)
        size = (details.square() + FLOOR).sqrt().mean((-3, -2, -1))
        parts += [energy.log() / 2, size.log() - energy.mean(-1).log() / 2]
    return torch.cat([part.flatten(1) for part in parts], 1)


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """One level of the orthonormal Haar transform of (..., H, W): the low band (..., H/2, W/2) and the details
    (..., 3, H/2, W/2): horizontal, vertical and diagonal differences. An odd last row or column is left out."""
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    details = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d], -3) / 2
    return (a + b + c + d) / 2, details


def whitened(features: Callable[[Tensor], Tensor], real: Tensor, floor: float = 0.01) -> Callable[[Tensor], Tensor]:
    """The features, linearly changed so that those of ``real`` (N, ...) have mean 0 and covariance I.

    Each feature is divided by its standard deviation; then the eigenvalues of the correlations, at least ``floor``, become
    1: a direction in which the data hardly varies counts at most 1 / floor times its share.
    """
    with torch.no_grad():
        mean, covariance = moments(features(real))
    scale = covariance.diagonal().clamp(min=1e-12).sqrt()
    values, vectors = torch.linalg.eigh(covariance / scale / scale[:, None])
    change = vectors / values.clamp(min=floor).sqrt() / scale[:, None]
    return lambda x: (features(x).to(mean) - mean) @ change
