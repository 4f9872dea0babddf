"""Knowledge distillation of classifiers by their probabilities: the baselines that a ranking is compared with.

Every loss takes logits (N, C) of student and teacher (the teacher's gets no gradient) and labels (N,), and gives (N,).
Half precision is computed in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.losses.ranking import check_logits, upcast


def kd_loss(student: Tensor, teacher: Tensor, target: Tensor, tau: float = 2.0, label_weight: float = 0.1) -> Tensor:
    """w CE + (1 - w) tau^2 KL(softmax(t / tau) | softmax(s / tau)) (arXiv 1503.02531), with w = ``label_weight``."""
    s, t = _logits(student, teacher, target, tau)
    kl = F.kl_div((s / tau).log_softmax(1), (t / tau).log_softmax(1), reduction="none", log_target=True).sum(1)
    return label_weight * F.cross_entropy(s, target, reduction="none") + (1 - label_weight) * tau**2 * kl


def dist_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    tau: float = 1.0,
    label_weight: float = 0.1,
    beta: float = 0.45,
    gamma: float = 0.45,
) -> Tensor:
    """w CE + tau^2 (beta (1 - correlation over classes) + gamma (1 - correlation over samples)) (DIST, arXiv 2205.10536).

    Pearson's correlations of the probabilities at ``tau``: of each sample's row, and of each class's column over this batch, so
    that the loss of a sample depends on the others.
    """
    s, t = _logits(student, teacher, target, tau)
    p, q = (s / tau).softmax(1), (t / tau).softmax(1)
    rows = 1 - F.cosine_similarity(p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True), dim=1)
    columns = 1 - F.cosine_similarity(p - p.mean(0), q - q.mean(0), dim=0).mean()
    return label_weight * F.cross_entropy(s, target, reduction="none") + tau**2 * (beta * rows + gamma * columns)


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    tau: float = 4.0,
    label_weight: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """w CE + tau^2 (alpha KL of (label, rest) + beta KL among the rest) (decoupled distillation, arXiv 2203.08679).

    The plain KL divergence is KL of (label, rest) + (1 - p_label of the teacher) KL among the rest.
    """
    s, t = _logits(student, teacher, target, tau)
    label = F.one_hot(target, s.shape[1]).bool()
    (whether_s, which_s), (whether_t, which_t) = _decoupled(s / tau, label), _decoupled(t / tau, label)
    binary = (whether_t.exp() * (whether_t - whether_s)).sum(1)
    rest = (which_t.exp() * (which_t - which_s)).sum(1)  # the label itself has the difference 0
    return label_weight * F.cross_entropy(s, target, reduction="none") + tau**2 * (alpha * binary + beta * rest)


def _decoupled(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """(log of p_label and of 1 - p_label (N, 2), log-probabilities among the rest (N, C), 0 at the label)."""
    rest = logits.masked_fill(label, -torch.inf).logsumexp(1, keepdim=True)
    own = logits[label][:, None]
    return torch.cat([own, rest], 1).log_softmax(1), (logits - rest).masked_fill(label, 0.0)


def _logits(student: Tensor, teacher: Tensor, target: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    check_logits(student, teacher, target)
    if student.ndim != 2 or student.shape[1] < 2:
        raise LimbeckError(f"logits {tuple(student.shape)} must be (N, C) with C >= 2; flatten the leading axes")
    if not tau > 0:
        raise LimbeckError(f"the temperature tau={tau:g} must be positive")
    return upcast(student), upcast(teacher.detach())
