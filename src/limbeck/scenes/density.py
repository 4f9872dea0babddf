"""Where splats are added and removed: pure functions that also say what becomes of the optimizer's state.

An :class:`Edit` names for every new row the old one it comes from, and whether it is that one still: the rows of an optimizer's
tensors follow it, and are zero for what is new.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.scenes.splats import Splats, rotations

SHRINK = 1.6  # the scales of the two halves of a split Gaussian
Value = TypeVar("Value")


class Edit(NamedTuple):
    """M splats made of N: ``source`` (M,) rows among the N, ``kept`` (M,) whether the row is the same Gaussian as before."""

    splats: Splats
    source: Tensor
    kept: Tensor


class ScreenGradients(NamedTuple):
    """Sums over images: of the norms of the screen-space gradients, and of how often each splat was seen; both (N,)."""

    total: Tensor
    seen: Tensor

    @classmethod
    def zeros(cls, splats: Splats) -> "ScreenGradients":
        return cls(torch.zeros_like(splats.logits.detach()), torch.zeros_like(splats.logits.detach()))

    def add(self, norms: Tensor, visible: Tensor) -> "ScreenGradients":
        """With the norms (B, N) of B images and which splats each of them shows (B, N)."""
        norms = norms.to(self.total)
        return ScreenGradients(self.total + torch.where(visible, norms, 0.0).sum(0), self.seen + visible.sum(0))

    @property
    def mean(self) -> Tensor:
        """Per image that shows the splat, (N,)."""
        return self.total / self.seen.clamp(min=1)


@torch.no_grad()
def densify(
    splats: Splats, gradient: Tensor, normals: Tensor, extent: float, threshold: float = 2e-4, percent_dense: float = 0.01
) -> Edit:
    """Copy small splats and split big ones where the mean screen-space gradient (N,) exceeds ``threshold``.

    Small: the longest axis is at most percent_dense * extent (the scene's radius); a copy is added. Big: two take its place,
    drawn from it by ``normals`` (N, 2, 3), with scales / 1.6. New rows stand at the end: copies, then halves.
    """
    N = len(splats.means)
    if gradient.shape != (N,) or normals.shape != (N, 2, 3):
        raise LimbeckError(
            f"gradient {tuple(gradient.shape)} and normals {tuple(normals.shape)} do not fit {N} splats: expected ({N},) and "
            f"({N}, 2, 3)"
        )
    above = gradient > threshold
    big = splats.log_scales.amax(1) > math.log(percent_dense * extent)
    copied, split = (above & ~big).nonzero()[:, 0], (above & big).nonzero()[:, 0]
    stay = (~(above & big)).nonzero()[:, 0]
    halves = split.repeat_interleave(2)
    source = torch.cat([stay, copied, halves])
    kept = torch.arange(len(source), device=source.device) < len(stay)
    new = Splats(*(x[source] for x in splats))
    if len(halves):
        first = len(source) - len(halves)
        offset = normals[split].reshape(-1, 3, 1).to(splats.means) * splats.log_scales[halves].exp()[..., None]
        new.means[first:] += (rotations(splats.quaternions[halves]) @ offset)[..., 0]
        new.log_scales[first:] -= math.log(SHRINK)
    return Edit(new, source, kept)


@torch.no_grad()
def prune(
    splats: Splats,
    least_opacity: float = 0.005,
    largest_scale: float = math.inf,
    drop: Tensor | None = None,
    step: int | None = None,
) -> Edit:
    """Without the splats whose opacity is below or whose longest axis is above a bound, and those that ``drop`` (N,) marks
    (too big on the screen, say). Raises LimbeckError where none would be left; ``step`` is for its message.
    """
    gone = (torch.sigmoid(splats.logits) < least_opacity) | (splats.log_scales.amax(1).exp() > largest_scale)
    if drop is not None:
        gone = gone | drop
    source = (~gone).nonzero()[:, 0]
    if len(source) == 0:
        when = "" if step is None else f" at step {step}"
        raise LimbeckError(
            f"all {len(gone)} Gaussians were pruned{when}: lower least_opacity={least_opacity:g}, prune later, or check that the "
            "scene is seen by its cameras"
        )
    return Edit(Splats(*(x[source] for x in splats)), source, torch.ones_like(source, dtype=torch.bool))


def reset_opacity(splats: Splats, highest: float = 0.01) -> Splats:
    """Opacities lowered to at most ``highest``; the optimizer's state of the logits should be set to zero with it."""
    if not 0 < highest < 1:
        raise LimbeckError(f"highest={highest:g}: an opacity lies between 0 and 1")
    return splats._replace(logits=splats.logits.detach().clamp(max=math.log(highest / (1 - highest))))


def reindexed(state: Mapping[str, Value], edit: Edit, N: int) -> dict[str, Value | Tensor]:
    """One parameter's optimizer state after the edit: tensors with N rows follow their splats, 0 for new ones; what has
    another shape (a step count) stays.
    """

    def follow(x: Value) -> Value | Tensor:
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != N:
            return x
        kept = edit.kept.reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(kept, x[edit.source], torch.zeros_like(x[:1]))

    return {name: follow(x) for name, x in state.items()}


def apply_edit(
    edit: Edit, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.nn.Parameter]:
    """New parameters with the edited values, which take the old ones' place in the optimizer with what is left of their state.

    ``parameters`` by the names of ``Splats``. They are new objects, because autograd remembers a parameter's shape as long as a
    graph through it lives: whoever holds the old ones needs these.
    """
    edited = {}
    for name, value in edit.splats._asdict().items():
        old, new = parameters[name], torch.nn.Parameter(value.detach().clone())
        for group in optimizer.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        if old in optimizer.state:
            optimizer.state[new] = reindexed(optimizer.state.pop(old), edit, len(old))
        edited[name] = new
    return edited
