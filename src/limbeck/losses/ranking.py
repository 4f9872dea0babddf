"""Rankings by Plackett and Luce: items are picked one after the other, each with probability softmax of the scores still left.

Scores (N, C) are the logarithms of the items' worths; an order (N, K), K <= C, names the items of the first K picks, best first.
The log-likelihood of an order is concave in the scores and does not change with a constant added to all of them. It is the kernel
of ListMLE (all picks count alike), of p-ListMLE (early ones count more) and of Plackett-Luce distillation (a pick counts as much
as the teacher believes in it; arXiv 2506.12542). Half precision is computed in float32.
"""

import warnings

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, unknown


def pl_log_likelihood(scores: Tensor, order: Tensor, weights: Tensor | None = None) -> Tensor:
    """sum_k w_k (s_{pi_k} - log sum of exp s over what is left at pick k), shape (N,).

    ``scores`` (N, C) finite; ``order`` (N, K) int64, distinct items in each row; ``weights`` (N, K) or (K,) (None: 1).
    K < C: the likelihood of the first K picks, what they leave stays in the sums. O(N C) in time and memory.
    Raises LimbeckError for an order that does not fit the scores or names an item twice.
    """
    left = _left_over(scores, order)
    s = upcast(scores)
    picked = s.gather(1, order)
    upward = picked.flip(1)  # from the last pick to the first, so that a running sum holds what is left
    if order.shape[1] < scores.shape[1]:
        tail = s.masked_fill(~left, -torch.inf).logsumexp(1, keepdim=True)
        remaining = torch.cat([tail, upward], 1).logcumsumexp(1)[:, 1:].flip(1)
    else:
        remaining = upward.logcumsumexp(1).flip(1)
    terms = picked - remaining
    return terms.sum(1) if weights is None else (weights * terms).sum(1)


def teacher_ranking(teacher: Tensor, target: Tensor | None = None, topk: int | None = None) -> Tensor:
    """The order (N, K) of a teacher's scores (N, C): the label (N,) first, then all others, the highest first.

    ``target`` None: by the scores alone. Of equal scores the item with the smaller number comes first. ``topk``: K (None: C).
    Raises LimbeckError for scores that are not finite and for a ``topk`` outside 1..C.
    """
    if not bool(teacher.isfinite().all()):
        raise LimbeckError("the teacher's logits hold NaN or infinity, which have no order; find out which input makes them")
    if topk is not None and not 1 <= topk <= teacher.shape[1]:
        raise LimbeckError(f"topk={topk} must lie in 1..{teacher.shape[1]}, the number of classes (None: all)")
    t = teacher.detach()
    if target is not None:
        t = t.scatter(1, target[:, None], torch.inf)
    return t.argsort(dim=1, descending=True, stable=True)[:, :topk]


def ranking_weights(teacher: Tensor, order: Tensor, tau: float = 1.0, min_label_weight: float = 0.0) -> Tensor:
    """The teacher's softmax(t / tau) of the items of an order (N, K): what each pick counts. No gradient.

    ``min_label_weight`` m in [0, 1]: the first pick counts at least m, at the cost of all others alike (not in the paper, where a
    teacher that is sure of a wrong class switches the label off). Raises LimbeckError unless tau > 0 and 0 <= m <= 1.
    """
    if not tau > 0:
        raise LimbeckError(
            f"the teacher's temperature tau={tau:g} must be positive; tau=1 leaves its probabilities as they are"
        )
    if not 0 <= min_label_weight <= 1:
        raise LimbeckError(f"min_label_weight={min_label_weight:g} is a share of the weight: choose it in [0, 1]")
    weights = (upcast(teacher.detach()) / tau).softmax(1).gather(1, order)
    if min_label_weight == 0:
        return weights
    first, others = weights[:, :1], weights[:, 1:]
    raised = first.clamp(min=min_label_weight)
    share = (1 - raised) / (1 - first).clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.cat([raised, others * share], 1)


def decreasing_weights(classes: int, like: Tensor) -> Tensor:
    """p-ListMLE's 2^(C - k) - 1 for picks k = 1..C, scaled to the sum 1 (C > 1000 does not overflow); shape (C,)."""
    if classes < 2:
        raise LimbeckError(f"{classes} class has no order to weigh; at least 2 are needed")
    k = torch.arange(1, classes + 1, device=like.device, dtype=torch.float64)
    weights = 2.0**-k - 2.0**-classes
    return (weights / weights.sum()).to(upcast(like.detach()).dtype)


def effective_picks(weights: Tensor) -> Tensor:
    """exp(entropy) of weights (N, K), scaled to the sum 1: how many picks really count, in [1, K]; shape (N,).

    Near 1 the ranking is its first pick, and its loss is cross-entropy.
    """
    share = weights / weights.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).exp()


def pld_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    tau: float = 1.0,
    *,
    topk: int | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    min_label_weight: float = 0.0,
) -> Tensor:
    """Plackett-Luce distillation: the negative log-likelihood of the teacher's ranking with the label first, weighted by its belief.

    ``student``, ``teacher``: logits (..., C), the classes last; ``target`` (...) integer labels in [0, C), or ``ignore_index``
    for what does not count. ``tau`` softens the weights alone. ``topk``: count the first picks alone; what they weigh less than 1
    is dropped. mean: over what counts (0, with a gradient of 0, where nothing does); none: shaped as ``target``, 0 where ignored.
    Raises LimbeckError for other shapes, labels, or a teacher that is not finite; warns where it gives probabilities.
    """
    check_logits(student, teacher, target, ignore_index)
    keep = target != ignore_index
    t = teacher[keep]
    order = teacher_ranking(t, target[keep], topk)
    losses = -pl_log_likelihood(student[keep], order, ranking_weights(t, order, tau, min_label_weight))
    if reduction == "mean":
        return losses.sum() / max(len(losses), 1)
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses.new_zeros(target.shape).masked_scatter(keep, losses)
    raise unknown("reduction", reduction, ["mean", "sum", "none"])


def check_logits(student: Tensor, teacher: Tensor, target: Tensor, ignore_index: int = -100) -> None:
    """Raise LimbeckError unless logits (..., C) and integer labels (...) belong together; warn of a teacher's probabilities."""
    classes = student.shape[-1]
    if teacher.shape[-1] != classes:
        raise LimbeckError(
            f"student and teacher need the same class list; got {classes} vs {teacher.shape[-1]} classes: map the teacher's logits "
            "to the student's classes first"
        )
    if target.is_floating_point():
        raise LimbeckError(
            f"targets are integer labels, not {target.dtype} (smoothed or mixed labels have no ranking); for mixup of labels a and "
            "b give m * loss(a) + (1 - m) * loss(b), with reduction='none' where m differs by sample"
        )
    if student.shape != teacher.shape or student.shape[:-1] != target.shape:
        raise LimbeckError(
            f"logits of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be (..., C), with labels (...), not "
            f"{tuple(target.shape)}; move the class axis last"
        )
    bad = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
    if len(bad):
        raise LimbeckError(
            f"label {int(bad[0])} lies outside [0, {classes}); what does not count has ignore_index={ignore_index}"
        )
    if classes > 1 and teacher.numel() and bool((teacher >= 0).all()) and bool(((teacher.sum(-1) - 1).abs() < 1e-3).all()):
        warnings.warn("the teacher's logits look like probabilities (rows sum to 1); give logits, or log(p)", stacklevel=3)


def upcast(x: Tensor) -> Tensor:
    """float32 for half precision, else as it is (logcumsumexp has no stable gradient in half precision)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _left_over(scores: Tensor, order: Tensor) -> Tensor:
    """(N, C) bool: the items that an order does not name."""
    if scores.ndim != 2 or order.ndim != 2 or len(order) != len(scores) or order.shape[1] > scores.shape[1]:
        raise LimbeckError(
            f"an order of scores {tuple(scores.shape)} is (N, K) with K <= C, not {tuple(order.shape)}: one row of distinct items "
            "per row of scores"
        )
    if order.numel() and not 0 <= int(order.min()) <= int(order.max()) < scores.shape[1]:
        raise LimbeckError(f"an order names items 0..{scores.shape[1] - 1}, not {int(order.min())}..{int(order.max())}")
    left = torch.ones_like(scores, dtype=torch.bool).scatter(1, order, False)
    if int(left.sum()) != scores.numel() - order.numel():
        raise LimbeckError("an order names an item twice; every pick takes an item that is still there")
    return left
