"""What a score rule is: it says where a sample should move and never knows who made the sample."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, Denoiser
from limbeck.losses import pseudo_huber
from limbeck.noise import spread

Target = Callable[[int], Denoiser]  # the teacher at an iteration: fixed, or one that changes (backtracking)


@dataclass(frozen=True)
class Sample:
    """What a producer makes: x (B, ...), its conditions, and the noise level (B,) it is still at (None: clean).

    ``x0``: the clean prediction that a noisy x was made with (None: x itself). ``low`` and ``high`` (B,): the times between
    which its law is to be compared with the teacher's (None: all). All times are the process's own. ``goal``: the conditions
    under which the teacher is asked (None: ``cond``), where the samples of one condition are to become those of another.
    """

    x: Tensor
    cond: Cond | None = None
    level: Tensor | None = None
    x0: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    goal: Cond | None = None

    @property
    def teacher_cond(self) -> Cond | None:
        """The conditions under which the teacher is asked."""
        return self.cond if self.goal is None else self.goal

    @property
    def clean(self) -> Tensor:
        """The clean prediction: x0, or x where x is clean."""
        return self.x if self.x0 is None else self.x0

    def detach(self) -> "Sample":
        """The same without gradient."""
        return replace(self, x=self.x.detach(), x0=None if self.x0 is None else self.x0.detach())


@dataclass(frozen=True)
class Pull:
    """The gradient of the objective with respect to x, shape of x (of the sum over elements), and figures to log.

    ``scale`` (B,): the weight per sample that the gradient holds as a factor (None: 1).
    """

    gradient: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    scale: Tensor | None = None


@runtime_checkable
class ScoreRule(Protocol):
    """Pulls a sample at the times t (B,) with the noise eps (shape of x)."""

    def __call__(self, sample: Sample, t: Tensor, eps: Tensor, step: int = 0) -> Pull: ...


def fixed_target(teacher: Denoiser | Target) -> Target:
    """A denoiser as a target that never changes; a target passes through."""
    return (lambda step: teacher) if hasattr(teacher, "process") else teacher  # type: ignore[return-value]


def surrogate(x: Tensor, gradient: Tensor) -> Tensor:
    """The scalar mean(x sg[g]): its gradient with respect to x is g / numel(x). The one place where a pull meets a sample."""
    return (x * gradient.detach()).mean()


def huber_surrogate(
    x: Tensor, gradient: Tensor, scale: Tensor | None = None, *, c: float | None = 1e-3, reduce: str = "element"
) -> Tensor:
    """E scale d(x, sg[x - g / scale]) with the pseudo-Huber distance d of :func:`limbeck.losses.pseudo_huber`, a scalar (TDM).

    For large c it is :func:`surrogate` up to the factor c; for small c the pull keeps its sign ("element") or direction
    ("sample", one norm per sample) and loses its size but for ``scale`` (B,), the factor that the gradient holds.
    """
    w = x.new_ones(len(x)) if scale is None else scale.detach().to(x)
    move = gradient.detach() / spread(w, x)
    return (w * pseudo_huber(x, (x - move).detach(), c, reduce)).mean()


@contextmanager
def frozen(*modules: object) -> Iterator[None]:
    """No parameter of the modules requires a gradient inside; what did before does so again after."""
    held = [p for m in modules if isinstance(m, nn.Module) for p in _trainable(m.parameters())]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


@contextmanager
def evaluating(*modules: object) -> Iterator[None]:
    """All modules are in evaluation mode inside (no dropout); each has its own mode again after."""
    modes = [(m, m.training) for root in modules if isinstance(root, nn.Module) for m in root.modules()]
    for m, _ in modes:
        m.training = False
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad]


def input_gradient(loss: Callable[[Tensor], Tensor], x: Tensor, *modules: object) -> tuple[Tensor, Tensor]:
    """(d loss / dx, loss) through frozen modules, taken at once: no graph through another role outlives this call."""
    x = x.detach().requires_grad_()
    with torch.enable_grad(), frozen(*modules):
        value = loss(x)
        (gradient,) = torch.autograd.grad(value, x)
    return gradient, value.detach()
