"""The target of a round, and the best weight of the labels in it."""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError


def mix_targets(y: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """alpha y + (1 - alpha) teacher: what a round learns; label smoothing has the uniform law as ``teacher``. Shapes must agree."""
    if y.shape != teacher.shape:
        raise LimbeckError(
            f"labels {tuple(y.shape)} and the teacher's outputs {tuple(teacher.shape)} must have one shape: give classes one-hot"
        )
    return alpha * y + (1 - alpha) * teacher


def estimate_alpha(with_labels: Tensor, without: Tensor, y: Tensor, clip: tuple[float, float] | None = None) -> float:
    """The alpha whose mixture alpha s + (1 - alpha) t is closest to y in squares: <y - t, s - t> / |s - t|^2.

    ``with_labels`` s and ``without`` t: held-out predictions of the round with alpha = 1 and with alpha = 0, of one shape with
    ``y`` (for classifiers probabilities and one-hot labels). The answer may lie outside [0, 1]; ``clip`` holds it in a range.
    For kernel ridge regression it is exact, for networks an estimate. Raises LimbeckError where s equals t.
    """
    if not with_labels.shape == without.shape == y.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (with_labels, without, y))
        raise LimbeckError(f"both predictions and y must have one shape, not {shapes}; (n,) and (n, 1) are different")
    s, t, target = (x.detach().double() for x in (with_labels, without, y))
    length = (s - t).square().sum()
    if float(length) == 0:
        raise LimbeckError(
            "the predictions with labels and without are the same, so that every alpha is; the round changes nothing"
        )
    alpha = float(((target - t) * (s - t)).sum() / length)
    return alpha if clip is None else min(max(alpha, clip[0]), clip[1])


def one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Integer labels (n,) as one-hot rows in the shape and type of ``like`` (n, C)."""
    return torch.nn.functional.one_hot(labels, like.shape[1]).to(like)
