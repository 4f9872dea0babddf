"""What a text prompt says of a camera: view labels, and Perp-Neg's weights between them.

Labels are integers, indices into ``VIEWS``; angles are in degrees (:mod:`limbeck.scenes.cameras`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import LimbeckError

VIEWS = ("side", "front", "back", "overhead")  # a later one overrides an earlier one
SIDE, FRONT, BACK, OVERHEAD = range(4)


class PerpNeg(NamedTuple):
    """Weights over VIEWS, each (B, 4): of the positive embedding, and of the negative predictions."""

    positive: Tensor
    negative: Tensor


def view_labels(azimuth: Tensor, elevation: Tensor, front: float = 45.0, back: float = 45.0, overhead: float = 60.0) -> Tensor:
    """Indices into VIEWS, (B,): overhead above that elevation, front within ``front`` of azimuth 0, back within ``back`` of 180.

    DreamFusion's 45 degrees; variational score distillation uses 30. Raises LimbeckError for sectors that overlap.
    """
    if not (front > 0 and back > 0 and front + back <= 180 and -90 <= overhead <= 90):
        raise LimbeckError(
            f"front={front:g}, back={back:g}, overhead={overhead:g}: half-widths must be positive and add up to at most 180, "
            "and overhead is an elevation in [-90, 90]"
        )
    away = ((azimuth + 180) % 360 - 180).abs()  # from the front, in [0, 180]
    labels = torch.full_like(away, SIDE, dtype=torch.long)
    labels[away < front] = FRONT
    labels[away > 180 - back] = BACK
    labels[elevation > overhead] = OVERHEAD
    return labels


def view_prompts(prompt: str, labels: Tensor) -> list[str]:
    """``"<prompt>, front view"`` and so on, one per label."""
    return [f"{prompt}, {VIEWS[label]} view" for label in labels.tolist()]


def perp_neg(azimuth: Tensor) -> PerpNeg:
    """Perp-Neg's weights (arXiv 2304.04968) with threestudio's constants, f(r) = a exp(-b r) + c.

    Within 90 degrees of the front, r = 1 - |azimuth| / 90: positive r front + (1 - r) side; negatives front with -f(r) and side
    with -f(1 - r), both with (a, b, c) = (4, 0.5, -2.426). Behind, r = 2 - |azimuth| / 90: positive r side + (1 - r) back;
    negatives side with -f(r; 1, 0.5, -0.606) and front with -f(r; 1, 0.5, 0.967).

    A negative weight multiplies the part of D(negative) - D(null) that is perpendicular to D(positive) - D(null).
    """
    away = ((azimuth + 180) % 360 - 180).abs()
    ahead = away < 90
    r = torch.where(ahead, 1 - away / 90, 2 - away / 90)
    zero = torch.zeros_like(r)
    positive = torch.where(ahead[:, None], torch.stack([1 - r, r, zero, zero], 1), torch.stack([r, zero, 1 - r, zero], 1))
    negative = torch.where(
        ahead[:, None],
        torch.stack([_decay(1 - r, 4.0, -2.426), _decay(r, 4.0, -2.426), zero, zero], 1),
        torch.stack([_decay(r, 1.0, -0.606), _decay(r, 1.0, 0.967), zero, zero], 1),
    )
    return PerpNeg(positive, -negative)


def _decay(r: Tensor, a: float, c: float) -> Tensor:
    return a * torch.exp(-0.5 * r) + c
