"""Precision and recall of a set of samples by nearest-neighbour manifolds."""

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.metrics.samples import as_pair, at_least, distance_blocks


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]: the share of fakes on the real manifold, and of reals on the fake one."""

    precision: float
    recall: float


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance (N,) of each sample to its k-th nearest other sample."""
    # The nearest of all is the sample itself, at distance 0.
    return torch.cat([block.topk(k + 1, largest=False).values[:, -1] for block in distance_blocks(x, x)])


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """The share of points in at least one closed ball."""
    inside = sum((block <= radii).any(1).sum().item() for block in distance_blocks(points, centres))
    return inside / len(points)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., 2019) of samples (N, ...) and (M, ...).

    A set's manifold is the union of the balls around its samples that reach to their k-th nearest neighbour.
    Memory is bounded.
    Raises `LimbeckError` for k < 1, sets of at most k samples, non-finite or mismatched samples.
    """
    real, fake = as_pair(real, fake, least=at_least(k, 1, "k") + 1, names=("real", "fake"))
    return PrecisionRecall(_covered(fake, real, _radii(real, k)), _covered(real, fake, _radii(fake, k)))
