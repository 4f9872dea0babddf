"""Weights of a mixture's components and how a condition changes them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.denoisers.protocol import Cond
from limbeck.errors import LimbeckError, unknown


class ClassPrior(nn.Module):
    """Weights (n,) of n components or points, summing to 1, and their class labels (n,), integers 0..classes-1.

    cond {"label": (B,)} keeps the components of that label and renormalises; the label ``classes`` (one past the last) is
    the null condition. cond {"prior": (B, n)} replaces the weights by these log weights, which need not be normalised.
    Raises LimbeckError for negative or unnormalised weights, classes without weight and unknown labels.
    """

    log_weight: Tensor
    labels: Tensor | None
    log_class: Tensor

    def __init__(self, weights: Tensor, labels: Tensor | None = None):
        super().__init__()
        weights = torch.as_tensor(weights).double()
        if weights.ndim != 1 or not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
            raise LimbeckError(
                f"weights must be finite and not negative, one per component: shape {tuple(weights.shape)}, "
                f"smallest {weights.min().item():g}"
            )
        if abs(weights.sum().item() - 1) > 1e-6:
            raise LimbeckError(f"weights must sum to 1, not {weights.sum().item():.6g}; divide them by their sum")
        self.n, self.classes = len(weights), 0
        self.register_buffer("log_weight", weights.log() - weights.sum().log())
        self.register_buffer("labels", None)
        if labels is not None:
            labels = torch.as_tensor(labels)
            if labels.shape != weights.shape or labels.is_floating_point() or bool((labels < 0).any()):
                raise LimbeckError(f"labels must be {self.n} integers >= 0, not {labels.dtype} of shape {tuple(labels.shape)}")
            self.classes = int(labels.max()) + 1
            mass = torch.zeros(self.classes, dtype=torch.float64, device=weights.device).index_add(0, labels.long(), weights)
            if bool((mass == 0).any()):
                empty = ", ".join(str(int(i)) for i in (mass == 0).nonzero().flatten()[:10])
                raise LimbeckError(
                    f"class {empty} has no component of positive weight; number the classes 0, 1, ... without gaps"
                )
            self.labels = labels.to(torch.long, copy=True)
            self.register_buffer("log_class", torch.cat([mass.log(), mass.new_zeros(1)]))  # last entry: null

    @property
    def null(self) -> Mapping[str, Tensor]:
        """{} without labels, else {"label": classes}."""
        return {} if self.labels is None else {"label": torch.tensor(self.classes, device=self.labels.device)}

    @property
    def class_weights(self) -> Tensor:
        """Probability of each class, (classes,) float64."""
        return self.log_class[:-1].exp() if self.labels is not None else self.log_weight.new_zeros(0)

    def log_weights(self, cond: Cond | None, rows: slice, batch: int) -> Tensor:
        """Normalised log weights (b, n), float64, of the rows of a batch under its condition."""
        for name in cond or {}:
            if name not in (allowed := (*self.null, "prior")):
                raise unknown("condition", name, allowed)
        b = len(range(*rows.indices(batch)))
        if not cond:
            return self.log_weight.expand(b, self.n)
        log_w = self.log_weight.expand(b, self.n)
        if "prior" in cond:
            self._expect(cond["prior"], (batch, self.n), "prior")
            log_w = cond["prior"][rows].to(log_w)
        if "label" in cond:
            label = self._known(cond["label"], batch)[rows, None]
            outside = (label != self.labels) & (label != self.classes)
            log_w = log_w.masked_fill(outside, -torch.inf)
            if "prior" not in cond:
                return log_w - self.log_class[label]
        total = torch.logsumexp(log_w, 1, keepdim=True)
        if not bool(torch.isfinite(total).all()):
            raise LimbeckError("the condition's prior leaves a sample without any component of positive weight")
        return log_w - total

    def draw(self, n: int, cond: Cond | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n component indices drawn from the weights under the condition, (n,)."""
        if not cond:
            return torch.multinomial(self.log_weight.exp(), n, replacement=True, generator=generator)
        weights = self.log_weights(cond, slice(0, n), n).exp()
        return torch.multinomial(weights, 1, generator=generator)[:, 0]

    def _known(self, label: Tensor, batch: int) -> Tensor:
        self._expect(label, (batch,), "label")
        if label.is_floating_point() or bool((label < 0).any()) or bool((label > self.classes).any()):
            wrong = sorted({*label.tolist()} - {*range(self.classes + 1)}) or [str(label.dtype)]
            raise LimbeckError(
                f"unknown label {wrong[0]}: labels are integers 0..{self.classes - 1}, and {self.classes} stands for no label"
            )
        return label.to(self.log_weight.device, torch.long)

    @staticmethod
    def _expect(value: Tensor, shape: tuple[int, ...], name: str) -> None:
        if tuple(value.shape) != shape:
            raise LimbeckError(f"the condition {name!r} must have shape {shape}, not {tuple(value.shape)}")
