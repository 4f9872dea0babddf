"""SwiftBrush: variational score distillation of a one-step generator, image-free (arXiv 2312.05239; v2: 2408.14176).

Prompts are all that is needed. Two scores are compared at x_t = a_t x + s_t e: the teacher's, and that of the same teacher
with low-rank adapters that learn the student's samples while it is trained. T is the schedule's last time, y a prompt,

(1) x = (z - s_T eps_G(z, T, y)) / a_T                                    student: one call; a_T, s_T read from the process
(2) eps^w = eps(null) + w (eps(y) - eps(null))                            guidance, the same w in both scores
(3) g = s_t^2 (eps_T^w(x_t, t, y) - eps_F^w(x_t, t, y))                   no gradient
(4) L_G = mean(x sg[g])                                                   dL/dx = g / numel
(5) L_F = E mean (a_t eps_F(x_t, t, y') - a_t e)^2                        y' = null for a whole batch with probability 0.1
(6) g = s_t^2 (eps_T^w(x_t, t, y) - e)                                    SDS: the baseline, whose samples collapse
(7) L_G + lambda_k max(0, tau - r(x, y)), lambda_k falls to 0             v2: rewards r (CLIP score), clamped at tau

g = 0 wherever the samples have the teacher's law, for every w; so guidance does not sharpen the student as it does where the
teacher alone is guided (DMD). With adapters that start at zero, the first g is exactly 0. Version 2 trains one student in
full and one as adapters on its start (``student_rank``, with a reward); :func:`limbeck.networks.fused` averages the two.

Differs from the paper / from its code: predictions are compared as x0, with the weights that make them eps. a_T and s_T are
not constants of one schedule, and an eps student is refused where a_T leaves nothing to divide by; students that predict x0
or v start anywhere. A gradient that is not finite stops the run, where the code replaces it. Rewards act on x: one of
decoded images decodes them itself, and must let its gradient through. The form in which the reward's weight falls is not
given: it is linear. Version 2's optional term on image pairs is left out. Schedules that are no DDPM table compare scores and
train the critic at noise levels (``score_low``, ``critic_mean``, ...) instead of whole steps.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond, null_cond
from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import Ingredients, trained_copy
from limbeck.methods.generators.score import ScoreDistillation, ScoreOptions
from limbeck.noise import DDPM, UniformInteger, ramp
from limbeck.rules import DistributionMatching, Pull, Sample, ScoreRule, frozen
from limbeck.tasks import Reward, scored
from limbeck.training import Batch, EmaOptions, OptimizerOptions, Step

LEAST_SIGNAL, LITTLE_SIGNAL = 1e-3, 0.02


@dataclass(frozen=True)
class ClampedReward:
    """(7): a reward by name, lambda at the first iteration, and tau, above which it no longer pulls."""

    name: str
    weight: float = 0.1
    tau: float = 0.35


@dataclass(frozen=True)
class SwiftBrushOptions(ScoreOptions):
    """Options of SwiftBrush: those of all score methods, and its own. The defaults are what works on the digits."""

    iterations: int = 1500
    student: OptimizerOptions = OptimizerOptions(lr=5e-4, warmup=20, decay="cosine", clip=1.0)
    critic: OptimizerOptions = OptimizerOptions(lr=2e-3, warmup=20, decay="cosine", clip=1.0)
    guidance: float = 1.5
    critic_guidance: float = 1.5
    """w of the critic; (2) wants the teacher's."""
    critic_weight: str = "edm"
    """Of the critic's loss. (5) is "signal_eps", for variance-preserving schedules; elsewhere it neglects the noisy levels."""
    critic_rank: int = 16
    critic_layers: tuple[str, ...] = ()
    """Layers with adapters, by name or last part of a name (none: all linear layers and convolutions)."""
    critic_null: float = 0.1
    """Probability with which the critic's whole batch is trained on the null condition."""
    student_alpha: float | None = None
    """alpha of the student's adapters (None: adapter_alpha)."""
    student_layers: tuple[str, ...] = ()
    score_steps: tuple[float, float] = (0.02, 0.98)
    """(3) is taken at the steps of a DDPM table between these shares of it, both included (20 to 980 of 1000)."""
    sds: bool = False
    """(6) instead of (3): no critic."""
    rewards: tuple[ClampedReward, ...] = field(default=())

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.score_steps[0] < self.score_steps[1] <= 1:
            raise LimbeckError(f"score_steps needs 0 <= low < high <= 1, shares of the schedule, not {self.score_steps}")
        if not self.sds and self.critic.lr <= self.student.lr:
            warnings.warn(
                f"the critic's learning rate {self.critic.lr:g} is not above the student's {self.student.lr:g}: the critic must be "
                "the faster one, or its score is that of older samples",
                stacklevel=3,
            )
        if self.guidance < 1 and self.guidance_high is None:
            warnings.warn(f"guidance {self.guidance:g} < 1 leads away from the prompts; 1 is none", stacklevel=3)
        if not self.sds and self.guidance_high is None and self.guidance != self.critic_guidance:
            warnings.warn(
                f"guidance {self.guidance:g} and critic_guidance {self.critic_guidance:g} differ: the student would be pulled away "
                "from the teacher's own law; set both to one scale",
                stacklevel=3,
            )


_STUDENT = OptimizerOptions(lr=1e-6, betas=(0.9, 0.999), clip=1.0)
_CRITIC = OptimizerOptions(lr=1e-3, betas=(0.9, 0.999), clip=1.0)
_PAPER: dict[str, Any] = {
    "iterations": 61_000, "batch": 64, "student": _STUDENT, "critic": _CRITIC, "ema": EmaOptions("constant", 0.9999),
    "sigmas": (), "begin": "unit", "guidance": 4.5, "critic_guidance": 4.5, "critic_rank": 64, "adapter_alpha": 108.0,
    "critic_layers": ("to_q", "to_v"), "critic_weight": "signal_eps",
}  # fmt: skip
_V2: dict[str, Any] = {
    **_PAPER,
    "student": OptimizerOptions(lr=1e-6, kind="adamw", betas=(0.9, 0.999), weight_decay=0.01, clip=1.0),
    "critic": OptimizerOptions(lr=1e-3, kind="adamw", betas=(0.9, 0.999), weight_decay=0.01, clip=1.0),
    "adapter_alpha": 128.0,
}
PRESETS = {
    "recommended": SwiftBrushOptions(),
    # Stable Diffusion 2.1-base; iterations: 3 epochs of 1.3 million prompts
    "paper-sd21": SwiftBrushOptions(**_PAPER),
    # the two students of version 2, which start from SD-Turbo; their iterations and weight decay are not given
    "paper-v2-full": SwiftBrushOptions(**_V2),
    "paper-v2-low-rank": SwiftBrushOptions(
        **_V2, student_rank=256, student_alpha=512.0, student_layers=("to_q", "to_v"), rewards=(ClampedReward("clip"),)
    ),
}


class SwiftBrush(ScoreDistillation):
    """See the module. Raises LimbeckError for an eps student whose last step has no signal, and for a first input of unit
    noise where the schedule has another level."""

    options: SwiftBrushOptions
    unshared = "prompts are dropped for the critic's own loss, and rewards may stand beside the rule"

    def __init__(self, parts: Ingredients, options: SwiftBrushOptions = PRESETS["recommended"]):
        o, closed = options, not any(True for _ in getattr(parts.teacher, "parameters", list)())
        alpha = o.adapter_alpha if o.student_alpha is None else o.student_alpha
        base = parts.begin if closed else parts.teacher
        super().__init__(
            parts,
            o,
            student=trained_copy(parts.begin, o.student_rank, alpha, o.student_layers),
            critic=trained_copy(base, o.critic_rank, o.adapter_alpha, o.critic_layers),
        )
        self._check_start()
        if o.sds:
            del self.roles["critic"]
        self.rule = DistributionMatching(  # (2), (3), and (6) without a critic; its surrogate is (4)
            parts.teacher, None if o.sds else self.critic, guidance=o.guidance, critic_guidance=o.critic_guidance, normaliser="vsd"
        )  # fmt: skip
        self.rewards = [(r, parts.rewarded(r.name)) for r in o.rewards]
        if isinstance(self.process, DDPM):
            last = self.process.steps - 1
            low, high = (min(round(share * self.process.steps), last) for share in o.score_steps)
            self.score_times, self.critic_times = UniformInteger(low, high), UniformInteger(0, last)

    def _check_start(self) -> None:
        """(1) of an eps student: what it predicts is divided by a_T."""
        a, s = (float(f(self.times[0])) for f in (self.process.a, self.process.s))
        inner = getattr(self.student, "denoiser", self.student)
        if getattr(inner, "prediction", "x0") in ("eps", "score") and a < LITTLE_SIGNAL:
            text = (
                f"the student predicts {inner.prediction} and starts at time {float(self.times[0]):g}, where the signal is a_T = "
                f"{a:.3g}: x = (z - s eps) / a multiplies its errors by {1 / max(a, 1e-12):.3g}; start at a lower noise level "
                "(sigmas), or from a network that predicts x0 or v"
            )
            if a < LEAST_SIGNAL:
                raise LimbeckError(text)
            warnings.warn(text, stacklevel=4)
        if self.options.begin == "unit" and abs(s - 1) > 0.05:
            raise LimbeckError(
                f"begin='unit' starts from noise of size 1, but the schedule has s = {s:.3g} at time {float(self.times[0]):g}; use "
                "begin='noise'"
            )

    def step(self, batch: Batch) -> Step:
        if self.options.sds:
            yield from self.student_update(batch)
        else:
            yield from super().step(batch)  # (5): the critic's loss

    def critic_condition(self, batch: Batch, cond: Cond | None) -> Cond | None:
        """y' of (5)."""
        draw = int(batch.index[0]) // max(batch.stride, 1) % self.draws
        if self.critic.null and batch.noise.shared_uniform("critic null", call=draw) < self.options.critic_null:
            return null_cond(self.critic, batch.size)
        return super().critic_condition(batch, cond)

    def guided_rule(self, batch: Batch) -> ScoreRule:
        rule = super().guided_rule(batch)
        return rewarded(rule, self.rewards, self.options.iterations) if self.rewards else rule


def rewarded(rule: ScoreRule, rewards: Sequence[tuple[ClampedReward, Reward]], iterations: int) -> ScoreRule:
    """A rule with the gradients of the clamped rewards added to its pull. Logs: the mean of each reward."""

    def pulled(sample: Sample, t: Tensor, eps: Tensor, step: int = 0) -> Pull:
        pull = rule(sample, t, eps, step)
        gradient, logs = pull.gradient, dict(pull.logs)
        for options, reward in rewards:
            push, value = reward_gradient(reward, sample.x, sample.cond, options.tau, options.name)
            gradient = gradient + ramp(step, 0, options.weight, 0.0, iterations) * push  # (7)
            logs[f"reward {options.name}"] = value
        return replace(pull, gradient=gradient, logs=logs)

    return pulled


def reward_gradient(
    reward: Callable[..., Tensor], x: Tensor, cond: Cond | None, tau: float, name: str = ""
) -> tuple[Tensor, Tensor]:
    """(numel(x) d/dx mean max(0, tau - r(x, cond)), like a pull's; the mean reward).

    Raises LimbeckError for a reward that is not one number per sample, or lets no gradient through.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad(), frozen(reward):
        value = scored(reward, name, x, cond)
        loss = (tau - value).clamp(min=0).mean()
        gradient = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise LimbeckError(
            f"no gradient comes through the reward {name!r}: it detaches its images, runs under no_grad, or rounds them to "
            "integers on the way; without one it would teach nothing"
        )
    return x.numel() * gradient, value.detach().mean()


METHOD, OPTIONS = SwiftBrush, SwiftBrushOptions
__all__ = ["PRESETS", "ClampedReward", "SwiftBrush", "SwiftBrushOptions", "reward_gradient", "rewarded"]
