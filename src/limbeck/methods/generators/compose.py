"""Any score rule on any producer of samples, under any guidance, with or without an adversary: what the systems are made of.

(1) (x, level, window) = producer(G)     steps: one step of the rollout at a time; chain: its end, through all steps; segments:
                                         a deterministic step per sample, left noisy (TDM); phases: an expert each (Phased DMD)
(2) g = rule(x_t; D_T^{w_T}, D_F^{w_F})  rkl (DMD); sf, js, sh, kl, jf, neyman (f-distill); vsd; sid; sim
(3) w_T, w_F, w of D_F's own loss        none; teacher; long_short (the same w in all); zero; anti; random (one w per sample in
                                         both scores)
(4) L_G = mean(x sg[g + lambda g_adv])   adversary: none; on the teacher's features; on the critic's, which then learns it too
(5) L_F = E w(t) |D_F(x_t, t) - D*|^2    exact for samples that are still noisy

Towards a target that changes with the step, any of them goes through DisBack: ``disback --host compose``. Which choices do not
go together, and why, is the table ``REFUSED``; everything else does. This is no system of its own: take it to try what nobody
has, and the named systems for their presets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.denoisers import check_denoiser
from limbeck.errors import LimbeckError, unknown
from limbeck.methods.generators.generator import Ingredients, first_rows
from limbeck.methods.generators.phased_dmd import end_phase, ends_of, experts_and_critics, scheduled_by_phase
from limbeck.methods.generators.producers import Phases, Producer, Segments, check_windows, uniform_steps, whole_chain
from limbeck.methods.generators.ratio import RatioWeighted
from limbeck.methods.generators.score import ScoreOptions
from limbeck.methods.generators.sid import guidance_of
from limbeck.rules import DistributionMatching, ScoreIdentity, ScoreImplicit, ScoreRule
from limbeck.samplers import Rollout
from limbeck.training import Batch, Step

DROP = 0.1  # share of conditions that a guided critic is trained without, where critic_drop does not say it
RATIOS = ("sf", "js", "sh", "kl", "jf", "neyman")
AXES: dict[str, tuple[str, ...]] = {
    "rule": ("rkl", *RATIOS, "vsd", "sid", "sim"),
    "producer": ("steps", "chain", "segments", "phases"),
    "strategy": ("none", "teacher", "long_short", "zero", "anti", "random"),
    "target": ("teacher", "backtracking"),
    "adversary": ("none", "teacher", "critic"),
    "weights": ("full", "low-rank"),
}
"""Every choice there is; ``target`` is DisBack's, ``weights`` those of student and critic."""


@dataclass(frozen=True)
class Refusal:
    """Two choices that do not go together, each an axis and values of it, and why."""

    axis: str
    values: tuple[str, ...]
    other: str
    others: tuple[str, ...]
    reason: str

    def says(self, choice: Mapping[str, str]) -> bool:
        """Is this pair among the choices?"""
        return choice.get(self.axis) in self.values and choice.get(self.other) in self.others


REFUSED = (
    Refusal(
        "rule", RATIOS, "adversary", ("none",),
        "the divergence weighs by a density ratio, which only a discriminator knows; set gan_weight > 0, or take rkl",
    ),
    Refusal(
        "rule", RATIOS, "strategy", ("long_short", "zero", "anti", "random"),
        "the density ratio is that of unguided samples, so their critic is not guided; guide the teacher alone",
    ),
    Refusal(
        "producer", ("phases",), "adversary", ("critic",),
        "every phase has a critic of its own, and a discriminator cannot read the one that is not there yet; let it read the teacher",
    ),
    Refusal(
        "producer", ("phases",), "target", ("backtracking",),
        "a path is what one critic was on the way, and every phase has its own; take segments, steps or the chain",
    ),
)  # fmt: skip


def refusal(choice: Mapping[str, str]) -> str | None:
    """Why these choices, by axis, do not go together; None where they do."""
    return next((r.reason for r in REFUSED if r.says(choice)), None)


@dataclass(frozen=True)
class ComposeOptions(ScoreOptions):
    """Options: those of all score methods, the choices, and what each of them needs. The defaults are DMD's."""

    rule: str = "rkl"
    """rkl, sf, js, sh, kl, jf, neyman, vsd, sid or sim."""
    producer: Literal["steps", "chain", "segments", "phases"] = "steps"
    strategy: Literal["none", "teacher", "long_short", "zero", "anti", "random"] = "none"
    strategy_scale: float | None = None
    """w of the strategy (None: 1.5, or -1 for anti); of random: U(0.5, w)."""
    gan_time: Literal["own", "shared"] = "shared"
    normaliser: str = "mean_abs"
    """Of rkl and the other divergences."""
    alpha: float = 1.0
    weight: str | None = None
    """w(t) of sid and sim (None: sid's own for sid, none for sim)."""
    distance: str = "pseudo_huber"
    """d of sim."""
    ratio_bins: int = 10
    ratio_ema: float = 0.9
    boundaries: tuple[float, ...] = ()
    """sigma where phases end, each one of ``sigmas`` but the first (none: between the two halves)."""
    order: Literal["sequential", "joint"] = "sequential"
    """Of the phases."""
    nested: bool = True
    margin: float = 0.0
    freeze: Literal["average", "last"] = "average"
    start: Literal["teacher", "previous"] = "teacher"

    @property
    def choice(self) -> dict[str, str]:
        """The choices by axis, but for the target."""
        adversary = self.gan_on if self.gan_weight > 0 else "none"
        weights = "low-rank" if self.student_rank or self.critic_rank else "full"
        return {
            "rule": self.rule, "producer": self.producer, "strategy": self.strategy, "adversary": adversary, "weights": weights,
        }  # fmt: skip


PRESETS = {
    "recommended": ComposeOptions(),
    "identity-on-segments": ComposeOptions(
        rule="sid", producer="segments", sigmas=(5.0, 1.6, 0.5, 0.17), damping_by="share", anchor="x0"
    ),
    "js-chain": ComposeOptions(rule="js", producer="chain", sigmas=(5.0, 0.8), gan_weight=1e-2),
}


class Compose(RatioWeighted):
    """See the module. Raises LimbeckError for choices that do not go together, with the reason."""

    def __init__(self, parts: Ingredients, options: ComposeOptions = PRESETS["recommended"], **given: Any):
        for axis, value in options.choice.items():
            if value not in AXES[axis]:
                raise unknown(axis, value, AXES[axis])
        if reason := refusal(options.choice):
            raise LimbeckError(f"{options.rule}, {options.producer}, {options.strategy} do not go together: {reason}")
        o = guided_options(options)
        if o.rule in ("sid", "sim"):
            check_denoiser(parts.teacher, *first_rows(parts), gradients=True)
        self.order = "critic" if o.rule in ("sid", "sim") else "student"
        process = parts.begin.process
        times = process.time_of(torch.tensor(o.sigmas, dtype=torch.float64)).tolist()
        if o.producer in ("segments", "phases"):
            o = replace(o, renoise="ode")
        rollout = Rollout(process, times, o.renoise, start=o.begin)
        producer: Producer = {"steps": uniform_steps, "chain": whole_chain}.get(o.producer, uniform_steps)
        self.phases: Phases | None = None
        if o.producer == "segments":
            producer = Segments({rollout.K: rollout}, margin_low=o.margin)
        elif o.producer == "phases":
            if len(o.sigmas) < 2:
                raise LimbeckError(f"phases need at least two steps to share; give more sigmas than {o.sigmas}")
            o = o if o.boundaries else replace(o, boundaries=(o.sigmas[len(o.sigmas) // 2],))
            producer = self.phases = Phases(rollout, ends_of(o), o.iterations, o.order, o.nested, o.margin)
            o = scheduled_by_phase(o, self.phases)
            given = {**given, **experts_and_critics(parts, o, self.phases)}
        super().__init__(parts, o, producer=producer, **given)  # (1), (4), (5)
        if isinstance(producer, (Segments, Phases)):
            steps = (rollout.K,) if isinstance(producer, Segments) else ()
            _, low, high = producer.windows(self.process, *steps)
            check_windows(o.producer.removesuffix("s"), low, high, *self.edges)
        self.rule = rule_of(o, parts.teacher, self.critic)  # (2)
        if o.rule in RATIOS:
            self.weigh_by(o.rule, o.ratio_bins, o.ratio_ema, o.batch)

    def step(self, batch: Batch) -> Step:
        if self.phases is not None:
            self.critic.active = self.phases.phase(batch.step)
        yield from super().step(batch)

    def finish(self, step: int) -> None:
        super().finish(step)
        if self.phases is not None:
            end_phase(self, self.phases, step)

    def state(self) -> dict[str, Tensor]:
        """The averages of the ratio, and the phase."""
        phase = {} if self.phases is None else {"phase": torch.tensor(self.critic.active)}
        return {**super().state(), **phase}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        if self.phases is not None:
            self.critic.active = int(state["phase"])


def guided_options(o: ComposeOptions) -> ComposeOptions:
    """(3) with the strategy's scales written out. Raises LimbeckError where scales are given beside a strategy."""
    if o.strategy == "none":
        return o
    scales = o.guidance, o.critic_guidance, o.critic_training_guidance
    if scales != (1, 1, 1) or o.guidance_high is not None:
        raise LimbeckError(
            f"the strategy {o.strategy!r} sets the guidance; leave {scales} at 1 and guidance_high out, or use none"
        )
    w = 1.5 if o.strategy_scale is None and o.strategy != "anti" else o.strategy_scale
    if o.strategy != "teacher" and o.critic_drop == 0:  # a critic that is guided must know the null condition
        o = replace(o, critic_drop=DROP)
    if o.strategy == "random":
        return replace(o, guidance=0.5, guidance_high=w)
    k1, k2, k4 = guidance_of(o.strategy, w)
    return replace(o, critic_training_guidance=k1, critic_guidance=k2, guidance=k4)


def rule_of(o: ComposeOptions, teacher: Any, critic: Any) -> ScoreRule:
    """The rule of that name between two scores, with their guidance."""
    scales: dict[str, Any] = {"guidance": o.guidance, "critic_guidance": o.critic_guidance}
    if o.rule == "sid":
        return ScoreIdentity(teacher, critic, alpha=o.alpha, weight=o.weight or "sid", **scales)
    if o.rule == "sim":
        return ScoreImplicit(teacher, critic, distance=o.distance, weight=o.weight or "none", **scales)
    return DistributionMatching(teacher, critic, normaliser="vsd" if o.rule == "vsd" else o.normaliser, **scales)


METHOD, OPTIONS = Compose, ComposeOptions
__all__ = ["AXES", "PRESETS", "REFUSED", "Compose", "ComposeOptions", "Refusal", "refusal"]
