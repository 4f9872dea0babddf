"""What every metric is given: finite real samples, read as float64 rows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from limbeck.errors import LimbeckError

BLOCK_ENTRIES = 2**22  # entries of one block of a pairwise matrix: 32 MiB in float64


def as_rows(x: Tensor, name: str, least: int = 1) -> Tensor:
    """`x` of shape (N, ...) as detached float64 rows (N, D); a vector (N,) is N samples in one dimension.

    Raises `LimbeckError` for fewer than `least` samples, no dimensions, complex or non-finite values.
    """
    if x.ndim == 0 or x.is_complex():
        raise LimbeckError(f"{name} has shape {tuple(x.shape)} and dtype {x.dtype}: pass real samples of shape (N, ...)")
    if len(x) < least:
        raise LimbeckError(f"{name} has {len(x)} samples, at least {least} are needed: draw more")
    rows = x.detach().to(torch.float64).reshape(len(x), x[0].numel())
    if rows.shape[1] == 0:
        raise LimbeckError(f"{name} has shape {tuple(x.shape)}, which holds no values: pass samples with D >= 1")
    if not (finite := rows.isfinite().all(1)).all():
        raise LimbeckError(
            f"{name} has NaN or infinite values in {int((~finite).sum())} of {len(x)} samples: "
            "find out where they come from, or drop those samples and say so"
        )
    return rows


def as_pair(x: Tensor, y: Tensor, least: int = 1, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Two sets of samples of the same shape but for their number, as rows (N, D) and (M, D)."""
    rows = as_rows(x, names[0], least), as_rows(y, names[1], least)
    if x.shape[1:] != y.shape[1:]:
        raise LimbeckError(
            f"{names[0]} has samples of shape {tuple(x.shape[1:])} and {names[1]} of {tuple(y.shape[1:])}: "
            "give both the same shape"
        )
    return rows


def as_labels(labels: Tensor, count: int, name: str) -> Tensor:
    """Integer labels (N,), one per sample."""
    if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        raise LimbeckError(
            f"{name} has shape {tuple(labels.shape)} and dtype {labels.dtype}: pass {count} integers, one per sample"
        )
    return labels.detach()


def at_least(value: int, least: int, name: str) -> int:
    """`value`, or an error that names it when it is below `least`."""
    if value < least:
        raise LimbeckError(f"{name} is {value}: pass an integer of at least {least}")
    return value


def row_blocks(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """`x` (N, D) in blocks of rows, so that a matrix of block rows by M columns stays below 32 MiB."""
    return iter(x.split(max(1, BLOCK_ENTRIES // len(y))))


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Euclidean distances (block rows, M) between rows (N, D) and (M, D), block by block."""
    for block in row_blocks(x, y):
        # Differences, not |x|^2 + |y|^2 - 2 x.y: equal points must be at distance 0 and not at 1e-7.
        yield torch.cdist(block, y, compute_mode="donot_use_mm_for_euclid_dist")
