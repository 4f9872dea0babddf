"""The method of Hyper-SD: one iteration of each kind of stage. Equations: see the package; their numbers stand in comments."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import ClassifierFree, Cond, Denoiser, guided, in_process, times_like
from limbeck.errors import LimbeckError
from limbeck.losses import consistency_pair, denoising_loss, discriminator_loss, logit_accuracy, pseudo_huber, squared
from limbeck.methods.generators.adversary import Adversary
from limbeck.methods.generators.generator import Ingredients, check_guidance, discriminator_on, trained_copy
from limbeck.methods.generators.hyper_sd.feedback import Feedback
from limbeck.methods.generators.hyper_sd.options import PRESETS, HyperSDOptions, Stage
from limbeck.methods.generators.hyper_sd.segments import Jump, draw, trailing
from limbeck.methods.generators.hyper_sd.staged import Staged
from limbeck.rules import DistributionMatching, Sample, surrogate
from limbeck.samplers import ddim, ddim_step
from limbeck.tasks import drop_conditions
from limbeck.training import Batch, Role, Step, Update
from limbeck.training.diagnostics import diversity

Logs = Mapping[str, Tensor | float]


class HyperSD(Staged):
    """See the package. Learns from images. Raises LimbeckError for options that do not fit the teacher or the task."""

    def __init__(self, parts: Ingredients, options: HyperSDOptions = PRESETS["recommended"]):
        o = options
        if not parts.images:
            raise LimbeckError(
                "segmented consistency distillation noises images; give data, or use sid or dmd, which need none"
            )
        check_guidance(parts.teacher, o.guidance_low, o.guidance_high, o.score_guidance)
        super().__init__(parts, o)
        self.teacher: Denoiser = in_process(parts.teacher, self.process)
        self.feedback = Feedback(parts, o)
        if any(s.w_adv > 0 for s in o.stages if s.kind == "consistency"):
            heads = discriminator_on(parts.begin, parts, o.gan_features)
            self.adversary = Adversary(parts.begin, heads, self.path, self.normal)
            self.roles |= {"watched": Role(parts.begin), "discriminator": Role(heads, o.discriminator)}
        if "score" in o.then:
            self.draws = o.critic_steps
            self.critic = trained_copy(parts.begin, o.critic_rank, o.alpha, o.adapt)
            self.roles["critic"] = Role(self.critic, o.critic)
            real, w = (self.teacher, o.score_guidance) if o.real_score == "base" else (self.ends[len(o.segments) - 1], 1.0)
            self.rule = DistributionMatching(real, self.critic, guidance=w)

    def step(self, batch: Batch) -> Step:
        stage = self.options.at(batch.step)
        if stage.kind == "consistency":
            yield from self.consistency(batch, stage)
        elif stage.kind == "reward":
            yield from self.anchored(batch, stage, *self.rewarded(batch))
        else:
            yield from self.score(batch, stage)

    # -- segments -----------------------------------------------------------------------------------------------------

    def pair(self, batch: Batch, stage: Stage, cond: Cond | None) -> tuple[Tensor, Tensor, Tensor]:
        """(fake, real, u_e): where student and target say the path is at u_e, (B, ...); the target without gradient."""
        o, x0 = self.options, batch.x
        assert x0 is not None
        u, u_n, u_e = draw(batch.noise, stage.segments, stage.grid, o.target)
        t, t_n, t_e = self.path(u), self.path(u_n), self.path(u_e)
        x_t = self.process.add_noise(x0, self.perturbed(batch), t)
        teacher, w = self.teacher, self._guidance(batch)
        if o.solver == "previous_stage" and stage.index > 0:
            teacher, w = self.ends[min(stage.index, len(o.segments) - 1) - 1], 1.0
        with torch.no_grad():
            x_n = ddim_step(self.process, x_t, guided(teacher, x_t, t, cond, w), t, t_n)  # (5)
        fake, real = consistency_pair(Jump(self.student, t_e), Jump(self.average, t_e), x_t, t, x_n, t_n, cond)
        return fake, real, u_e

    def perturbed(self, batch: Batch) -> Tensor:
        """e, plus one number per sample and channel with offset noise."""
        e, size = self.normal(batch, "noise"), self.options.offset_noise
        channels = (*self.shape[:1], *(1 for _ in self.shape[1:]))
        return e if size == 0 else e + size * batch.noise.normal("offset", channels, e.dtype)

    def consistency(
        self, batch: Batch, stage: Stage, weight: float = 1.0, more: Tensor | float = 0.0, logs: Logs | None = None
    ) -> Step:
        """Yields the student's update on weight x (6) + ``more``, and with an adversary that of the discriminator."""
        cond: Cond | None = batch.cond
        if self.options.drop > 0:
            cond = drop_conditions(cond, self.student.null, batch.noise.uniform("drop") < self.options.drop)
        fake, real, u_e = self.pair(batch, stage, cond)
        distance = squared if self.options.distance == "l2" else pseudo_huber
        loss = stage.w_mse * distance(fake, real).mean()  # (6)
        logs = {**(logs or {}), f"distance k={stage.segments}": squared(fake.detach(), real).mean()}
        if stage.w_adv == 0:
            yield Update("student", weight * loss + more, logs)
            return
        u = batch.noise.uniform("gan time") if self.options.gan_renoise else torch.zeros_like(u_e)
        level, t, eps = self.path(u_e), self.path(u_e + (1 - u_e) * u), self.normal(batch, "gan noise")
        gradient = self.adversary.gradient(Sample(fake, cond, level), t, eps)  # (7)
        yield Update("student", weight * (loss + stage.w_adv * surrogate(fake, gradient)) + more, logs)
        of_real, of_fake = (
            self.adversary.logits(self.process.diffuse(x.detach(), eps, t, level), t, cond) for x in (real, fake)
        )
        accuracy = logit_accuracy(of_real.detach(), of_fake.detach())
        yield Update("discriminator", discriminator_loss(of_real, of_fake), {"logit_accuracy": accuracy})

    def anchored(self, batch: Batch, stage: Stage, loss: Tensor, logs: Logs) -> Step:
        """Yields the student's update on a loss, with the last k's consistency beside it where ``anchor`` > 0."""
        if self.options.anchor > 0:
            yield from self.consistency(batch, stage, self.options.anchor, loss, logs)
        else:
            yield Update("student", loss, logs)

    # -- after the last k ---------------------------------------------------------------------------------------------

    def rewarded(self, batch: Batch) -> tuple[Tensor, Logs]:
        """The sum of (8) and its logs."""
        o, loss, logs = self.options, torch.zeros(()), dict[str, Tensor]()
        if self.feedback.rewards:
            end = o.reward_low + (o.reward_high - o.reward_low) * batch.noise.shared_uniform("reward time")
            begin = 1.0 if o.reward_steps > 1 else end
            x = self.predicted(self.begin(self.normal(batch, "z"), begin), begin, end, o.reward_steps, batch.cond)
            loss, logs = self.feedback.aesthetic(x, batch.cond)  # (8)
            loss = o.reward_weight * loss
        if self.feedback.structure is not None:
            assert batch.x is not None
            t = self.path(torch.full((batch.size,), o.structure_from, dtype=torch.float64, device=batch.device))
            x_t = self.process.add_noise(batch.x, self.normal(batch, "structure noise"), t)
            x = self.predicted(x_t, o.structure_from, o.structure_to, o.structure_steps, batch.cond)
            loss = loss + o.structure_weight * self.feedback.structural(x, batch.x, batch.cond)
        return loss, logs

    def predicted(self, x: Tensor, begin: float, end: float, steps: int, cond: Cond | None) -> Tensor:
        """The student's clean prediction at position ``end``, in ``steps`` calls from x at ``begin``; the last has a gradient."""
        times = self.path(torch.linspace(begin, end, steps, dtype=torch.float64))
        with torch.no_grad():
            x = ddim(self.student, x, times, cond, final=False)
        return self.student(x, times_like(x, times[-1]), cond)

    def score(self, batch: Batch, stage: Stage) -> Step:
        """Yields the updates of student and critic in the stage of score distillation."""
        o, z = self.options, self.normal(batch, "z")
        first = self.begin(z, self.first)
        x = self.predicted(first, self.first, self.first, 1, batch.cond)
        tau, eps = self._between(batch, "score time"), self.normal(batch, "score noise")
        pull = self.rule(Sample(x, batch.cond), tau, eps, batch.step)
        loss = o.dmd_weight * surrogate(x, pull.gradient)  # (9)
        logs: Logs = {**pull.logs, "diversity": diversity(x)}
        if o.mse_weight > 0:
            better: Any = self.average
            if o.mse_target == "teacher":
                better = self.teacher if o.score_guidance == 1 else ClassifierFree(self.teacher, o.score_guidance)
            with torch.no_grad():
                goal = ddim(better, first, self.path(trailing(o.mse_steps, self.first)), batch.cond)
            loss = loss + o.mse_weight * squared(x, goal).mean()  # (10)
        if o.rewards_stay:
            term, shown = self.feedback.aesthetic(x, batch.cond)
            loss, logs = loss + o.reward_weight * term, {**logs, **shown}
        yield from self.anchored(batch, stage, loss, logs)
        for i in range(o.critic_steps):
            part = batch.draw(i)
            if i > 0:
                with torch.no_grad():
                    x = self.predicted(self.begin(self.normal(part, "z"), self.first), self.first, self.first, 1, part.cond)
            tau, eps = self._between(part, "critic time"), self.normal(part, "critic noise")
            kind = {"weight": o.critic_weight, "sigma_data": self.sigma_data}
            yield Update("critic", denoising_loss(self.critic, x.detach(), tau, eps, part.cond, **kind))

    def _between(self, batch: Batch, stream: str) -> Tensor:
        return self.path(
            self.options.score_low + (self.options.score_high - self.options.score_low) * batch.noise.uniform(stream)
        )

    def _guidance(self, batch: Batch) -> float | Tensor:
        low, high = self.options.guidance_low, self.options.guidance_high
        return low if low == high else low + (high - low) * batch.noise.uniform("guidance")
