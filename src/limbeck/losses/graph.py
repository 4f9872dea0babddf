"""Losses along the edges of a graph: what a node shares with its neighbours, and how it differs (FF-G2M, arXiv 2305.10758).

Logits (N, C) of all nodes, edges as two lists of nodes ``src`` and ``dst`` (E,). Every loss gives (E,), a value per edge; the
mean over edges is the paper's loss. The teacher's logits get no gradient. Half precision is computed in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.losses.ranking import upcast


def low_frequency_loss(student: Tensor, teacher: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """KL(softmax(h_dst) | softmax(z_src)): the student at a node answers as the teacher at its neighbour.

    With loops in the list, the best student at a node is the teacher's mean probability over the node and its neighbours.
    """
    z, h = _pair(student, teacher)
    return F.kl_div(z.log_softmax(1)[src], h.log_softmax(1)[dst], reduction="none", log_target=True).sum(1)


def high_frequency_loss(student: Tensor, teacher: Tensor, src: Tensor, dst: Tensor, tau: float = 1.0) -> Tensor:
    """KL(K(h_src, h_dst) | K(z_src, z_dst)), K(a, b) = softmax(|a - b| / tau): logits differ along an edge as the teacher's do.

    It sees neither a common constant nor the sign of a difference: logits h + c and -h have loss 0, so that it needs a companion.
    Its mean over edges is also the measure of how much of the teacher's high frequency is lost.
    """
    if not tau > 0:
        raise LimbeckError(f"the temperature tau={tau:g} must be positive")
    z, h = _pair(student, teacher)
    found, wanted = (((v[src] - v[dst]).abs() / tau).log_softmax(1) for v in (z, h))
    return F.kl_div(found, wanted, reduction="none", log_target=True).sum(1)


def check_teacher_logits(teacher: Tensor, nodes: int) -> None:
    """Raise LimbeckError unless the teacher's answers (N, C) are finite logits, one row per node, and no probabilities."""
    if teacher.ndim != 2 or teacher.shape[1] < 2 or not teacher.is_floating_point():
        raise LimbeckError(
            f"the teacher's logits must be floats (N, C) with C >= 2, not {teacher.dtype} {tuple(teacher.shape)}"
        )
    if len(teacher) != nodes:
        raise LimbeckError(f"the teacher's logits have {len(teacher)} rows and the graph {nodes} nodes: give a row per node")
    if len(bad := (~torch.isfinite(teacher)).any(1).nonzero()):
        raise LimbeckError(
            f"the teacher's logits of {len(bad)} nodes (the first: {int(bad[0])}) hold NaN or infinity; look at its training"
        )
    if nodes and bool((teacher >= 0).all()) and bool(((teacher.sum(1) - 1).abs() < 1e-3).all()):
        raise LimbeckError(
            "the teacher's logits are probabilities (no entry is negative, and every row sums to 1): give the logits before the "
            "softmax, or log(p)"
        )


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape or student.ndim != 2:
        raise LimbeckError(
            f"logits of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be one shape (N, C): the same nodes, "
            "and the same class list"
        )
    return upcast(student), upcast(teacher.detach())
