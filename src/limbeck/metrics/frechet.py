"""Frechet and kernel distances on given features: FID and KID without a fixed feature net."""

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.metrics.samples import as_pair, as_rows, at_least, row_blocks


class Moments(NamedTuple):
    """Mean (D,) and covariance (D, D), divided by N - 1, in float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """The moments of features (N, ...), N >= 2. Raises `LimbeckError` for too few or non-finite samples."""
    rows = as_rows(features, "features", least=2)
    mean = rows.mean(0)
    centred = rows - mean
    return Moments(mean, centred.T @ centred / (len(rows) - 1))


def _checked(pair: tuple[Tensor, Tensor], name: str) -> Moments:
    mean, covariance = (part.detach().to(torch.float64) for part in pair)
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        raise LimbeckError(
            f"{name} has a mean of shape {tuple(mean.shape)} and a covariance of {tuple(covariance.shape)}: "
            "pass shapes (D,) and (D, D)"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise LimbeckError(f"{name} has NaN or infinite moments: check the features they come from")
    if (covariance - covariance.T).abs().max() > 1e-6 * covariance.abs().max():
        raise LimbeckError(f"{name} has a covariance that is not symmetric: pass moments(features)")
    return Moments(mean, covariance)


def _root(covariance: Tensor, name: str) -> Tensor:
    """The symmetric square root of a covariance of any rank."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    largest = values[-1].clamp(min=0)
    if values[0] < -1e-6 * largest:
        raise LimbeckError(f"{name} has a covariance with the eigenvalue {values[0].item():.3g}: none may be negative")
    # Rounding leaves null directions at about 1e-16 of the largest eigenvalue, whose root would be 1e-8.
    null = values < len(values) * torch.finfo(torch.float64).eps * largest
    return vectors * values.masked_fill(null, 0).sqrt() @ vectors.T


def frechet_distance_of_moments(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Squared Wasserstein-2 distance of two Gaussians, given as (mean, covariance) (Dowson and Landau, 1982).

    |m_a - m_b|^2 + Tr C_a + Tr C_b - 2 Tr (C_a^{1/2} C_b C_a^{1/2})^{1/2}. The last trace is the sum of the
    singular values of C_a^{1/2} C_b^{1/2}, which stays exact for covariances of any rank.
    Raises `LimbeckError` for shapes that do not fit, non-finite moments, or a covariance that is none.
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    if a.mean.shape != b.mean.shape:
        raise LimbeckError(f"a has {len(a.mean)} dimensions and b {len(b.mean)}: use the same features for both")
    overlap = torch.linalg.svdvals(_root(a.covariance, "a") @ _root(b.covariance, "b")).sum()
    shift = (a.mean - b.mean).square().sum()
    return max(0.0, (shift + a.covariance.trace() + b.covariance.trace() - 2 * overlap).item())


def frechet_distance(features_x: Tensor, features_y: Tensor) -> float:
    """Frechet distance (FID; Heusel et al., 2017, Eq. 6) between features (N, ...) and (M, ...).

    For two samples of one law it is not 0 but of order D^2 / N: see `bootstrap_floor`.
    Raises `LimbeckError` for fewer than two, non-finite or mismatched samples.
    """
    x, y = as_pair(features_x, features_y, least=2, names=("features_x", "features_y"))
    return frechet_distance_of_moments(moments(x), moments(y))


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """The sum of k(x_i, y_j) = (x_i . y_j / D + 1)^3 over all pairs."""
    return sum((block @ y.T / x.shape[1] + 1).pow(3).sum().item() for block in row_blocks(x, y))


def _within(x: Tensor) -> float:
    """The mean of k over pairs of different samples."""
    own = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum().item()
    return (_kernel_sum(x, x) - own) / (len(x) * (len(x) - 1))


def kernel_distance(features_x: Tensor, features_y: Tensor) -> float:
    """KID (Binkowski et al., 2018, Sec. 4): unbiased MMD^2 with the kernel k(x, y) = (x . y / D + 1)^3.

    Features (N, ...) and (M, ...); slightly negative values are possible. Memory is bounded.
    Raises `LimbeckError` for fewer than two, non-finite or mismatched samples.
    """
    x, y = as_pair(features_x, features_y, least=2, names=("features_x", "features_y"))
    return _within(x) + _within(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


class BlockEstimate(NamedTuple):
    """Mean and (population) standard deviation of a statistic over random blocks."""

    mean: float
    std: float


def kernel_distance_of_blocks(features_x: Tensor, features_y: Tensor, size: int, blocks: int, seed: int) -> BlockEstimate:
    """KID as papers report it: mean and spread over `blocks` random subsets of `size` samples of each set.

    Subsets are drawn without replacement (usually 100 blocks of 1000). Raises `LimbeckError` as
    `kernel_distance`, for size < 2 or above the samples at hand, or no blocks.
    """
    x, y = as_pair(features_x, features_y, least=at_least(size, 2, "size"), names=("features_x", "features_y"))
    at_least(blocks, 1, "blocks")
    generator = torch.Generator().manual_seed(seed)

    def subset(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)]

    values = torch.tensor([kernel_distance(subset(x), subset(y)) for _ in range(blocks)], dtype=torch.float64)
    return BlockEstimate(values.mean().item(), values.std(correction=0).item())
