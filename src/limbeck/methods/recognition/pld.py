"""Plackett-Luce distillation: one ranking in place of "cross-entropy + lambda x distillation" (PLD, arXiv 2506.12542).

Student logits s, teacher logits t (no gradient), label y, C classes, the same for both.

(1) pi_1 = y, then all other classes, the highest t first                           the ranking that the student learns
(2) alpha_k = softmax(t / tau)_{pi_k}                                               how much pick k counts; sums to 1
(3) L = sum_k alpha_k (-s_{pi_k} + log sum_{l >= k} exp s_{pi_l})                   all of the loss; its first term is cross-entropy
(4) picks = exp(-sum_k alpha_k log alpha_k)                                         how many picks really count

L is convex in s and does not change with a constant added to s. With a teacher that is sure of the label it is cross-entropy;
with tau -> infinity it is ListMLE / C. (4) is logged: where it stays below 1.05 the teacher adds nothing, and the method says so.
``loss`` trains the baselines on the same batches: ce, kd, dist, dkd, listmle and p_listmle (picks' weights scaled to the sum 1).

The teacher is a module, run without gradient on what the student sees, or a tensor of its logits, one row per row of the data
(where inputs are not augmented). Labels equal to ``ignore_index`` count nothing; of dense predictions the classes are the last axis.

Differs from the paper: ties go to the class with the smaller number. ``min_label_weight`` is not in it: with tau = 1, a teacher
that is sure of a wrong class all but switches the label off. The loop has no LAMB: "paper-imagenet" trains with AdamW and its
usual rate in LAMB's place (5e-3). Unverified: the authors' code. Mixed labels are not defined there: average the losses.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.losses import (
    check_logits,
    decreasing_weights,
    dist_loss,
    dkd_loss,
    effective_picks,
    kd_loss,
    pl_log_likelihood,
    ranking_weights,
    teacher_ranking,
)
from limbeck.methods.classifiers import check_apart, classification, counts, labelled, logits_of, whole_mean
from limbeck.training import Batch, EmaOptions, Method, OptimizerOptions, Role, Step, Total, Update

Logs = dict[str, Tensor | float]
FEW, PATIENCE = 1.05, 20  # picks below which the ranking is its label alone; iterations in a row until that is said


@dataclass(frozen=True)
class PLDOptions:
    """Options of Plackett-Luce distillation. The defaults are what works on few digits."""

    iterations: int = 180
    batch: int = 50
    student: OptimizerOptions = OptimizerOptions(
        lr=1e-2, kind="adamw", betas=(0.9, 0.999), weight_decay=1e-4, decay="cosine", final=0.0
    )
    ema: EmaOptions | None = None
    loss: Literal["pld", "ce", "kd", "dist", "dkd", "listmle", "p_listmle"] = "pld"
    tau: float = 4.0
    """The teacher's temperature in (2); of kd, dist and dkd that of both."""
    topk: int | None = None
    """Count the first picks alone (None: all); what they weigh less than 1 is logged as dropped."""
    min_label_weight: float = 0.0
    """The label counts at least so much, whatever the teacher believes."""
    label_weight: float = 0.1
    """Weight of cross-entropy in kd (the rest is the teacher's), dist and dkd."""
    beta: float = 0.45
    """dist: weight of the classes' correlation in a sample; dkd: of the classes other than the label (8 there)."""
    gamma: float = 0.45
    """dist: weight of the samples' correlation in a class."""
    ignore_index: int = -100

    def __post_init__(self):
        if not self.tau > 0:
            raise LimbeckError(f"tau={self.tau:g} must be positive; tau=1 leaves the teacher's probabilities as they are")


_CIFAR = PLDOptions(  # 250 epochs of 50,000 pictures, 100 of 1,281,167
    iterations=97_656, batch=128, student=OptimizerOptions(
        lr=1e-3, kind="adamw", betas=(0.9, 0.999), weight_decay=0.5, decay="cosine", final=0.0
    ),
)  # fmt: skip
PRESETS = {
    "recommended": PLDOptions(),
    "paper-cifar100": _CIFAR,
    "paper-imagenet": replace(
        _CIFAR, iterations=62_556, batch=2048, tau=1.0, student=replace(_CIFAR.student, weight_decay=0.02, warmup=3127)
    ),
}


class PLD(Method):
    """See the module. ``teacher``: a module, logits (rows of the data, ..., C), or None (``loss="ce"`` alone)."""

    def __init__(self, teacher: nn.Module | Tensor | None, student: nn.Module, options: PLDOptions = PRESETS["recommended"]):
        if teacher is None and options.loss != "ce":
            raise LimbeckError(
                f"loss={options.loss!r} needs a teacher: a module, or its logits; loss='ce' alone learns without"
            )
        self.teacher, self.student, self.options = teacher, student, options
        if isinstance(teacher, nn.Module):
            check_apart(teacher, student)
            self.roles = {"teacher": Role(teacher), "student": Role(student, options.student, options.ema)}
        else:
            self.roles = {"student": Role(student, options.student, options.ema)}
        self._low, self._spoken = 0, False
        self._picks: list[float] = []

    @classmethod
    def on(cls, task: Any, options: PLDOptions, seed: int) -> "PLD":
        """A student of the seed and the teacher's logits, which are asked for once: the images are not augmented."""
        task = classification(task, "pld")
        return cls(task.logits, task.new_student(seed), options)

    def step(self, batch: Batch) -> Step:
        x, y = labelled(batch)
        s = logits_of(self.student, x)
        t = s.detach() if self.teacher is None else self._teachers(x, batch)
        check_logits(s, t, y, self.options.ignore_index)
        keep = y != self.options.ignore_index
        losses, logs = self._losses(s[keep], t[keep], y[keep])
        totals = yield Total(counts(len(losses), y.numel(), s))
        yield Update("student", whole_mean(losses, y.numel(), totals), logs)

    @torch.no_grad()
    def _teachers(self, x: Tensor, batch: Batch) -> Tensor:
        if isinstance(self.teacher, nn.Module):
            return logits_of(self.teacher, x)
        assert self.teacher is not None
        if len(self.teacher) != batch.source.size:
            raise LimbeckError(
                f"the teacher's logits have {len(self.teacher)} rows and the data {batch.source.size}: give a row per row of the data"
            )
        return self.teacher[batch.rows].to(x.device)

    def _losses(self, s: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Logs]:
        """The loss of every label that counts, and what is logged."""
        o, logs = self.options, Logs(accuracy=_mean((s.argmax(1) == y).double()))
        if o.loss == "ce":
            return torch.nn.functional.cross_entropy(s, y, reduction="none"), logs
        if o.loss == "kd":
            return kd_loss(s, t, y, o.tau, o.label_weight), logs
        if o.loss == "dist":
            return dist_loss(s, t, y, o.tau, o.label_weight, o.beta, o.gamma), logs
        if o.loss == "dkd":
            return dkd_loss(s, t, y, o.tau, o.label_weight, beta=o.beta), logs
        order = teacher_ranking(t, y, o.topk)  # (1)
        if o.loss == "listmle":
            return -pl_log_likelihood(s, order) / s.shape[1], logs
        if o.loss == "p_listmle":
            return -pl_log_likelihood(s, order, decreasing_weights(s.shape[1], s)[: order.shape[1]]), logs
        weights = ranking_weights(t, order, o.tau, o.min_label_weight)  # (2)
        logs["effective_picks"] = _mean(effective_picks(weights))  # (4)
        logs["label_weight"] = _mean(weights[:, 0])
        if o.topk is not None:
            logs["dropped_weight"] = _mean(1 - weights.sum(1))
        if len(s):
            self._picks.append(float(logs["effective_picks"]))
        return -pl_log_likelihood(s, order, weights), logs  # (3)

    def finish(self, step: int) -> None:
        """Say so, once, where the ranking has been its label alone for a while."""
        if self._picks:
            self._low = self._low + 1 if sum(self._picks) / len(self._picks) < FEW else 0
            self._picks.clear()
        if self._low >= PATIENCE and not self._spoken:
            self._spoken = True
            warnings.warn(
                f"less than {FEW} classes of the ranking count (effective_picks): with tau={self.options.tau:g} the teacher is so "
                "sure that this is cross-entropy; raise tau, e.g. to 4",
                stacklevel=2,
            )

    def state(self) -> dict[str, Tensor]:
        return {"low": torch.tensor([self._low, int(self._spoken)])}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._low, self._spoken = int(state["low"][0]), bool(state["low"][1])


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of nothing."""
    return values.detach().sum() / max(len(values), 1)


METHOD, OPTIONS = PLD, PLDOptions
__all__ = ["PLD", "PRESETS", "PLDOptions"]
