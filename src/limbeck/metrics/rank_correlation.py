"""Do two scorers put things in the same order? Rank correlations, row by row, ties counted as scipy counts them."""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.metrics.samples import BLOCK_ENTRIES, as_pair


def kendall_tau(x: Tensor, y: Tensor) -> Tensor:
    """Kendall's tau-b of each row of x and y (N, C), in [-1, 1], float64 (N,); NaN where a row is constant.

    The excess of pairs in the same order over pairs in the opposite one, ties apart. O(N C^2).
    Raises LimbeckError unless both are finite, of the same shape (N, C), C >= 2.
    """
    a, b = _rows(x, y)
    size = max(1, BLOCK_ENTRIES // a.shape[1] ** 2)
    return torch.cat([_tau(p, q) for p, q in zip(a.split(size), b.split(size), strict=True)])


def spearman_rho(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's rho of each row of x and y (N, C): the correlation of average ranks, float64 (N,); NaN where a row is constant.

    Raises LimbeckError unless both are finite, of the same shape (N, C), C >= 2.
    """
    a, b = (r - r.mean(1, keepdim=True) for r in map(_ranks, _rows(x, y)))
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def _tau(a: Tensor, b: Tensor) -> Tensor:
    p, q = ((r[:, :, None] - r[:, None, :]).sign() for r in (a, b))
    return (p * q).sum((1, 2)) / (p.square().sum((1, 2)) * q.square().sum((1, 2))).sqrt()


def _ranks(x: Tensor) -> Tensor:
    """Ranks 1..C in each row, the average of the places that equal values share."""
    ordered, values = x.sort(1).values, x.contiguous()
    below = torch.searchsorted(ordered, values)
    return (below + torch.searchsorted(ordered, values, right=True) + 1).double() / 2


def _rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape or x.ndim != 2 or x.shape[1] < 2:
        raise LimbeckError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)} must both be (N, C) with C >= 2: scores of the same things"
        )
    return as_pair(x, y)
