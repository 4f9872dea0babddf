"""Score distillation: a student, a critic that learns the score of its samples, and a rule that says where they should move.

One iteration is one update of the student and ``critic_steps`` updates of the critic, in either order. What a system adds is
composed: a producer of samples, a rule, a target (the teacher, or one that changes with the step), an adversary.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.denoisers import ClassifierFree, Cond, Denoiser
from limbeck.errors import LimbeckError
from limbeck.losses import denoising_loss
from limbeck.methods.generators.adversary import Adversary
from limbeck.methods.generators.generator import Generator, Ingredients, check_guidance, discriminator_on, trained_copy
from limbeck.methods.generators.levels import level_laws
from limbeck.methods.generators.options import ScoreOptions
from limbeck.methods.generators.producers import Producer, uniform_steps, whole_chain
from limbeck.methods.generators.sharing import AskedOnce, check_shared
from limbeck.networks import ChannelMean, Heads
from limbeck.noise import between
from limbeck.rules import DistributionMatching, Pull, Sample, ScoreRule, huber_surrogate, surrogate
from limbeck.tasks import drop_conditions
from limbeck.training import Batch, Role, Step, Update
from limbeck.training.diagnostics import diversity

Draw = tuple[Tensor, Tensor]  # t (B,), eps
IMPORTANCE: dict[str, Any] = {"exact": "none", "is": "tempered", "raw_is": "raw", "x0": "none"}


class ScoreDistillation(Generator):
    """See the module. A subclass gives ``self.rule``; ``order``: who is updated first; ``unshared``: why it cannot share draws.

    ``critic``: what the critic starts as (None: a copy of what the student starts as). Raises LimbeckError for guidance without
    a null condition and for an adversary without images.
    """

    order: Literal["student", "critic"] = "student"
    unshared: str = ""
    rule: ScoreRule

    def __init__(
        self,
        parts: Ingredients,
        options: Any,
        *,
        student: nn.Module | None = None,
        critic: nn.Module | None = None,
        producer: Producer | None = None,
    ):
        o: ScoreOptions = options
        if student is None:
            student = trained_copy(parts.begin, o.student_rank, o.adapter_alpha)
        super().__init__(parts, o.sigmas, student, renoise=o.renoise, begin=o.begin)
        scales = [
            o.guidance,
            o.critic_guidance,
            o.critic_training_guidance,
            1.0 if o.guidance_high is None else o.guidance_high,
        ]
        check_guidance(parts.teacher, *scales)
        if o.share_draws:
            check_shared(o, self.order, self.unshared)
        self.options: Any = options
        self.draws = o.critic_steps + (self.order == "critic")
        self.teacher: Denoiser = parts.teacher
        self.critic: Any = trained_copy(parts.begin, o.critic_rank, o.adapter_alpha) if critic is None else critic
        self.producer = producer or (uniform_steps if o.match == "uniform" else whole_chain)
        self.roles = {
            "teacher": Role(parts.teacher),
            "student": Role(self.student, o.student, o.ema),
            "critic": Role(self.critic, o.critic),
        }
        self.score_times, self.critic_times = level_laws(
            self.process, o.score_law, o.critic_law, o.score_low, o.score_high, o.critic_mean, o.critic_std
        )
        self.adversary: Adversary | None = None
        if o.gan_weight > 0:
            if not parts.images:
                raise LimbeckError("gan_weight > 0 needs real images for the discriminator; give data or set gan_weight to 0")
            watched = self.critic if o.gan_on == "critic" else parts.begin  # a teacher in closed form has no layers
            kind: Any = (ChannelMean, "encoder_layers") if o.gan_head == "mean" else (Heads, "feature_layers")
            heads = discriminator_on(watched, parts, o.gan_features, *kind)
            self.adversary = Adversary(
                watched,
                heads,
                self.critic_times,
                self.normal,
                o.gan_r1,
                paired=o.gan_paired,
                clamp=o.gan_clamp,
                within=self._within,
            )
            if self.adversary.trained:
                self.roles["discriminator"] = Role(heads, o.discriminator)

    def step(self, batch: Batch) -> Step:
        o, waiting = self.options, batch.step < self.options.student_after
        sample: Sample | None = None
        if o.share_draws and not waiting:
            yield from self.shared_updates(batch)
            return
        if self.order == "student" and not waiting:
            sample = yield from self.student_update(batch)
        for i in range(o.critic_steps):
            part = batch.draw(i)
            if i > 0 or sample is None:
                with torch.no_grad():
                    sample = self.producer(self, part, i)
            yield from self.critic_update(part, sample.detach())
        if self.order == "critic" and not waiting:
            yield from self.student_update(batch.draw(o.critic_steps))

    def student_update(self, batch: Batch) -> Any:
        """Yields the student's update; returns the sample."""
        sample = self.producer(self, batch, 0)
        loss, logs = yield from self.student_loss(batch, sample)
        yield Update("student", loss, logs)
        return sample

    def shared_updates(self, batch: Batch) -> Step:
        """Yields both updates from one noised sample and one answer of the critic."""
        sample, critic = self.producer(self, batch, 0), AskedOnce(self.critic)
        draw = self.score_time(batch, sample), self.normal(batch, "score noise")
        loss, logs = yield from self.student_loss(batch, sample, draw, critic)
        yield Update("student", loss, logs)
        yield from self.critic_update(batch, sample.detach(), draw, critic)

    def student_loss(self, batch: Batch, sample: Sample, draw: Draw | None = None, critic: AskedOnce | None = None) -> Any:
        """The loss that holds the pull on a sample, and what is logged of it, once the whole batch's totals are in.

        ``draw``: t (B,) and eps of the noised sample (None: drawn here); ``critic``: who answers in the critic's place.
        """
        o = self.options
        t, eps = draw or (self.score_time(batch, sample), self.normal(batch, "score noise"))
        rule: Any = self.guided_rule(batch)
        if critic is not None:
            if not isinstance(rule, DistributionMatching):
                raise LimbeckError(
                    f"share_draws needs a rule that asks the critic once; {type(rule).__name__} is none: leave it off"
                )
            rule = copy.copy(rule)
            rule.critic = critic
        rule = yield from self.weighed(rule, batch, sample, t, eps)
        pull = rule(sample, t, eps, batch.step)
        gradient, logs = pull.gradient, {**pull.logs, "diversity": diversity(sample.x)}
        if self.adversary is not None and batch.step >= o.gan_after:
            if o.gan_time == "own":
                t, eps = self.adversary_time(batch, sample), self.normal(batch, "gan noise")
            gradient = yield from self.with_adversary(pull, self.adversary.gradient(sample, t, eps))
        return self.pulled(sample, replace(pull, gradient=gradient)), logs

    def critic_update(self, batch: Batch, sample: Sample, draw: Draw | None = None, critic: Any = None) -> Step:
        """Yields the updates of the critic, and of the discriminator where there is one, on a sample."""
        loss = self.critic_loss(batch, sample, draw, critic)
        if self.adversary is None:
            yield Update("critic", loss)
            return
        gan, logs = self.adversary.loss(batch, sample)
        if self.options.gan_on == "critic":
            both = ("critic", "discriminator") if self.adversary.trained else "critic"
            yield Update(both, loss + self.options.gan_critic_weight * gan, logs)
        else:
            yield Update("critic", loss)
            yield Update("discriminator", gan, logs)

    def critic_loss(self, batch: Batch, sample: Sample, draw: Draw | None = None, critic: Any = None) -> Tensor:
        """Denoising of the sample, exact where it is at a noise level; ``draw`` and ``critic`` as in :meth:`student_loss`."""
        o = self.options
        t, eps = draw or (self.critic_time(batch, sample), self.normal(batch, "critic noise"))
        cond = self.critic_condition(batch, sample.cond)
        learn_clean = sample.level is not None and o.critic_target != "exact"
        return denoising_loss(
            critic or self.critic_in_training(), sample.x, t, eps, cond, weight=o.critic_weight, sigma_data=self.sigma_data,
            level=sample.level, damping=o.critic_damping, relative=o.damping_by == "share", clean=sample.clean if learn_clean else None,
            importance=IMPORTANCE[o.critic_target],
        )  # fmt: skip

    # -- what systems change ------------------------------------------------------------------------------------------

    def anchor(self, sample: Sample) -> Tensor:
        """What the pull moves: the sample itself, or its clean prediction."""
        return sample.x if self.options.anchor == "x" else sample.clean

    def pulled(self, sample: Sample, pull: Pull) -> Tensor:
        """The scalar whose gradient moves the sample along the pull."""
        o, x = self.options, self.anchor(sample)
        if o.surrogate == "plain":
            return surrogate(x, pull.gradient)
        reduce = "element" if o.surrogate == "huber" else "sample"
        return huber_surrogate(x, pull.gradient, pull.scale, c=o.huber_c, reduce=reduce)

    def sampler(self, ema: bool = True, steps: int | None = None, **how: Any) -> Callable[..., Tensor]:
        """The student as its producer samples it, where that has a way of its own."""
        own: Any = getattr(self.producer, "sampler", None)
        if own is None:
            return super().sampler(ema, steps)
        return own(self, self.roles["student"].best if ema else self.student, steps, **how)

    def with_adversary(self, pull: Pull, gan: Tensor) -> Any:
        """Returns the student's gradient from its pull and from the adversarial term's; may yield totals."""
        return pull.gradient + self.options.gan_weight * gan
        yield  # a generator, like what it is called from

    def critic_in_training(self) -> Any:
        """The critic as its own loss sees it: guided, where it is to be right after guidance."""
        k1 = self.options.critic_training_guidance
        return self.critic if k1 == 1 else ClassifierFree(self.critic, k1)

    def critic_condition(self, batch: Batch, cond: Cond | None) -> Cond | None:
        """The conditions that the critic is trained with."""
        if self.options.critic_drop == 0:
            return cond
        return drop_conditions(cond, self.critic.null, batch.noise.uniform("critic drop") < self.options.critic_drop)

    def guided_rule(self, batch: Batch) -> ScoreRule:
        """The rule, with this batch's guidance where it is random."""
        o = self.options
        if o.guidance_high is None:
            return self.rule
        rule: Any = copy.copy(self.rule)
        w = o.guidance + (o.guidance_high - o.guidance) * batch.noise.uniform("guidance")
        if o.guidance_random != "critic":
            rule.guidance = w
        if o.guidance_random != "teacher":
            rule.critic_guidance = w
        return rule

    def weighed(self, rule: ScoreRule, batch: Batch, sample: Sample, t: Tensor, eps: Tensor) -> Any:
        """The rule with weights that the whole batch decides: may yield totals, returns a rule."""
        yield from ()
        return rule

    # -- times --------------------------------------------------------------------------------------------------------

    def score_time(self, batch: Batch, sample: Sample) -> Tensor:
        """Where the scores are compared, (B,): Karras levels, within the sample's own window where it has one."""
        return self._within(batch.noise.uniform("score time"), sample, self.score_times)

    def critic_time(self, batch: Batch, sample: Sample) -> Tensor:
        """Where the critic learns, (B,)."""
        return self._within(batch.noise.uniform("critic time"), sample, self.critic_times)

    def adversary_time(self, batch: Batch, sample: Sample) -> Tensor:
        """Where the student's adversarial term is taken, (B,), if at a time of its own."""
        return self._within(batch.noise.uniform("gan time"), sample, self.critic_times)

    def _within(self, u: Tensor, sample: Sample, law: Callable[[Tensor], Tensor]) -> Tensor:
        if sample.low is None and sample.high is None:
            return law(u)
        edges = self.edges.to(u.device)
        low = edges[0].expand_as(u) if sample.low is None else torch.maximum(sample.low, edges[0])
        high = edges[1].expand_as(u) if sample.high is None else torch.minimum(sample.high, edges[1])
        return self.times_between(u, low, torch.maximum(high, low))

    def times_between(self, u: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Times within each sample's own window, (B,)."""
        return between(self.process, u, low, high, self.rho)

    @property
    def rho(self) -> float | None:
        """Karras' rho of the score levels (None: they are uniform in the process's time)."""
        return 7.0 if self.options.score_law == "karras" else None

    @property
    def edges(self) -> Tensor:
        """The lowest and the highest time at which scores are compared, (2,), on the CPU."""
        ends = torch.tensor([self.options.score_low, self.options.score_high], dtype=torch.float64)
        return self.process.time_of(ends)


__all__ = ["ScoreDistillation", "ScoreOptions"]
