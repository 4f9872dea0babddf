"""Mode coverage and spread within classes."""

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.metrics.distances import total_variation
from limbeck.metrics.samples import as_labels, as_pair, as_rows, distance_blocks


class ModeHistogram(NamedTuple):
    """Counts (K,) of the samples at each mode, and the count of all samples, at a mode or not."""

    counts: Tensor
    total: float

    @property
    def shares(self) -> Tensor:
        """The share (K,) of all samples at each mode; with `off_mode` they sum to 1."""
        return self.counts / self.total

    @property
    def off_mode(self) -> float:
        """The share of samples at no mode."""
        return max(0.0, 1 - self.counts.sum().item() / self.total)

    def total_variation(self, weights: Tensor) -> float:
        """Total variation from the mixture weights (K,), the off-mode share counted as a mode of weight 0."""
        law = torch.cat([self.shares, self.counts.new_tensor([self.off_mode])])
        return total_variation(law, torch.cat([weights.to(law), law.new_zeros(1)]))


def mode_histogram(
    x: Tensor, centers: Tensor, radius: float | Tensor | None = None, weights: Tensor | None = None
) -> ModeHistogram:
    """Samples (N, ...) counted at their nearest center (K, ...).

    With a `radius` (one number, or one per center (K,)) a sample further away than that from its nearest
    center is off-mode. `weights` (N,) weighs the samples, as in `numpy.histogram`. Memory is bounded.
    Raises `LimbeckError` for empty, non-finite or mismatched samples, radii not above 0, or bad weights.
    """
    x, centers = as_pair(x, centers, names=("x", "centers"))
    if weights is None:
        mass = x.new_ones(len(x))
    else:
        mass = as_rows(weights, "weights")[:, 0]
        if weights.shape != (len(x),) or mass.min() < 0 or mass.sum() <= 0:
            raise LimbeckError(
                f"weights have shape {tuple(weights.shape)}, smallest value {mass.min().item():.6g} and sum "
                f"{mass.sum().item():.6g}: pass {len(x)} weights, none negative, not all 0"
            )
    reach = torch.as_tensor(float("inf") if radius is None else radius, dtype=torch.float64, device=x.device)
    if reach.shape not in ((), (len(centers),)) or not (reach > 0).all():
        raise LimbeckError(f"radius is {radius}: pass one number above 0, or {len(centers)}, one per center")
    counts = x.new_zeros(len(centers))
    start = 0
    for block in distance_blocks(x, centers):
        distance, mode = block.min(1)
        near = distance <= reach.expand(len(centers))[mode]
        counts.index_add_(0, mode[near], mass[start : start + len(block)][near])
        start += len(block)
    return ModeHistogram(counts, mass.sum().item())


def _class_variance(x: Tensor, labels: Tensor, name: str) -> dict[int, float]:
    rows = as_rows(x, name)
    labels = as_labels(labels, len(rows), f"labels of {name}")
    return {
        label: as_rows(rows[labels == label], f"class {label} of {name}", least=2).var(0).sum().item()
        for label in labels.unique().tolist()
    }


def class_variance(x: Tensor, labels: Tensor) -> dict[int, float]:
    """The trace of each class's covariance (divided by n - 1), of samples (N, ...) with integer labels (N,).

    Raises `LimbeckError` for a class with fewer than two samples, non-finite samples or wrong labels.
    """
    return _class_variance(x, labels, "x")


def class_variance_ratio(x: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> float:
    """Within-class diversity: each class's variance over the real one's, averaged over classes; real is 1.

    Samples (N, ...) and (M, ...) with integer labels; near 0 is collapse within the classes.
    Raises `LimbeckError` as `class_variance`, for different sets of classes, or a real class of variance 0.
    """
    as_pair(x, real, names=("x", "real"))
    given, wanted = _class_variance(x, labels, "x"), _class_variance(real, real_labels, "real")
    if given.keys() != wanted.keys():
        raise LimbeckError(f"x has the classes {sorted(given)} and real {sorted(wanted)}: draw samples of the same classes")
    if flat := [label for label, variance in wanted.items() if variance == 0]:
        raise LimbeckError(f"all real samples of class {flat[0]} are equal: the ratio to them is undefined")
    return sum(given[label] / wanted[label] for label in wanted) / len(wanted)
