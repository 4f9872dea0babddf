"""Producers: which samples of the student are trained, (method, batch, which draw of the iteration) -> Sample.

Any rule may follow any producer. Each ends a path that the method's sampler goes too, so that training sees the inputs of
sampling. Two of them leave the sample at a noise level, where its law is compared with the teacher's within a window of times:
the segments of a deterministic trajectory (TDM) and the phases of a mixture of experts (Phased DMD).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, Reconditioned, Rescaled
from limbeck.errors import LimbeckError, unknown
from limbeck.networks import counted
from limbeck.noise import Process
from limbeck.noise.process import SMALLEST
from limbeck.rules import Sample
from limbeck.samplers import SOLVERS, Rollout, ddim_step
from limbeck.training import Batch

Producer = Callable[[Any, Batch, int], Sample]
STEPS, SEGMENT = "steps", "segment"  # conditions of networks that are told the number of steps, and which one this is
STOCHASTIC = ("ancestral", "stochastic_edm")


def uniform_steps(method: Any, batch: Batch, call: int) -> Sample:
    """The output of one step k ~ U{0..K-1}, the same for the whole batch, on what steps 0..k-1 made without gradient."""
    return method.produce(batch, batch.noise.shared_randint("step", 0, len(method.times), call=call))


def whole_chain(method: Any, batch: Batch, call: int) -> Sample:
    """The output of the last step, differentiable through all of them."""
    return method.produce(batch, None)


def clean_time(process: Process) -> float:
    """The time at which no noise is left, which may lie below the process's range (-inf for a table of indices)."""
    return float(process.time_of(torch.zeros(1, dtype=torch.float64)))


@dataclass(frozen=True)
class Segments:
    """One step of a deterministic trajectory per sample, left where the step ends (TDM, arXiv 2503.06674).

    Step i goes from t_{i+1} to t_i, i ~ U{0..K-1} for each sample; the last one ends at clean data, t_0 = 0. x_{t_i} is compared
    with the teacher at times in (t_i, t_{i+1}) (``separate``) or (t_i, T). Several ``rollouts`` by their number of steps K: one
    of them is drawn per call, and student and critic are told K by the condition "steps". Where segments overlap the critic is
    told the "segment" too. ``critic_told``: is the critic told K?

    ``margin_low``, ``margin_high``: distance of the window from its ends, in the process's time. ``randmid``: share of the
    segment by which an end that is not clean is moved up at random.
    """

    rollouts: Mapping[int, Rollout]
    separate: bool = True
    margin_low: float = 0.0
    margin_high: float = 0.0
    randmid: float = 0.0
    critic_told: bool = True

    def __post_init__(self) -> None:
        for rollout in self.rollouts.values():
            if rollout.renoise != "ode":
                raise LimbeckError(
                    f"segments belong to a deterministic trajectory (eta = 0), not to one with renoise={rollout.renoise!r}; use 'ode'"
                )
        if not 0 <= self.randmid < 1:
            raise LimbeckError(f"randmid={self.randmid:g} is a share of a segment and must lie in [0, 1)")

    @property
    def values(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """The integers that the student is told, and those that the critic is told, by name of the condition."""
        counts = {STEPS: tuple(sorted(self.rollouts))} if len(self.rollouts) > 1 else {}
        segment = {} if self.separate else {SEGMENT: tuple(range(max(self.rollouts)))}
        return counts, {**(counts if self.critic_told else {}), **segment}

    def windows(self, process: Process, K: int) -> tuple[Tensor, Tensor, Tensor]:
        """(level, low, high) of the K steps, each (K,): where a step ends, and between which times it is compared."""
        nodes = torch.tensor(self.rollouts[K].times, dtype=torch.float64)
        level = torch.cat([nodes[1:], nodes.new_tensor([clean_time(process)])])
        top = nodes if self.separate else nodes[:1].expand_as(nodes)
        return level, level + self.margin_low, top - self.margin_high

    def __call__(self, method: Any, batch: Batch, call: int) -> Sample:
        counts = sorted(self.rollouts)
        K = counts[batch.noise.shared_randint("number of steps", 0, len(counts), call=call)]
        step = batch.noise.randint("segment", 0, K, call=call)
        cond = told(batch.cond, step, {STEPS: K} if len(counts) > 1 else {})
        path = self.rollouts[K](method.student, method.normal(batch, "z"), cond, grad_step=step, least=K - 1)
        level, low, high = (edge.to(step.device)[step] for edge in self.windows(method.process, K))
        t = path.times[-1]
        if self.randmid > 0:
            moved = level + self.randmid * batch.noise.uniform("randmid", call=call) * (t - level)
            low = low + torch.where(step < K - 1, moved - level, 0.0)
            level = torch.where(step < K - 1, moved, level)
        x = ddim_step(method.process, path.inputs[-1], path.x, t, level)
        known = {STEPS: K} if STEPS in self.values[1] else {}
        seen = told(batch.cond, step, known if self.separate else {**known, SEGMENT: step})
        return Sample(x, seen, level, path.x, low, high)

    def teacher(self, teacher: Denoiser) -> Denoiser:
        """The teacher, spared what only student and critic are told."""
        if not any(self.values):
            return teacher
        return Reconditioned(teacher, lambda cond: {n: v for n, v in (cond or {}).items() if n not in (STEPS, SEGMENT)} or None)

    def sampler(self, method: Any, denoiser: Any, steps: int | None = None, solver: str = "ddim") -> Callable[..., Tensor]:
        """(z (B, ...), cond, noise, not used) -> x with K = ``steps`` (None: the most) steps of a deterministic solver.

        Raises LimbeckError for a K that was not trained and for a solver that is not deterministic.
        """
        if solver not in SOLVERS:
            raise unknown("solver", solver, [name for name in SOLVERS if name not in STOCHASTIC])
        if solver in STOCHASTIC:
            raise LimbeckError(f"the student's samples lie on a deterministic trajectory (eta = 0): {solver} cannot sample it")
        K = max(self.rollouts) if steps is None else steps
        if K not in self.rollouts:
            raise LimbeckError(
                f"K={K} steps were not trained; the student knows K = {', '.join(map(str, sorted(self.rollouts)))}"
            )
        rollout = self.rollouts[K]

        @torch.no_grad()
        def sample(z: Tensor, cond: Cond | None = None, noise: Callable[[int], Tensor] | None = None) -> Tensor:
            given = told(cond, z, {STEPS: K} if len(self.rollouts) > 1 else {})
            if solver == "ddim":
                return rollout(denoiser, z, given).x
            return SOLVERS[solver](denoiser, rollout.begin(z), rollout.times, given)

        return sample


@dataclass(frozen=True)
class Phases:
    """The steps of one phase of a trajectory, jumped to the phase's end (Phased DMD, arXiv 2510.27684).

    Phase k has the steps ``ends[k-1]`` .. ``ends[k] - 1`` of the deterministic ``rollout``. Of these one is drawn, for each sample
    (``per_sample``) or for all; the earlier ones run without gradient, and from its output one step goes to the noise level t_k at
    which the next phase begins.
    There the sample is compared at times in (t_k, T) (``nested``) or (t_k, t_{k-1}), ``margin`` above t_k in the process's time.

    ``order``: the phases follow one another in equal parts of ``iterations``, or take turns.
    """

    rollout: Rollout
    ends: tuple[int, ...]
    iterations: int
    order: Literal["sequential", "joint"] = "sequential"
    nested: bool = True
    margin: float = 0.0
    per_sample: bool = False

    def __post_init__(self) -> None:
        process, times = self.rollout.process, torch.tensor(self.rollout.times, dtype=torch.float64)
        if self.rollout.renoise != "ode":
            raise LimbeckError(
                f"phases belong to a deterministic trajectory, not to renoise={self.rollout.renoise!r}; use 'ode'"
            )
        if (
            not self.ends
            or self.ends[-1] != len(times)
            or any(a >= b for a, b in zip((0, *self.ends), self.ends, strict=False))
        ):
            raise LimbeckError(f"phases of {len(times)} steps end at increasing steps up to {len(times)}, not at {self.ends}")
        if self.order not in ("sequential", "joint"):
            raise unknown("order of the phases", self.order, ["sequential", "joint"])
        left = process.a(times[list(self.ends[:-1])]) if len(self.ends) > 1 else times
        if bool((left < SMALLEST).any()):
            raise LimbeckError("a phase ends where no signal is left (a = 0), which nothing can be diffused from; end it later")

    @property
    def boundaries(self) -> tuple[float, ...]:
        """The times T = t_0 > t_1 > ... > t_M, the last of them clean."""
        times = [float(t) for t in self.rollout.times]
        return (times[0], *(times[end] for end in self.ends[:-1]), clean_time(self.rollout.process))

    def phase(self, step: int) -> int:
        """Which phase, from 0, an iteration trains."""
        M = len(self.ends)
        return step % M if self.order == "joint" else min(step * M // self.iterations, M - 1)

    def windows(self, process: Process) -> tuple[Tensor, Tensor, Tensor]:
        """(level, low, high) of the phases, each (M,)."""
        edges = torch.tensor(self.boundaries, dtype=torch.float64)
        return edges[1:], edges[1:] + self.margin, torch.full_like(edges[1:], process.t_max) if self.nested else edges[:-1]

    def __call__(self, method: Any, batch: Batch, call: int) -> Sample:
        k, noise = self.phase(batch.step), batch.noise
        draw = noise.randint if self.per_sample else noise.shared_randint
        step: Any = draw("step", (0, *self.ends)[k], self.ends[k], call=call)
        path = self.rollout(method.student, method.normal(batch, "z"), batch.cond, grad_step=step, least=self.ends[k] - 1)
        level, low, high = (edge[k].to(path.x.device).expand(batch.size) for edge in self.windows(method.process))
        if k == len(self.ends) - 1:
            return Sample(path.x, batch.cond, low=low, high=high)
        x = ddim_step(method.process, path.inputs[-1], path.x, path.times[-1], level)
        return Sample(x, batch.cond, level, path.x, low, high)


def told(cond: Cond | None, like: Tensor, integers: Mapping[str, int | Tensor]) -> Cond | None:
    """The conditions with integers as further ones, of the batch size and on the device of ``like``."""
    rows = torch.zeros(len(like), dtype=torch.long, device=like.device)
    return {**(cond or {}), **{name: rows + value for name, value in integers.items()}} if integers else cond


def counted_denoiser(denoiser: Any, values: Mapping[str, Sequence[int]]) -> Any:
    """The denoiser itself, its network told these integers (none: as it is). Raises LimbeckError for networks that cannot be."""
    inner = denoiser.denoiser if isinstance(denoiser, Rescaled) else denoiser
    if values:
        counted(getattr(inner, "network", inner), values)
    return denoiser


def check_windows(name: str, low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> None:
    """Raise LimbeckError where a window, cut to the times from ``least`` to ``most`` where scores are compared, is empty."""
    bottom, top = torch.maximum(low, least), torch.minimum(high, most)
    for i in range(len(low)):
        if not bottom[i] < top[i]:
            raise LimbeckError(
                f"{name} {i + 1} of {len(low)} has no times left: margins and score_low, score_high leave {bottom[i]:.6g} to "
                f"{top[i]:.6g}; lower the margins, widen score_low and score_high, or take a coarser grid"
            )


__all__ = ["Phases", "Producer", "Segments", "check_windows", "counted_denoiser", "told", "uniform_steps", "whole_chain"]
