"""Phased DMD (arXiv 2510.27684): a few-step student of one expert per phase of noise, each matched where its phase ends. No data.

[0, T] is cut at T = t_0 > t_1 > ... > t_M = 0. The expert G_k carries the law of x_{t_{k-1}} to that of x_{t_k}; the experts above it
are frozen. With s = t_k and the Markov step to t > s,

(1) x_t = a_{t|s} x_s + s_{t|s} e,  a_{t|s} = a_t / a_s,  s_{t|s}^2 = s_t^2 - a_{t|s}^2 s_s^2
(2) u = ((a_s^2 s_t + a_t s_s^2) / (a_s^2 s_{t|s})) e - x_s / a_s            velocity e - x0 of the noised law of x_s: E[u | x_t] = v
(3) L_F = E min(1/s_{t|s}^2, 10) |s_{t|s} (F_k(x_t, t) - u)|^2               critic F_k of phase k, t in (s, T)
(4) g = a_t a_{t|s} / (a_t s_t + s_t^2) (T(x_t, t) - F_k(x_t, t))            pull on x_s of velocities T, F_k
(5) code: x0h moved by (D_F - D_T^w) / mean|x0h - D_T^w|,  x0h = the Euler step's end were it to go on to 0
(6) x_s = Euler step from t_j to s, j drawn among the steps of the phase, earlier steps without gradient

(2) to (4) are written for every process: the score -e / s_{t|s} of (1) gives the critic's target D* = (x_t - (s_t^2 / s_{t|s}) e) / a_t,
whose denoiser form of (2) this is, and (4) is a_{t|s} times the difference of the scores. For s = 0 all of it is DMD.

F_k starts from the teacher, not from F_{k-1}; the phases follow one another, or take turns (``order``). A teacher that is itself
made of experts gives G_k the expert that serves its phase, and F_k one critic for every expert that serves times above t_k.
The student is :class:`limbeck.samplers.Experts`, samples with deterministic steps, and takes no guidance.

Differs from the paper: (3) weighs squared errors of x0, times the weight of ``critic_weight`` ("velocity": the paper's). A frozen
expert is its average (``freeze``), as it is sampled. G_k starts from the teacher, or from G_{k-1} (``start``). From its code: the
diversity loss, real samples for the critic and the third critic of the last phase are left out. Presets ``paper-`` and ``code-``
were not run here; guidance and weight decay are the code's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, Denoiser
from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import Ingredients, trained_copy
from limbeck.methods.generators.producers import Phases, check_windows
from limbeck.methods.generators.score import ScoreDistillation, ScoreOptions
from limbeck.noise import Process, between
from limbeck.rules import DistributionMatching
from limbeck.samplers import Experts, Rollout
from limbeck.training import Batch, OptimizerOptions, Step


@dataclass(frozen=True)
class PhasedDMDOptions(ScoreOptions):
    """Options of Phased DMD: those of all score methods, and the phases. The defaults are what works on the digits."""

    iterations: int = 1000
    sigmas: tuple[float, ...] = (5.0, 1.6, 0.5, 0.17)
    renoise: Literal["fresh", "fixed", "ode"] = "ode"
    anchor: Literal["x", "x0"] = "x0"
    boundaries: tuple[float, ...] = (0.5,)
    """sigma of t_1 > t_2 > ... above 0, each one of ``sigmas`` but the first; one phase more than there are of them."""
    order: Literal["sequential", "joint"] = "sequential"
    """The phases in equal parts of the run, one after the other, each with a warm-up and decay of its own; or in turns, one an
    iteration."""
    nested: bool = True
    """Compare at times in (t_k, T), or (false) only within the phase."""
    margin: float = 0.0
    """Least distance of these times from t_k, in the process's own time."""
    per_sample: bool = False
    """The step of the phase that is trained is drawn for each sample, so that the critic always sees the law of all; or for all."""
    time_shift: float = 1.0
    """Flow shift after which times that are drawn uniformly (score_law uniform) are taken."""
    start: Literal["teacher", "previous"] = "teacher"
    """What G_k starts from: the teacher, or G_{k-1} as it was frozen."""
    freeze: Literal["average", "last"] = "average"
    """What stays of an expert when its phase ends: its averaged weights, or the last ones."""
    normaliser: str = "mean_abs"
    """Weight of the pull: mean_abs (5), kl (4), or none, eps, vsd (see limbeck.rules)."""


_INF = float("inf")
_WAN = OptimizerOptions(4e-7, "adamw", (0.0, 0.999))
_PAPER = PhasedDMDOptions(
    iterations=4000, batch=64, student=replace(_WAN, lr=5e-5), critic=_WAN, student_rank=64, adapter_alpha=8.0, critic_steps=5,
    sigmas=(_INF, 15.0, 5.0, 5 / 3), boundaries=(5.0,), guidance=4.0, score_low=1e-3, score_high=1e4, score_law="uniform",
    time_shift=5.0, critic_weight="velocity", anchor="x", normaliser="kl",
)  # fmt: skip
PRESETS = {
    "recommended": PhasedDMDOptions(),
    "paper-wan22": _PAPER,
    "paper-wan22-4phases": replace(_PAPER, boundaries=(15.0, 5.0, 5 / 3)),
    "paper-wan21": replace(_PAPER, guidance=5.0),
    "paper-qwen-image": replace(_PAPER, sigmas=(_INF, 9.0, 3.0, 1.0), boundaries=(3.0,), time_shift=3.0),
    "code-wan21-1.3b": replace(
        _PAPER, iterations=1000, sigmas=(_INF, 21.0, 7.0, 7 / 3), boundaries=(7.0,), time_shift=7.0, student_rank=0,
        student=replace(_WAN, lr=2e-6, weight_decay=0.01, clip=10.0), critic=replace(_WAN, weight_decay=0.01, clip=10.0),
        score_low=7 * 0.02 / 0.98, score_high=7 * 0.98 / 0.02, margin=0.02, critic_damping=_INF, anchor="x0",
        normaliser="mean_abs", order="joint", guidance=5.0,
    ),
}  # fmt: skip


class PhaseCritics(nn.Module):
    """The critics F_1, ..., F_M of the phases; ``active``, counted from 0, is the one that answers."""

    def __init__(self, critics: Sequence[Any]):
        super().__init__()
        self.phases, self.active = nn.ModuleList(critics), 0
        self.process: Process = critics[0].process

    @property
    def null(self) -> Mapping[str, Tensor] | None:
        """What stands for "no condition", as the critics declare it."""
        null: Any = self.phases[self.active].null
        return null

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.phases[self.active](x_t, t, cond)


def student_experts(boundaries: Sequence[float], experts: Sequence[Denoiser]) -> Experts:
    """G_1, ..., G_M as one denoiser: G_k serves t_k < t <= t_{k-1} of the times t_0 > ... > t_M. Raises LimbeckError for another
    number of experts than phases."""
    if len(experts) != len(boundaries) - 1:
        raise LimbeckError(f"{len(experts)} experts cannot serve {len(boundaries) - 1} phases; give one per phase")
    return Experts([(low, high, e) for high, low, e in zip(boundaries, boundaries[1:], experts, strict=False)])


def serving(teacher: Any, low: float, high: float) -> Any:
    """The teacher, or where it is made of experts the one that serves low < t <= high. Raises LimbeckError where that is not one."""
    if not isinstance(teacher, Experts):
        return teacher
    for below, above, expert in teacher.experts:
        if below <= low and high <= above * (1 + 1e-9):
            return expert
    served = ", ".join(f"({below:g}, {above:g}]" for below, above, _ in teacher.experts)
    raise LimbeckError(
        f"the phase ({low:g}, {high:g}] belongs to no single expert of the teacher, which serve {served}; end phases there too"
    )


def critic_above(teacher: Any, low: float, rank: int, alpha: float | None) -> Any:
    """A critic for t > low: a trained copy of the teacher, or one of each of its experts that serve such times."""
    if not isinstance(teacher, Experts):
        return trained_copy(teacher, rank, alpha)
    return Experts([(a, b, trained_copy(e, rank, alpha)) for a, b, e in teacher.experts if b > low])


def experts_and_critics(parts: Ingredients, o: Any, phases: Phases) -> dict[str, Any]:
    """An expert and a critic for every phase, as the student and the critic of a score distillation."""
    cuts, begin = phases.boundaries, parts.begin
    experts = [trained_copy(serving(begin, low, high), o.student_rank, o.adapter_alpha) for high, low in pairwise(cuts)]
    critics = [critic_above(begin, low, o.critic_rank, o.adapter_alpha) for low in cuts[1:]]
    return {"student": student_experts(cuts, experts), "critic": PhaseCritics(critics)}


def scheduled_by_phase(o: Any, phases: Phases) -> Any:
    """The options with warm-up and decay once per phase, where the phases follow one another."""
    if phases.order == "joint":
        return o
    M = len(phases.ends)
    return replace(o, student=replace(o.student, restarts=M), critic=replace(o.critic, restarts=M))


class PhasedDMD(ScoreDistillation):
    """See the module. A checkpoint holds the phase, all experts and all critics.

    Raises LimbeckError for boundaries that are not on the list of steps, for phases without times, and for guidance of the critic.
    """

    def __init__(self, parts: Ingredients, options: PhasedDMDOptions = PRESETS["recommended"]):
        o, begin = options, parts.begin
        if (o.critic_guidance, o.critic_training_guidance) != (1, 1) or o.guidance_high is not None or o.gan_weight > 0:
            raise LimbeckError(
                "student and critics are not guided, which the teacher's fixed guidance is distilled into, and there is no adversary: "
                "leave critic_guidance, critic_training_guidance, guidance_high and gan_weight as they are"
            )
        if o.time_shift != 1 and o.score_law == "karras":
            raise LimbeckError(f"time_shift={o.time_shift:g} carries times that are uniform: set score_law to uniform")
        process: Process = begin.process
        times = process.time_of(torch.tensor(o.sigmas, dtype=torch.float64)).tolist()
        rollout = Rollout(process, times, o.renoise, start=o.begin)
        self.phases = Phases(rollout, ends_of(o), o.iterations, o.order, o.nested, o.margin, o.per_sample)  # (6)
        o = scheduled_by_phase(o, self.phases)
        super().__init__(parts, o, producer=self.phases, **experts_and_critics(parts, o, self.phases))
        # the critics' targets (2) and weights (3)
        _, low, high = self.phases.windows(self.process)
        check_windows("phase", low, high, *self.edges)
        self.rule = DistributionMatching(  # at the points (1): (4), (5)
            parts.teacher, self.critic, guidance=o.guidance, normaliser=o.normaliser
        )

    def step(self, batch: Batch) -> Step:
        self.critic.active = self.phases.phase(batch.step)
        yield from super().step(batch)

    def times_between(self, u: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Times of the phase: uniform before the time shift, or in Karras' spacing."""
        return between(self.process, u, low, high, self.rho, self.options.time_shift)

    def finish(self, step: int) -> None:
        end_phase(self, self.phases, step)

    def state(self) -> dict[str, Tensor]:
        """The phase whose critic is active."""
        return {"phase": torch.tensor(self.critic.active)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.critic.active = int(state["phase"])


@torch.no_grad()
def end_phase(method: ScoreDistillation, phases: Phases, step: int) -> None:
    """Where a phase ends for good after a step, its expert is frozen, and may be what the next one starts from."""
    k, o = phases.phase(step), method.options
    if phases.order == "joint" or phases.phase(step + 1) == k or step + 1 >= phases.iterations:
        return
    role, index = method.roles["student"], len(phases.ends) - 1 - k  # experts are counted from the least noisy
    names = [n for n, p in method.student.get_submodule(f"expert_{index}").named_parameters() if p.requires_grad]
    done = _member(method.student, index, names)
    if o.freeze == "average" and role.ema is not None:
        _copy(done, _member(role.ema, index, names))
    if o.start == "previous":
        for module in (method.student, role.ema):
            if module is not None:
                _copy(_member(module, index - 1, names), done)


def ends_of(o: Any) -> tuple[int, ...]:
    """The number of steps after which each phase ends. Raises LimbeckError for a boundary that no step starts at."""
    if any(b >= a for a, b in pairwise(o.boundaries)):
        raise LimbeckError(f"boundaries must decrease strictly, not {o.boundaries}; sort them or remove what repeats")
    ends = []
    for boundary in o.boundaries:
        near = [i for i, sigma in enumerate(o.sigmas) if abs(sigma - boundary) <= 1e-9 * boundary]
        if not near or near[0] == 0:
            raise LimbeckError(
                f"the boundary {boundary:g} is not where a step starts; choose among {', '.join(f'{s:g}' for s in o.sigmas[1:])}"
            )
        ends.append(near[0])
    return (*ends, len(o.sigmas))


def _copy(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for p, value in zip(to, values, strict=True):
        p.copy_(value)


def _member(experts: nn.Module, index: int, names: Sequence[str]) -> list[Tensor]:
    return [experts.get_submodule(f"expert_{index}").get_parameter(name) for name in names]


METHOD, OPTIONS = PhasedDMD, PhasedDMDOptions
__all__ = [
    "PRESETS",
    "PhaseCritics",
    "PhasedDMD",
    "PhasedDMDOptions",
    "critic_above",
    "end_phase",
    "ends_of",
    "experts_and_critics",
    "scheduled_by_phase",
    "serving",
    "student_experts",
]
