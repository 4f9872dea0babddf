"""A sampler whose steps are learned: a coefficient on the scores of each step, and how long each step is."""

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, unknown
from limbeck.samplers.discrete.clock import Clock, Uniforms
from limbeck.samplers.discrete.graphs import Graph
from limbeck.samplers.discrete.kernels import LARGE, Kernel, kernel_named, lost, settled
from limbeck.samplers.discrete.schedules import Schedule, uniform_times

Score = Callable[[Tensor, Tensor], Tensor]  # x (B, L), t (B,) -> log s (B, L, S)


class Step(NamedTuple):
    """One step: the state before it x (B, L), its log ratios (B, L, S), the step's coefficient, its times, whether it is last."""

    x: Tensor
    log_score: Tensor
    coefficient: Tensor
    t: Tensor
    to: Tensor
    final: bool


def scaled_score(log_score: Tensor, coefficient: Tensor, param: str, x: Tensor) -> Tensor:
    """Phi s ("score") or s^Phi ("log_score"), (B, L, S); the entry y = x_i stays 1, since it is no ratio that could be off.

    (Scaled too, it would make Phi cancel in Tweedie's kernel, whose probabilities are normalised.)
    """
    never = log_score == -torch.inf  # its gradient would be 0 times infinity
    log_s = log_score.masked_fill(never, 0.0)
    s = coefficient * log_s.exp() if param == "score" else torch.exp(coefficient * log_s)
    s = s.masked_fill(never, 0.0)
    return s.scatter(-1, x[..., None], 1.0)


class LearnedSteps(nn.Module):
    """M steps from time 1 to ``end``: ``phi`` (M,) and ``theta`` (M,), with step lengths (1 - end) softmax(theta).

    At phi = 1, theta = 0 it is the plain sampler on equal steps. ``free``: theta are the step lengths themselves, which need
    not reach ``end``. On an absorbing graph the last step leaves nothing masked.
    """

    def __init__(
        self, graph: Graph, schedule: Schedule, steps: int, end: float = 1e-3, kernel: str = "euler",
        param: str | None = None, free: bool = False,
    ):  # fmt: skip
        super().__init__()
        if param not in (None, "score", "log_score"):
            raise unknown("param", str(param), ["score", "log_score"])
        times = uniform_times(steps, end)
        self.graph, self.schedule, self.end, self.free = graph, schedule, end, free
        self.kernel: Kernel = kernel_named(kernel)
        self.param = param or ("score" if graph.mask is None else "log_score")
        self.phi = nn.Parameter(torch.ones(steps, dtype=torch.float64))
        self.theta = nn.Parameter(times[:-1] - times[1:] if free else torch.zeros(steps, dtype=torch.float64))

    @property
    def steps(self) -> int:
        return len(self.phi)

    def lengths(self) -> Tensor:
        """kappa (M,), differentiable."""
        return self.theta if self.free else (1 - self.end) * self.theta.softmax(0)

    def times(self) -> Tensor:
        """1 = tau_0 > ... > tau_M, without gradient. Raises LimbeckError where steps run back or past the end."""
        kappa = self.lengths().detach()
        if not bool((kappa > 0).all()) or float(kappa.sum()) > 1 - self.end + 1e-9:
            raise LimbeckError(
                f"step lengths sum to {float(kappa.sum()):.6g} (smallest {float(kappa.min()):.3g}), more than the time from 1 to "
                f"{self.end:g} or not positive; they must be positive and sum to at most {1 - self.end:g}: lower the learning rate"
            )
        return 1 - torch.cat([kappa.new_zeros(1), kappa.cumsum(0)])

    def probabilities(self, step: Step) -> Tensor:
        """The law of the next symbols (B, L, S), differentiable in the step's coefficient."""
        return settled(self.graph, self.raw(step), step.final)

    def raw(self, step: Step) -> Tensor:
        """The same before clipping."""
        s = scaled_score(step.log_score, step.coefficient, self.param, step.x)
        return self.kernel(self.graph, self.schedule, step.x, s, step.t, step.to)

    def walk(self, score: Score, x: Tensor, noise: Uniforms) -> Iterator[Step]:
        """The M steps from x (B, L), as they are taken, without gradient; see :meth:`sample` for the end."""
        return walk(self, score, x, self.times(), self.phi.detach(), Clock(noise, x))

    @torch.no_grad()
    def sample(self, score: Score, x: Tensor, noise: Uniforms) -> Tensor:
        """The sampler's answer (B, L) to the start x (B, L); ``noise``: see :class:`Clock`."""
        return end_of(self.walk(score, x, noise))


def walk(
    steps: LearnedSteps, score: Score, x: Tensor, times: Tensor, coefficients: Tensor | None, clock: Clock, final: bool = True
) -> Iterator[Step]:
    """Steps between ``times`` with the kernel of ``steps`` (None: coefficients 1), and at last a step that holds the end alone.

    ``final``: the last of them leaves nothing masked. Warns where a step throws away more than 5 % of its probability.
    """
    phi = torch.ones(len(times) - 1, dtype=torch.float64, device=x.device) if coefficients is None else coefficients
    warned = False
    for k, (t, to) in enumerate(itertools.pairwise(times)):
        with torch.no_grad():
            step = Step(x, score(x, t.to(x.device).expand(len(x))), phi[k], t, to, final and k == len(times) - 2)
            raw = steps.raw(step)
            if not warned and (share := lost(raw, x)) > LARGE:
                warned = True
                warnings.warn(
                    f"step too large: the kernel throws away {share:.0%} of the probability at t = {float(t):.3g}; "
                    "use tweedie, or more steps",
                    stacklevel=2,
                )
            x = clock(x, settled(steps.graph, raw, step.final))
        yield step
    yield Step(x, step.log_score, step.coefficient, times[-1], times[-1], False)


def end_of(steps: Iterator[Step]) -> Tensor:
    """The state at the end of a walk."""
    *_, last = steps
    return last.x


def teacher_times(steps: int, teacher_steps: int, end: float) -> Tensor:
    """The teacher's equal steps. Raises LimbeckError unless every student's step holds equally many of them."""
    if steps < 1 or teacher_steps % steps:
        raise LimbeckError(
            f"teacher steps must be a multiple of student steps, not {teacher_steps} and {steps}; "
            f"take e.g. {max(teacher_steps // max(steps, 1), 1) * max(steps, 1)}"
        )
    return uniform_times(teacher_steps, end)
