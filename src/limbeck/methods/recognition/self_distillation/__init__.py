"""Self-distillation with a weight of the labels: the model learns from labels and its own last answers (arXiv 2102.13088).

Kernel ridge regression in closed form (:class:`KernelSelfDistiller`); K = V D V^T, A = D (D + lambda)^-1, y_0 = Y:

(1) m_tau = alpha Y + (1 - alpha) y_{tau-1}                                         the target of round tau
(2) f_tau(x) = k(x, X) (K + lambda)^-1 m_tau                                        one ridge regression of it
(3) y_tau = V B_tau V^T Y,  B_1 = A,  B_tau = A (alpha + (1 - alpha) B_{tau-1})
(4) f_tau(x) = k(x, X) V (D + lambda)^-1 (alpha + (1 - alpha) B_{tau-1}) V^T Y      also where D = 0
(5) B_inf = alpha D (alpha D + lambda)^-1                                           ridge regression with lambda / alpha; 0 for alpha = 0
(6) alpha* = <Y_v - t, s - t> / |s - t|^2                                           s, t: the round with alpha = 1 and alpha = 0

and any classifier in rounds (:class:`SelfDistillation`):

(7) L = d(softmax(f(x)), m_tau) + c |w|^2, m_tau of (1) with one-hot labels and the last round's softmax

Every round begins with new weights and a new optimizer; the last round's student, frozen, answers what the student sees. (6) costs
two trainings on held-out data (:func:`estimate_alpha`): round 1, which is alpha = 1, and a round with alpha = 0. It is exact for
(4), an estimate for networks, and may lie outside [0, 1]: then the first round was regularised too little or too much. What
self-distillation gains over round 1 is a better lambda: at the best lambda the gain is gone. With 0 <= alpha < 1 all later rounds and
the limit favour large eigenvalues more than round 1 does (B_i / B_j grows for d_i > d_j); from round to round it grows for sure only
with alpha = 0.

Differs from the paper's code: (7) squares the norm, as the theory does (``penalty="norm"``: its sum of norms). One may begin with a
trained teacher. ``distance="ce"`` is born-again networks' cross-entropy. Presets: "paper-cifar10" is the code's example (alpha 0.6,
five rounds); its learning rates differ between documents, and no figure of the paper was compared. See also the optimal mixture in
ridge regression (arXiv 2602.17565) and Gaussian processes (arXiv 2304.02641).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.methods.classifiers import check_apart, classification, labelled, logits_of
from limbeck.methods.recognition.self_distillation.kernel import KernelSelfDistiller, rbf_kernel
from limbeck.methods.recognition.self_distillation.mixing import estimate_alpha, mix_targets, one_hot
from limbeck.training import Batch, Method, OptimizerOptions, Role, Step, Update


@dataclass(frozen=True)
class SelfDistillationOptions:
    """Options of self-distillation in rounds. The defaults are what works on digits with wrong labels."""

    rounds: int = 2
    """Trainings, one after the other; the first learns from labels alone, unless a teacher is given."""
    per_round: int = 600
    """Iterations of a round."""
    batch: int = 50
    student: OptimizerOptions = OptimizerOptions(lr=3e-3, betas=(0.9, 0.999))
    alphas: tuple[float, ...] = (0.2,)
    """Weights of the labels in the rounds that have a teacher; the last one holds for all that follow."""
    distance: Literal["mse", "ce"] = "mse"
    """Squared distance of probabilities, or cross-entropy to the mixed target."""
    penalty: Literal["squared", "norm"] = "squared"
    """The squared norm of all weights, or the sum of each tensor's norm."""
    penalty_weight: float = 1e-4

    @property
    def iterations(self) -> int:
        """Of all rounds."""
        return self.rounds * self.per_round

    def __post_init__(self):
        if self.rounds < 1 or self.per_round < 1 or not self.alphas:
            raise LimbeckError(
                f"rounds={self.rounds} and per_round={self.per_round} must be at least 1, and alphas={self.alphas} hold a weight"
            )


PRESETS = {
    "recommended": SelfDistillationOptions(),
    "paper-cifar10": SelfDistillationOptions(  # 75 epochs of 50,000 pictures a round
        rounds=5, per_round=234_375, batch=16, student=OptimizerOptions(lr=1e-4, betas=(0.9, 0.999)), alphas=(0.6,),
        penalty="norm", penalty_weight=1e-4,
    ),
}  # fmt: skip


class SelfDistillation(Method):
    """See the module. ``factory`` makes a classifier with new weights; round r begins with those of ``seed`` and r.

    ``teacher``: what already holds an answer, e.g. an earlier round's student; every round then has a teacher.
    """

    whole = "every round copies the student"

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        options: SelfDistillationOptions = PRESETS["recommended"],
        seed: int = 0,
        teacher: nn.Module | None = None,
    ):
        self.factory, self.options, self.seed = factory, options, seed
        self.round, self.taught = 0, teacher is not None
        self.student, self.teacher = self._new(0), teacher
        anew = tuple(range(options.per_round, options.iterations, options.per_round))
        self.roles = {"student": Role(self.student, replace(options.student, anew=anew))}
        if teacher is not None:
            check_apart(teacher, self.student)
            self.roles["teacher"] = Role(teacher)

    @classmethod
    def on(cls, task: Any, options: SelfDistillationOptions, seed: int) -> "SelfDistillation":
        """Rounds of the task's students, (7); its teacher teaches none of them, and is there to be compared with.

        (1) to (5) are solved at once and need no loop: :class:`KernelSelfDistiller`.
        """
        factory = classification(task, "self-distillation").factory
        with torch.random.fork_rng(devices=[]):
            if factory() is factory():
                raise LimbeckError(
                    "self-distillation begins every round with new weights, and the student is one model: name a class or a "
                    "function that makes new ones (--student-network MODULE:NAME, student_network=)"
                )
        return cls(factory, options, seed)

    def step(self, batch: Batch) -> Step:
        o = self.options
        self._begin(batch.step // o.per_round)
        x, y = labelled(batch)
        logits = logits_of(self.student, x)
        if logits.ndim != 2 or not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
            raise LimbeckError(
                f"logits {tuple(logits.shape)} must be (B, C), and labels lie in [0, C); they reach {int(y.max())}"
            )
        target = one_hot(y, logits)
        if self.teacher is not None:
            with torch.no_grad():
                answer = logits_of(self.teacher, x).softmax(1)
            alpha = o.alphas[min(self.round - (not self.taught), len(o.alphas) - 1)]
            target = mix_targets(target, answer, alpha)  # (1)
        if o.distance == "mse":
            loss = (logits.softmax(1) - target).square().mean()  # (7)
        else:
            loss = -(target * logits.log_softmax(1)).sum(1).mean()
        if o.penalty_weight:
            loss = loss + o.penalty_weight * self._penalty()
        hits = (logits.argmax(1) == y).double().mean()
        yield Update("student", loss, {"accuracy": hits, "round": float(self.round + 1)})

    def _penalty(self) -> Tensor:
        squares = [p.square().sum() for p in self.student.parameters()]
        return torch.stack(squares if self.options.penalty == "squared" else [s.sqrt() for s in squares]).sum()

    def _begin(self, round: int) -> None:
        """At a round's first iteration: the student as it is becomes the teacher, and begins with new weights."""
        if round != self.round:
            self._teach(copy.deepcopy(self.student))
            self.student.load_state_dict(self._new(round).state_dict())
            self.round = round

    def _teach(self, teacher: nn.Module) -> None:
        self.teacher, self.roles["teacher"] = teacher, Role(teacher)  # frozen, in evaluation mode

    def _new(self, round: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1_000_003 * self.seed + round)
            new = self.factory()
        if round > 0 and new is self.student:
            raise LimbeckError("the factory gave the same object again; it must make a new model at every call")
        return new

    def state(self) -> dict[str, Tensor]:
        teacher = {} if self.teacher is None else self.teacher.state_dict()
        return {"round": torch.tensor(self.round), **{f"teacher.{n}": v for n, v in teacher.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.round = int(state["round"])
        weights = {n.removeprefix("teacher."): v for n, v in state.items() if n != "round"}
        if self.round > 0:
            self._teach(copy.deepcopy(self.student))
        if self.teacher is not None:
            self.teacher.load_state_dict(weights)


METHOD, OPTIONS = SelfDistillation, SelfDistillationOptions
__all__ = [
    "PRESETS",
    "KernelSelfDistiller",
    "SelfDistillation",
    "SelfDistillationOptions",
    "estimate_alpha",
    "mix_targets",
    "rbf_kernel",
]
