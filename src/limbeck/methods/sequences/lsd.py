"""Learnable sampler distillation of discrete diffusion (LSD, LSD+, arXiv 2509.19962). The network is frozen; its sampler learns.

M steps follow N >> M steps of the same kernel by a coefficient Phi_k on the scores s of each step and, in LSD+, by its length
kappa_k. Sampling is categorical, so nothing goes backward through a sample: states and scores are held fixed, the network is
never called with gradients, and what is learned are M or 2 M numbers.

(1) p(y|x) = 1[y = x_i] + kappa_k rate(tau_k) R[Phi_k s]     Euler; or Tweedie's kernel on Phi_k s; or s^Phi_k for Phi_k s
(2) tau_{k+1} = tau_k - kappa_k, tau_0 = 1,  kappa = (1 - eps) softmax(theta)
(3) L_k = E |sg s*_k - Phi_k sg s_k|^2                       "trajectory": s* along N steps, s along M, from one x_T
(4) L_k = (E sum Phi_k s_k / E sum s*_k - 1)^2               "mean": no product of two draws, so no dilution
(5) L_k = - E sum_y m_k(y|x) log p_k(y|x)                    "same_state": m_k is N/M steps on from the student's own state
(6) L_k = E |kappa_k sg s_k - sum_{j in k} dt_j sg s*_j|^2   step lengths; j runs over the N/M steps of interval k
(7) x~_T = x_T with ceil(zeta L) places changed              where the student starts in training (never in sampling)
(8) Phi_k = 1 unless E log p_k(x'|x; Phi_k) is the larger    the guard, on the teacher's own transitions x -> x'

LSD trains Phi alone; LSD+ Phi, then kappa, then Phi, a third of the iterations each.

Differs from the paper / from its code: the paper has (3), and (6) with one step j in place of the sum and free kappa
(``objective="paper"``): its minimum is kappa = 1/N, so that M steps stop early. (3) shrinks Phi, since s and s* are noisy copies
of one another: on the absorbing graph it makes the sampler worse; (4), (5) and (8) are ours. Both samplers share their noise,
jump by jump. The entry y = x_i is left out of all sums and of Phi. The code samples twice per step and compares the teacher's
transition probabilities with the student's log scores; its loss is nearly an entropy of the student, which low diversity
also minimises. The guard judges Phi_k on the steps as they are, and not the step lengths.
"""

import functools
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, unknown
from limbeck.samplers.discrete import (
    Clock,
    Graph,
    LearnedSteps,
    Schedule,
    Step,
    Uniforms,
    perturbed,
    scaled_score,
    teacher_times,
    walk,
)
from limbeck.tasks.symbols import Symbols
from limbeck.training import Batch, Keyed, Method, OptimizerOptions, Role, Total, Update
from limbeck.training import Step as Iteration

OBJECTIVES = ("trajectory", "mean", "same_state", "paper")
FLOOR = 1e-6  # smallest probability whose logarithm is taken: a clipped step may rule out what the teacher does


@dataclass(frozen=True)
class LSDOptions:
    """Options of LSD. The defaults are what is safe: the student never becomes worse than plain steps, as far as the guard sees."""

    iterations: int = 150
    batch: int = 64
    steps: int = 8
    """M, calls of the network per sample."""
    teacher_steps: int = 256
    """N, a multiple of M."""
    end: float = 1e-3
    """eps, the time at which both samplers end."""
    kernel: str = "euler"
    """euler or tweedie, of teacher and student."""
    objective: str = "same_state"
    """trajectory (3), mean (4), same_state (5), or paper: (3), and (6) as printed."""
    param: Literal["score", "log_score"] | None = None
    """Phi s or s^Phi (None: score on uniform graphs, log_score on absorbing ones)."""
    learn_times: bool = False
    """LSD+: step lengths too (6); no guard judges them, and on the countdown of the claim they do harm."""
    perturb: float = 0.05
    """zeta of (7), a share of the places."""
    agreeing: bool = False
    """Of (3) and (6): compare only places where both samplers hold the same symbol."""
    guard: bool = True
    """After the last iteration, (8)."""
    held_out: int = 512
    """Sequences that the guard draws."""
    student: OptimizerOptions = OptimizerOptions(lr=0.05, betas=(0.9, 0.99), decay="cosine")
    """How Phi and theta are trained."""

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        if not 0 <= self.perturb <= 1:
            raise LimbeckError(f"perturb={self.perturb:g} is no share of the places: give a number in [0, 1], e.g. 0.05")
        if self.held_out < 2:
            raise LimbeckError(f"held_out={self.held_out}: the guard needs at least two sequences")
        teacher_times(self.steps, self.teacher_steps, self.end)


_PAPER = LSDOptions(
    iterations=16, batch=1, steps=32, objective="paper", param="score", guard=False,
    student=OptimizerOptions(lr=1e-2, betas=(0.9, 0.999)),
)  # fmt: skip
PRESETS = {
    "recommended": LSDOptions(),
    # d, N and the order of LSD+ are unverified; 16 passes of one x_T each, lr and N are the published scripts'
    "paper-openwebtext": _PAPER,
    "paper-openwebtext-plus": replace(_PAPER, learn_times=True),
}  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """What is distilled: a score (x (B, L), t (B,)) -> log s (B, L, S) on a graph, its schedule, and L."""

    score: nn.Module
    graph: Graph
    schedule: Schedule
    length: int


class LSD(Method):
    """See the module. Roles: ``score``, frozen, and ``student``, the :class:`LearnedSteps`. The data are not read."""

    def __init__(self, parts: Parts, options: LSDOptions = PRESETS["recommended"]):
        self.parts, self.options = parts, options
        if options.perturb > 0.1:
            warnings.warn(
                f"perturb={options.perturb:g} is far from the start that is sampled from; 0.05 is usual", stacklevel=2
            )
        if options.objective == "paper":
            warnings.warn(
                'objective="paper" is literal: (3) shrinks Phi, and step lengths tend to 1/N, so that the sampler stops early; '
                'use "same_state" or "mean"',
                stacklevel=2,
            )
        free = options.objective == "paper"
        self.learned = LearnedSteps(  # (1) and (2)
            parts.graph, parts.schedule, options.steps, options.end, options.kernel, options.param, free
        )
        self.roles = {"score": Role(parts.score), "student": Role(self.learned, options.student)}
        self.gains: Tensor | None = None
        """What the guard measured (M, 2): mean gain in log p_k per sequence, and its standard error."""
        self._seed, self._device = 0, torch.device("cpu")

    @classmethod
    def on(cls, task: Any, options: LSDOptions, seed: int) -> "LSD":
        """On the task symbols: its score, graph, schedule and length. The seed is the loop's alone: Phi begins at 1."""
        if not isinstance(task, Symbols):
            raise LimbeckError(f"lsd distils samplers of symbols, and {task.name} is no such task; see limbeck.tasks.symbols")
        return cls(Parts(task.score, task.graph, task.schedule, task.length), options)

    # -- training -----------------------------------------------------------------------------------------------------

    def learns_times(self, step: int) -> bool:
        """Whether iteration ``step`` trains kappa: the second third of LSD+."""
        return self.options.learn_times and step * 3 // self.options.iterations == 1

    def step(self, batch: Batch) -> Iteration:
        options, noise, shape = self.options, batch.noise, (self.parts.length,)
        self._seed, self._device = noise.seed, batch.device
        x_T, jumps = self.start(noise), self.uniforms(noise, "jumps")
        order, symbols = noise.uniform("places", shape), noise.uniform("symbols", shape)
        start = perturbed(self.parts.graph, x_T, options.perturb, order, symbols)  # (7)
        student = [*self.learned.walk(self.parts.score, start, jumps)][:-1]
        student = [s._replace(coefficient=self.learned.phi[k]) for k, s in enumerate(student)]
        lengths = self.learns_times(noise.step)
        if options.objective == "same_state" and not lengths:
            loss = torch.stack([self.same_state(s, k, noise) for k, s in enumerate(student)]).sum()
            yield Update("student", loss, self.logs())
            return
        pairs = list(zip(student, self.teacher(x_T, jumps), strict=True))
        if lengths:
            loss = torch.stack([self.length(k, *pair) for k, pair in enumerate(pairs)]).sum()
            yield Update("student", loss, self.logs())
        elif options.objective == "mean":
            here = torch.stack([self.scaled(s).sum() for s, _ in pairs])
            there = torch.stack([t.first.sum() for _, t in pairs])
            totals = yield Total(torch.stack([here.detach(), there, torch.full_like(there, batch.size)]))
            assert totals is not None
            ratio = totals[0] / totals[1]  # (4): the whole batch's; the loop weighs this micro-batch by its share
            slope = 2 * (ratio - 1) / totals[1] * totals[2] / batch.size
            loss = (slope * (here - here.detach())).sum() + ((ratio - 1) ** 2).sum()
            yield Update("student", loss, self.logs())
        else:
            loss = torch.stack([self.trajectory(*pair) for pair in pairs]).sum()
            yield Update("student", loss, self.logs())

    def start(self, noise: Keyed) -> Tensor:
        """x_T (B, L)."""
        return self.parts.graph.start(noise.uniform("x_T", (self.parts.length,)))

    def uniforms(self, noise: Keyed, stream: str) -> Uniforms:
        """The noise of a :class:`Clock` by number of the jump; kept, since teacher and student ask for the same."""
        shape = (self.parts.length, self.parts.graph.symbols + 1)
        return functools.cache(lambda count: noise.uniform(stream, shape, call=count))

    @torch.no_grad()
    def teacher(self, x: Tensor, jumps: Uniforms) -> "list[Interval]":
        """The N steps from x (B, L), by the student's steps in which they fall."""
        options = self.options
        each = options.teacher_steps // options.steps
        times = teacher_times(options.steps, options.teacher_steps, options.end)
        found: list[Interval] = []
        for j, step in enumerate(walk(self.learned, self.parts.score, x, times, None, Clock(jumps, x))):
            if j == options.teacher_steps:
                break
            s = self.scaled(step)
            if j % each == 0:
                found.append(Interval(step.x, s, (step.t - step.to) * s))
            elif options.objective != "paper":
                found[-1].sum.add_((step.t - step.to) * s)
        return found

    def scaled(self, step: Step) -> Tensor:
        """Phi_k s or s^Phi_k (B, L, S) of the jumps that are possible, 0 elsewhere; differentiable in Phi_k."""
        s = scaled_score(step.log_score, step.coefficient, self.learned.param, step.x)
        return torch.where(self.parts.graph.jumps(step.x) > 0, s, 0.0)

    def trajectory(self, step: Step, there: "Interval") -> Tensor:
        """(3)"""
        return self.squared(step, there, self.scaled(step), there.first)

    def length(self, k: int, step: Step, there: "Interval") -> Tensor:
        """(6)"""
        s = self.scaled(step._replace(coefficient=torch.ones_like(step.coefficient))).detach()
        return self.squared(step, there, self.learned.lengths()[k] * s, there.sum)

    def squared(self, step: Step, there: "Interval", mine: Tensor, other: Tensor) -> Tensor:
        """The mean square of the difference, over places that hold the same symbol where only those are asked for."""
        error = (mine - other).square().mean((-2, -1) if not self.options.agreeing else -1)
        return error.mean() if not self.options.agreeing else (error * (step.x == there.x)).mean()

    def same_state(self, step: Step, k: int, noise: Keyed) -> Tensor:
        """(5), a mean over places; m_k is the last small step's law, so that only the steps before it are drawn."""
        jumps = self.uniforms(noise, f"step {k}")
        times = self.inner(step.t, step.to)
        with torch.no_grad():
            *_, last, _ = walk(self.learned, self.parts.score, step.x, times, None, Clock(jumps, step.x), step.final)
            law = self.learned.probabilities(last)
        return -(law * log_of(self.learned.probabilities(step))).sum(-1).mean()

    def inner(self, t: Tensor, to: Tensor) -> Tensor:
        """The teacher's N/M equal steps between two of the student's times."""
        each = self.options.teacher_steps // self.options.steps
        return t + (to - t) * torch.arange(each + 1, dtype=torch.float64, device=t.device) / each

    def logs(self) -> dict[str, float]:
        phi, kappa = self.learned.phi.detach(), self.learned.lengths().detach()
        return {
            "phi/mean": float(phi.mean()),
            "phi/last": float(phi[-1]),
            "kappa/first": float(kappa[0]),
            "kappa/last": float(kappa[-1]),
        }

    # -- afterwards ---------------------------------------------------------------------------------------------------

    def finish(self, step: int) -> None:
        if self.options.guard and step + 1 == self.options.iterations:
            index = torch.arange(self.options.held_out)
            self.gains = self.guarded(Keyed(self._seed, self.options.iterations, index, self._device))

    @torch.no_grad()
    def guarded(self, noise: Keyed) -> Tensor:
        """(8): sets Phi_k = 1 where its gain is not above twice its standard error. Returns gains and errors (M, 2)."""
        x, times, found = self.start(noise), self.learned.times(), []
        clock = Clock(self.uniforms(noise, "held out"), x)
        for k, (t, to) in enumerate(itertools.pairwise(times)):
            final = k == self.options.steps - 1
            path = list(walk(self.learned, self.parts.score, x, self.inner(t, to), None, clock, final))
            fitted = path[0]._replace(coefficient=self.learned.phi[k], to=to, final=final)
            plain = fitted._replace(coefficient=torch.ones_like(fitted.coefficient))
            x = path[-1].x
            new, old = (log_of(self.learned.probabilities(s)).gather(-1, x[..., None]).sum((1, 2)) for s in (fitted, plain))
            gain = new - old
            found.append(torch.stack([gain.mean(), gain.std() / len(gain) ** 0.5]))
        gains = torch.stack(found)
        self.learned.phi.masked_fill_(gains[:, 0] <= 2 * gains[:, 1] + 1e-9, 1.0)  # gains of 1e-17 are rounding
        return gains

    def sampler(self, ema: bool = True) -> Callable[..., Tensor]:
        """(x_T (B, L), cond, noise of the c-th jump (B, L, S + 1), uniform) -> x (B, L), from the unchanged start."""
        return lambda x, cond=None, noise=None: self.learned.sample(self.parts.score, x, noise)


class Interval(NamedTuple):
    """The teacher over one of the student's steps: its state and ratios where that begins, and sum_j dt_j s*_j over it."""

    x: Tensor
    first: Tensor
    sum: Tensor


def log_of(p: Tensor) -> Tensor:
    """log p, where p >= ``FLOOR``."""
    return p.clamp(min=FLOOR).log()


METHOD, OPTIONS = LSD, LSDOptions
__all__ = ["LSD", "PRESETS", "LSDOptions", "Parts"]
