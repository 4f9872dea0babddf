"""Score forgetting distillation: a one-step generator of all conditions but some, without data (arXiv 2409.11219).

Score identity distillation on the conditions R that stay, and one more term: what the generator makes under a forbidden
condition c_f must have the teacher's score under a safe one, c_s. With x = G(z, c_F), x_t = a x + s e,

(1) l(x; c_T, c_F) = w (D_T - D_F) . [(D_T - x) - alpha (D_T - D_F)],  D_T = D_T(x_t, t, c_T),  D_F = D_F(x_t, t, c_F)
(2) L_G = lam_r E_{c in R} l(G(z, c); c, c) + lam_f E_{c_f} l(G(z, c_f); c_s, c_f)
(3) L_F = lam_r' E_{c in R} |eps_F(x_t, t, c) - e|^2 + lam_f' E_{c_f} |eps_F(x_t, t, c_f) - e|^2      x detached

The critic is told the forbidden condition: it follows what G makes of it. Where both terms are at their minimum,
p_G(x|c_f) = p_T(x|c_s) and p_G(x|c) = p_T(x|c) for all others. One iteration is a critic update, then a student update.

(4) c_s: a label or prompt of its own for each c_f; or, drawn per sample, any safe label, or the safe label that a judge finds
most likely in the critic's answer
(5) D_w = D(null) + w (D(c) - D(null)): guidance of teacher, critic and critic in training; null may be a condition to lead
away from (a negative prompt), in each of the three

``rule="sim"`` takes the pull of score implicit matching in place of (1). Two stages: give ``start`` (or student and critic)
a generator that was distilled without forgetting.

Differs from the paper / from its code: losses are means over elements, theirs sums, so that their gradient clipped by value
at 1 is here one clipped at 1 / (elements of a sample). Labels of the data that are not in R are replaced by labels of R, and
random overrides are uniform (their code favours the last class). A sample that is not finite stops the run and is not masked.
Both terms are one backward pass over the student: graphs through teacher and critic are gone before. Guidance w is 1 + the
cond_scale of their small models.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.denoisers import ClassifierFree, Cond, Negated, check_denoiser
from limbeck.errors import LimbeckError, unknown
from limbeck.methods.generators.forgetting import Forgetting, Logits, labels_to_forget
from limbeck.methods.generators.generator import Ingredients, first_rows
from limbeck.methods.generators.levels import level_laws
from limbeck.methods.generators.score import ScoreDistillation, ScoreOptions
from limbeck.rules import Sample, ScoreIdentity, ScoreImplicit
from limbeck.tasks import imported
from limbeck.training import Batch, EmaOptions, OptimizerOptions, Step, Update

NEGATIVE = ("teacher", "critic", "critic_training")


@dataclass(frozen=True)
class SFDOptions(ScoreOptions):
    """Options of SFD: those of all score methods, what is forgotten, and the pull. The defaults are what works on the digits."""

    iterations: int = 600
    batch: int = 64
    student: OptimizerOptions = OptimizerOptions(lr=5e-4, warmup=20, decay="cosine", clip=1.0)
    critic: OptimizerOptions = OptimizerOptions(lr=1e-3, warmup=20, decay="cosine", clip=1.0)
    forget: tuple[str, ...] = ()
    """CLASS=OVERRIDE for each class to forget, e.g. 3=8; the override a class, random, judged or sampled; *: all but it."""
    remain: tuple[int, ...] | None = None
    """The classes to keep (None: all that are not forgotten)."""
    judge: str = ""
    """The classifier of judged overrides, images -> logits, as MODULE:NAME."""
    remain_weight: float = 1.0
    forget_weight: float = 0.1
    """lam_r and lam_f, of the student's loss."""
    critic_remain_weight: float = 1.0
    critic_forget_weight: float = 1.0
    """lam_r' and lam_f', of the critic's."""
    critic_told: Literal["forbidden", "safe"] = "forbidden"
    """The condition under which the critic knows the forbidden samples (their code: sg_w_override)."""
    negative_label: int | None = None
    """The label that guidance leads away from in place of the null condition."""
    negative_of: tuple[str, ...] = ("teacher",)
    """In which of teacher, critic (inside the student's loss) and critic_training (their code: use_neg)."""
    forget_warmup: float = 0.0
    """Share of the iterations in which the forget terms see noise levels uniform in time over [forget_low, forget_high]."""
    forget_low: float = 0.02
    forget_high: float = 60.0
    rule: Literal["sid", "sim"] = "sid"
    alpha: float = 1.2
    weight: str = "sid"
    distance: str = "pseudo_huber"
    c: float | None = None
    """The pull: SiD's alpha and weight, or SIM's distance, c and weight."""

    def __post_init__(self):
        super().__post_init__()
        if self.gan_weight > 0:
            raise LimbeckError("SFD has no adversarial term; set gan_weight to 0")
        weights = (self.remain_weight, self.forget_weight, self.critic_remain_weight, self.critic_forget_weight)
        if min(weights) < 0 or not 0 <= self.forget_warmup <= 1:
            raise LimbeckError(f"the weights {weights} of SFD and forget_warmup={self.forget_warmup:g} cannot be negative")
        if max(weights[:2]) == 0 or max(weights[2:]) == 0:
            raise LimbeckError(f"of the weights {weights} of SFD, one of the student's two and of the critic's must be above 0")
        for name in self.negative_of:
            if name not in NEGATIVE:
                raise unknown("place of the negative condition", name, NEGATIVE)


_DDPM = OptimizerOptions(lr=1e-5, betas=(0.0, 0.999), clip_value=1 / 3072)
_SD = OptimizerOptions(lr=1e-6, betas=(0.0, 0.999), clip_value=1 / 16384)
PRESETS = {
    "recommended": SFDOptions(),
    # levels: 38 to 711 of 1,000 (linear betas) to compare at, 440 to start from
    "paper-cifar10": SFDOptions(
        iterations=50_000, batch=128, student=_DDPM, critic=_DDPM, ema=EmaOptions("constant", 0.9999), forget=("0=1",),
        sigmas=(2.502,), forget_weight=0.01, critic_forget_weight=0.01, score_law="uniform", critic_law="score",
        score_low=0.1372, score_high=13.013, critic_weight="eps",
    ),
    # celebrities: 20 to 979 of 1,000 (scaled-linear betas), from 625; guidance 4.5 of all; iterations are unverified
    "paper-sd15": SFDOptions(
        iterations=12_500, batch=8, student=_SD, critic=OptimizerOptions(lr=3e-6, betas=(0.0, 0.999), clip_value=1 / 16384),
        ema=EmaOptions("constant", 0.0), alpha=1.0, forget_weight=1.0, score_law="uniform", critic_law="score",
        score_low=0.13799, score_high=12.9664, critic_weight="eps", sigmas=(2.5017,),
        guidance=4.5, critic_guidance=4.5, critic_training_guidance=4.5, critic_drop=0.1,
    ),
}  # fmt: skip


class SFD(ScoreDistillation):
    """See the module. ``forgetting``: in place of the options' labels, e.g. prompts; ``judge``: the judged overrides' classifier;
    ``negative``: the condition, of one sample, that guidance leads away from.

    Raises LimbeckError for a teacher that takes no condition, and for judged overrides without a judge.
    """

    order: Literal["student", "critic"] = "critic"

    def __init__(
        self,
        parts: Ingredients,
        options: SFDOptions = PRESETS["recommended"],
        *,
        forgetting: Forgetting | None = None,
        judge: Logits | None = None,
        negative: Cond | None = None,
        student: nn.Module | None = None,
        critic: nn.Module | None = None,
    ):
        if parts.cond is None or parts.teacher.null == {}:
            raise LimbeckError("SFD needs a conditional teacher, and a task with conditions; this one has none to forget")
        check_denoiser(parts.teacher, *first_rows(parts), gradients=True)
        super().__init__(parts, options, student=student, critic=critic)
        self.forgetting = forgetting or labels_to_forget(options.forget, _classes(parts), options.remain)
        acts = options.forget_weight > 0 or options.critic_forget_weight > 0
        if acts and not self.forgetting.how:
            raise LimbeckError("SFD forgets what you name: give forget, e.g. 3=8 to get an 8 wherever a 3 is asked for")
        self.acts, self.told_safe = acts, options.critic_told == "safe"
        self.keeps = self.forgetting.remain is None or len(self.forgetting.remain) > 0
        if not self.keeps:
            warnings.warn("nothing is to be kept (remain is empty): the quality of all else is unprotected", stacklevel=2)
        self.judge = judge or (imported(options.judge, "judge") if options.judge else None)
        if self.forgetting.judged and self.judge is None:
            raise LimbeckError("judged and sampled overrides need a classifier; give judge, images -> logits, as MODULE:NAME")
        self.draws = (2 if acts else 1) * (options.critic_steps + 1)
        scores = _negated(options, negative, (parts.teacher, self.critic, self.critic))  # (5)
        of_teacher, of_critic, self.trained_critic = scores
        guidance: Any = {"guidance": options.guidance, "critic_guidance": options.critic_guidance, "weight": options.weight}
        if options.rule == "sid":
            self.rule = ScoreIdentity(of_teacher, of_critic, alpha=options.alpha, **guidance)  # (1)
        else:
            self.rule = ScoreImplicit(of_teacher, of_critic, distance=options.distance, c=options.c, **guidance)
        o = options
        self.forget_times = level_laws(self.process, "uniform", "score", o.forget_low, o.forget_high, 0.0, 1.0)[0]

    def step(self, batch: Batch) -> Step:
        o: Any = self.options
        for i in range(o.critic_steps):
            with torch.no_grad():
                streams = [*self.streams(batch, i, o.critic_remain_weight, o.critic_forget_weight)]
            yield Update("critic", _sum(lam * self.critic_loss(part, s.detach()) for lam, part, s in streams))  # (3)
        if batch.step < o.student_after:
            return
        losses: list[Tensor] = []
        logs: dict[str, Tensor] = {}
        for lam, part, sample in self.streams(batch, o.critic_steps, o.remain_weight, o.forget_weight):
            loss, found = yield from self.student_loss(part, sample)
            losses.append(lam * loss)
            logs |= found if sample.goal is None else {f"forget {name}": value for name, value in found.items()}
        yield Update("student", _sum(losses), logs)  # (2)

    def streams(self, batch: Batch, i: int, remain: float, forget: float) -> Any:
        """(weight, batch, samples) of the i-th update's remain and forget streams, those of weight 0 left out."""
        call = i % self.options.critic_steps  # the student's step of the rollout is the first critic update's
        if remain > 0 and self.keeps:
            part = _asking(batch.draw(i), self.forgetting.kept(batch.draw(i)))
            yield remain, part, self.producer(self, part, call)
        if forget > 0:
            part = batch.draw(i + self.options.critic_steps + 1)
            rows = self.forgetting.rows(part)
            part = _asking(part, self.forgetting.asked(rows))
            yield forget, part, self.told(part, rows, self.producer(self, part, call))

    def told(self, batch: Batch, rows: Tensor, sample: Sample) -> Sample:
        """(4) forbidden samples with their goals."""

        @torch.no_grad()
        def logits() -> Tensor:
            marked = replace(sample.detach(), goal=sample.cond)
            t, eps = self.score_time(batch, marked), self.normal(batch, "score noise")
            x_t = self.process.diffuse(marked.x, eps, t, marked.level)
            assert self.judge is not None
            return self.judge(self.critic(x_t, t, marked.cond))

        goal = self.forgetting.goal(batch, rows, logits)
        return replace(sample, goal=goal, cond=goal if self.told_safe else sample.cond)

    def critic_in_training(self) -> Any:
        k1 = self.options.critic_training_guidance
        return self.critic if k1 == 1 else ClassifierFree(self.trained_critic, k1)

    def score_time(self, batch: Batch, sample: Sample) -> Tensor:
        return self._wide("score time", batch, sample) if self._warming(batch, sample) else super().score_time(batch, sample)

    def critic_time(self, batch: Batch, sample: Sample) -> Tensor:
        return self._wide("critic time", batch, sample) if self._warming(batch, sample) else super().critic_time(batch, sample)

    def _warming(self, batch: Batch, sample: Sample) -> bool:
        o: Any = self.options
        return sample.goal is not None and batch.step < o.forget_warmup * o.iterations

    def _wide(self, stream: str, batch: Batch, sample: Sample) -> Tensor:
        return self._within(batch.noise.uniform(stream), sample, self.forget_times)


def _classes(parts: Ingredients) -> int:
    if "label" not in (parts.cond or {}):
        raise LimbeckError(f"the conditions {sorted(parts.cond or {})} are no labels; give SFD a Forgetting of their rows")
    null = (parts.teacher.null or {}).get("label")
    return int(parts.cond["label"].max()) + 1 if null is None else int(null)  # type: ignore[index]


def _negated(o: SFDOptions, negative: Cond | None, roles: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    if negative is None and o.negative_label is None:
        return roles
    null = {"label": torch.tensor(o.negative_label)} if negative is None else negative
    scales = (o.guidance, o.critic_guidance, o.critic_training_guidance)
    if not any(w != 1 and name in o.negative_of for w, name in zip(scales, NEGATIVE, strict=True)):
        raise LimbeckError(f"a negative condition acts through guidance, but the scales of {o.negative_of} are 1")
    made = [Negated(of, null) if name in o.negative_of else of for name, of in zip(NEGATIVE, roles, strict=True)]
    return made[0], made[1], made[2]


def _asking(batch: Batch, cond: Any) -> Batch:
    """The same draw with other conditions."""
    other = Batch.__new__(Batch)
    other.__dict__.update(batch.__dict__, cond=cond)
    return other


def _sum(losses: Any) -> Tensor:
    first, *rest = losses
    return sum(rest, start=first)


METHOD, OPTIONS = SFD, SFDOptions
__all__ = ["PRESETS", "SFD", "SFDOptions"]
