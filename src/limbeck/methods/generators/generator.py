"""What the few-step generators share: their ingredients, a student that is a rollout of a denoiser, and its sampler."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError, unknown
from limbeck.networks import Heads, adapted, candidate_layers, feature_shapes
from limbeck.noise import Process
from limbeck.rules import Sample
from limbeck.samplers import Chain, Rollout
from limbeck.tasks import Reward, Task, imported
from limbeck.training import Batch, Method


@dataclass(frozen=True)
class Ingredients:
    """What a task gives a method: the teacher, the shape of a sample, and what the data can do.

    ``example``: one small batch of data in the data's range, with its conditions. ``images``: is there real data for
    training? ``network``: makes a new network F for students that do not start from the teacher. ``start``: what students
    and critics start as copies of (None: the teacher), ``start_sigmas`` the levels at which it samples, where it is the student
    of another run. ``rewards``: what preference methods may maximise, by name. ``negatives`` (N, M, C'): texts that nobody
    wants to see, for methods that are trained with negative prompts.
    """

    teacher: Any
    shape: tuple[int, ...]
    example: Tensor
    cond: Cond | None = None
    images: bool = False
    sigma_data: float = 0.5
    network: Callable[[], nn.Module] | None = None
    start: Any = None
    start_sigmas: tuple[float, ...] | None = None
    rewards: Mapping[str, Reward] = field(default_factory=dict)
    negatives: Tensor | None = None

    @property
    def begin(self) -> Any:
        """What students and critics start as copies of."""
        return self.teacher if self.start is None else self.start

    def rewarded(self, name: str) -> Reward:
        """The reward of that name: one of the task's, or your own function as MODULE:NAME. Raises LimbeckError."""
        if name in self.rewards:
            return self.rewards[name]
        if ":" in name:
            return imported(name, "reward")
        raise unknown("reward", name, [*self.rewards, "MODULE:FUNCTION (your own)"])


def make_method(cls: type["Generator"], options: Any, task: Task, seed: int) -> "Generator":
    """A method with its options on a task; new weights and heads come from the seed."""
    torch.manual_seed(seed)
    rows = torch.arange(min(64, task.source.size))
    x, cond = task.source.fetch(rows)
    real = task.evaluator.real  # where the teacher is, and in its dtype
    example = real[rows % len(real)] if x is None else x.to(real)
    placed = None if cond is None else {name: value.to(real.device) for name, value in cond.items()}
    parts = Ingredients(task.teacher, task.shape, example, placed, x is not None, task.sigma_data, task.network)
    negatives = None if task.negatives is None else task.negatives.to(real)
    parts = replace(parts, start=task.start, start_sigmas=task.start_sigmas, rewards=task.rewards, negatives=negatives)
    return cls(parts, options)


def trained_copy(teacher: object, rank: int = 0, alpha: float | None = None, layers: Sequence[str] = ()) -> Any:
    """A copy of the teacher to be trained: all of it, or (rank > 0) low-rank adapters on its own, shared weights.

    Raises LimbeckError where the teacher is no module with parameters.
    """
    if not isinstance(teacher, nn.Module) or not any(True for _ in teacher.parameters()):
        raise LimbeckError(
            f"students and critics start as copies of the teacher, but a {type(teacher).__name__} has no parameters to train; "
            "give the task a student network, or wrap your network in limbeck.denoisers.Preconditioned"
        )
    return adapted(teacher, rank, alpha, layers) if rank else copy.deepcopy(teacher).requires_grad_(True)


def first_rows(parts: Ingredients, rows: int = 2) -> tuple[Tensor, Cond | None]:
    """The first rows of the example and their conditions, to try a network on."""
    cond = None if parts.cond is None else {name: value[:rows] for name, value in parts.cond.items()}
    return parts.example[:rows], cond


def check_guidance(teacher: Any, *scales: float) -> None:
    """Raise LimbeckError where a scale is not 1 and the teacher has no null condition."""
    for w in scales:
        if w != 1 and teacher.null is None:
            raise LimbeckError(f"guidance {w:g} needs a null condition, which the teacher does not have; use 1")


def discriminator_on(
    watched: Any,
    parts: Ingredients,
    layers: tuple[str, ...],
    head: Callable[[Any], nn.Module] = Heads,
    where: str = "feature_layers",
) -> nn.Module:
    """New heads on the named layers of a denoiser; none named: those that its network calls ``where``."""
    x, cond = first_rows(parts)
    t = watched.process.time_of(torch.full((len(x),), 0.5, dtype=torch.float64, device=x.device))
    if not layers:
        chosen = getattr(getattr(watched, "network", None), where, ())
        layers = tuple(f"network.{name}" for name in chosen)
    if not layers:
        names = ", ".join(candidate_layers(watched, x, t, cond))
        raise LimbeckError(f"name the layers that the discriminator reads (gan_features); candidates: {names}")
    return head(feature_shapes(watched, layers, x, t, cond)).to(x)


class Generator(Method):
    """A student denoiser and its rollout over noise levels. Subclasses add roles and ``step``.

    ``times``: the rollout's times in the process's own measure, in the noise levels' place.
    """

    def __init__(
        self,
        parts: Ingredients,
        sigmas: tuple[float, ...],
        student: nn.Module | None = None,
        *,
        times: Tensor | None = None,
        renoise: str = "fresh",
        begin: str = "noise",
    ):
        self.student: Any = trained_copy(parts.begin) if student is None else student
        process: Any = self.student.process
        self.process: Process = process
        self.shape, self.sigma_data = parts.shape, parts.sigma_data
        if times is None:  # no level given: one step from the schedule's end
            levels = torch.tensor(sigmas, dtype=torch.float64)
            times = self.process.time_of(levels) if sigmas else levels.new_tensor([self.process.t_max])
        self.times = times
        low, high = self.process.t_min, self.process.t_max
        if bool(((self.times < low) | (self.times > high)).any()):
            raise LimbeckError(
                f"the student's noise levels {sigmas} leave the schedule of the {type(self.process).__name__} process, "
                f"whose times go from {low:g} to {high:g}; choose levels inside"
            )
        self.rollout = Rollout(self.process, tuple(self.times.tolist()), renoise, start=begin)

    @classmethod
    def on(cls, task: Task, options: Any, seed: int) -> "Generator":
        """The method on a task (:func:`make_method`)."""
        return make_method(cls, options, task, seed)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels s / a of the student's steps."""
        return tuple(self.process.sigma(self.times).tolist())

    @property
    def sampling(self) -> Rollout | Chain:
        """How the student's sampler goes, for those who say it elsewhere. Raises LimbeckError where this cannot."""
        return self.rollout

    def normal(self, batch: Batch, stream: str) -> Tensor:
        """Standard normal noise (B, *shape), keyed by sample, in the student's dtype."""
        return batch.noise.normal(stream, self.shape, next(self.student.parameters()).dtype)

    def produce(self, batch: Batch, grad_step: int | None) -> Sample:
        """Samples of the student whose step ``grad_step`` carries the gradient (earlier steps none; None: all steps do)."""
        z = self.normal(batch, "z")
        noise = lambda i: self.normal(batch, f"renoise {i}")  # noqa: E731
        return Sample(self.rollout(self.student, z, batch.cond, noise=noise, grad_step=grad_step).x, batch.cond)

    def sampler(self, ema: bool = True, steps: int | None = None) -> Callable[..., Tensor]:
        """The student as (z (B, ...) standard normal, cond, fresh noise of step i) -> x, with its first ``steps`` steps."""
        denoiser: Any = self.roles["student"].best if ema else self.student
        rollout = self.rollout if steps is None else replace(self.rollout, times=tuple(self.times[:steps].tolist()))

        @torch.no_grad()
        def sample(z: Tensor, cond: Cond | None = None, noise: Callable[[int], Tensor] | None = None) -> Tensor:
            return rollout(denoiser, z, cond, noise=noise).x

        return sample
