"""What methods on classifiers share: their logits, the labels of a batch, and a mean over it that micro-batches do not change."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.tasks import Classification
from limbeck.training import Batch


def classification(task: Any, method: str) -> Classification:
    """The task. Raises LimbeckError where it is one of another wing."""
    if not isinstance(task, Classification):
        raise LimbeckError(f"{method} distils classifiers, and {task.name} is no such task; see limbeck.tasks.classify")
    return task


def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """A classifier's logits (B, ..., C), also where it answers with an object that has ``logits``."""
    answer = module(x)
    logits = getattr(answer, "logits", answer)
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(answer).__name__
        raise LimbeckError(f"a classifier gives logits (B, ..., C), the classes last, not {got}; wrap it in a module that does")
    return logits


def labelled(batch: Batch) -> tuple[Tensor, Tensor]:
    """(x, integer labels) of a batch. Raises LimbeckError where the source lacks one of them."""
    if batch.x is None or batch.cond is None or "label" not in batch.cond:
        raise LimbeckError('a classifier learns from inputs and labels: give TensorSource(x, {"label": labels})')
    return batch.x, batch.cond["label"]


def counts(kept: int, rows: int, like: Tensor) -> Tensor:
    """What one micro-batch adds to the whole batch's (labels that count, labels): for :func:`whole_mean`."""
    return torch.tensor([kept, rows], dtype=torch.float64, device=like.device)


def whole_mean(losses: Tensor, rows: int, totals: Tensor | None) -> Tensor:
    """This micro-batch's part of the mean over the labels that count in the whole batch (0 where none does)."""
    assert totals is not None
    kept, size = totals.tolist()
    return losses.sum() * (size / rows / max(kept, 1.0))


def check_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Raise LimbeckError where the teacher has parameters that the student trains: to freeze one would freeze the other."""
    if _ids(teacher.parameters()) & _ids(p for p in student.parameters() if p.requires_grad):
        same = "are one object" if teacher is student else "share parameters"
        raise LimbeckError(f"teacher and student {same}, so the teacher would be trained; give copy.deepcopy(teacher)")


def _ids(parameters: Iterable[nn.Parameter]) -> set[int]:
    return {id(p) for p in parameters}
