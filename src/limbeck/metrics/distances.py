"""Distances between two sets of samples, and between two laws on the same cells."""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.metrics.samples import as_pair, as_rows, at_least, distance_blocks


def _distance_sum(x: Tensor, y: Tensor) -> float:
    return sum(block.sum().item() for block in distance_blocks(x, y))


def energy_distance(x: Tensor, y: Tensor, unbiased: bool = False) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo, 2013), of samples (N, ...) and (M, ...).

    Not the square root: `scipy.stats.energy_distance` returns the root of this number. The default averages
    over all pairs, is never negative and lies above the truth by about E|X - X'| / N + E|Y - Y'| / M;
    `unbiased` leaves each sample's distance to itself out, and may be slightly negative. Memory is bounded.
    Raises `LimbeckError` for empty (below two if unbiased), non-finite or mismatched samples.
    """
    x, y = as_pair(x, y, least=2 if unbiased else 1)
    n, m = len(x), len(y)
    between = _distance_sum(x, y) / (n * m)
    within_x = _distance_sum(x, x) / (n * (n - unbiased))
    within_y = _distance_sum(y, y) / (m * (m - unbiased))
    distance = 2 * between - within_x - within_y
    return distance if unbiased else max(0.0, distance)


def _joint_quantiles(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The steps of both empirical quantile functions: order statistics i, j and the mass on which they hold.

    Exact in integers: of n m parts of the unit interval, the functions jump at multiples of m and n.
    """
    jumps_x = torch.arange(1, n + 1, device=device) * m
    jumps_y = torch.arange(1, m + 1, device=device) * n
    ends = torch.cat([jumps_x, jumps_y]).unique()
    mass = ends.diff(prepend=ends.new_zeros(1)).to(torch.float64) / (n * m)
    return (ends - 1) // m, (ends - 1) // n, mass


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int, seed: int, p: float = 2.0) -> float:
    """Sliced Wasserstein-p distance (Bonneel et al., 2015): (mean over directions of W_p^p)^(1/p).

    Samples (N, ...) and (M, ...); N and M may differ, since each one-dimensional W_p^p is the exact integral
    of |F^-1(u) - G^-1(u)|^p over the merged steps of both quantile functions. The directions are
    `projections` uniform unit vectors drawn from `seed`. In one dimension it is W_p itself.
    Raises `LimbeckError` for empty, non-finite or mismatched samples, no projections, or p outside [1, inf).
    """
    x, y = as_pair(x, y)
    at_least(projections, 1, "projections")
    if not 1 <= p < float("inf"):
        raise LimbeckError(f"p is {p}: the Wasserstein distance needs a finite p >= 1, usually 1 or 2")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(projections, x.shape[1], dtype=torch.float64, generator=generator).to(x.device)
    directions /= directions.norm(dim=1, keepdim=True)
    i, j, mass = _joint_quantiles(len(x), len(y), x.device)
    total = 0.0
    for block in directions.split(32):
        gap = (x @ block.T).sort(dim=0).values[i] - (y @ block.T).sort(dim=0).values[j]
        total += (mass @ gap.abs().pow(p)).sum().item()
    return (total / projections) ** (1 / p)


def mean_pairwise_distance(x: Tensor) -> float:
    """Diversity: the mean Euclidean distance over the N (N - 1) / 2 pairs of samples (N, ...).

    Raises `LimbeckError` for fewer than two or non-finite samples.
    """
    x = as_rows(x, "x", least=2)
    return _distance_sum(x, x) / (len(x) * (len(x) - 1))


def total_variation(p: Tensor, q: Tensor) -> float:
    """Total variation (1/2) sum |p - q|, in [0, 1], of two laws on the same cells (any equal shape).

    Raises `LimbeckError` for mismatched, empty, negative or non-finite laws, or a sum over 1e-6 away from 1.
    """
    laws = as_rows(p.reshape(-1), "p"), as_rows(q.reshape(-1), "q")
    if p.shape != q.shape:
        raise LimbeckError(f"p has shape {tuple(p.shape)} and q {tuple(q.shape)}: pass laws on the same cells")
    for name, law in zip(("p", "q"), laws, strict=True):
        if law.min() < 0 or abs(law.sum().item() - 1) > 1e-6:
            raise LimbeckError(
                f"{name} has smallest value {law.min().item():.6g} and sum {law.sum().item():.6g}: "
                "pass probabilities (for counts, divide by their sum)"
            )
    return 0.5 * (laws[0] - laws[1]).abs().sum().item()
