"""SNOOPI: SwiftBrush at a random guidance scale, and negative prompts for one-step generators (arXiv 2412.02687).

In the symbols of SwiftBrush (`limbeck.methods.generators.swiftbrush`), with y- a negative prompt:

(1) kappa ~ U(k_min, k_max);  eps^k = (1 - kappa) eps(null) + kappa eps(y)          the same kappa in both scores
(2) Z = Z+ - alpha Z-                                                               NASA, in every cross-attention
(3) alpha ~ U(0, alpha_max), x = G(z, y, y-; alpha)                                 NASA-T: the student is trained with (2)
(4) eps_T^k = (1 - kappa) eps_T(y-) + kappa eps_T(y)                                NASA-T: the teacher's; the critic keeps null

(1) is PG-SB: one fixed scale that suits one backbone lets another diverge; a random one broadens both score fields at no
cost. Values below 1 are meant: they lead towards the unconditional score. With one kappa on both sides g = 0 where the
samples have the teacher's law; with one on one side alone it is not. (2) without training (NASA-I) serves every one- or
few-step generator with cross-attention: :func:`negative_sampler`; with alpha = 0 a student of NASA-T is a plain one.

Differs from the paper / from its code (which is not public): kappa is drawn per sample, which it does not state, or per
batch (``kappa_per``); its third version credits Flash Diffusion (arXiv 2406.02347) with (1). The negative prompts of (3)
come with the task, and one is drawn per sample. s_t^2 is taken for the weight of g.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.denoisers import ClassifierFree, Cond, null_cond
from limbeck.errors import LimbeckError
from limbeck.interop import negative_prompt
from limbeck.methods.generators.generator import Generator, Ingredients, check_guidance
from limbeck.methods.generators.score import uniform_steps, whole_chain
from limbeck.methods.generators.swiftbrush import PRESETS as SWIFTBRUSH
from limbeck.methods.generators.swiftbrush import ClampedReward, SwiftBrush, SwiftBrushOptions, rewarded
from limbeck.rules import DistributionMatching, Sample, ScoreRule
from limbeck.training import Batch


@dataclass(frozen=True)
class SNOOPIOptions(SwiftBrushOptions):
    """Options of SNOOPI: those of SwiftBrush, the random scale and NASA-T."""

    kappa: tuple[float, float] = (0.5, 2.5)
    """k_min and k_max of (1); (1, 1) is plain, unguided variational score distillation."""
    kappa_of: Literal["both", "teacher", "critic", "neither"] = "both"
    """Whose scale is random; the other keeps guidance or critic_guidance (an ablation)."""
    kappa_per: Literal["sample", "batch"] = "sample"
    alpha: float = 0.0
    """alpha_max of (3); 0: trained without negative prompts."""
    mode: Literal["nasa", "nag"] = "nasa"
    negative_scores: Literal["teacher", "both", "none"] = "teacher"
    """Whose null condition the negative prompt replaces in (4), where alpha > 0."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.kappa[0] <= self.kappa[1]:
            raise LimbeckError(f"kappa needs 0 <= k_min <= k_max, not U({self.kappa[0]:g}, {self.kappa[1]:g})")
        if self.guidance_high is not None:
            raise LimbeckError(
                f"guidance_high={self.guidance_high:g}: SNOOPI's random scale is called kappa; leave the other out"
            )
        if self.alpha < 0:
            raise LimbeckError(f"alpha={self.alpha:g}: negative prompts are subtracted with alpha >= 0; 0 trains without them")


_PAPER: dict[str, Any] = {
    **{name: getattr(SWIFTBRUSH["paper-v2-full"], name) for name in SwiftBrushOptions.__dataclass_fields__},
    "kappa": (0.5, 4.0),
    "rewards": (ClampedReward("clip", 0.1, 0.37),),
}
PRESETS = {
    "recommended": SNOOPIOptions(),
    # the paper's table; U(0, 1) of the NASA-T variant is alpha = 1
    "paper-sd15": SNOOPIOptions(**{**_PAPER, "iterations": 60_000}),
    "paper-sd21": SNOOPIOptions(**{**_PAPER, "iterations": 40_000}),
    "paper-pixart-alpha": SNOOPIOptions(**{**_PAPER, "iterations": 50_000, "batch": 32, "kappa": (0.5, 3.0)}),
    "paper-pixart-alpha-nasa-t": SNOOPIOptions(
        **{**_PAPER, "iterations": 50_000, "batch": 32, "kappa": (0.5, 3.0), "alpha": 1.0}
    ),
}


class SNOOPI(SwiftBrush):
    """See the module. With ``alpha`` > 0 the task must bring ``negatives``, and the student have cross-attention to a text."""

    options: SNOOPIOptions

    def __init__(self, parts: Ingredients, options: SNOOPIOptions = PRESETS["recommended"]):
        o = options
        if o.kappa_of != "neither":
            check_guidance(parts.teacher, *o.kappa)
        super().__init__(parts, o)
        self.negatives = parts.negatives
        if o.alpha > 0:
            if self.negatives is None:
                raise LimbeckError(
                    f"alpha={o.alpha:g} trains with negative prompts, but the task brings none: give it negatives, texts of shape "
                    "(N, tokens, width), or train with alpha=0 and use negative_sampler"
                )
            with negative_prompt(self.student, self.negatives[:1], o.alpha, mode=o.mode):
                pass  # the text's width, alpha and the network are right, or this says so
            self.producer = steered
            check_guidance(parts.teacher, 0.0)

    def negative(self, batch: Batch) -> Tensor:
        """y- of each sample, (B, M, C')."""
        assert self.negatives is not None
        return self.negatives[batch.noise.randint("negative", 0, len(self.negatives)).to(self.negatives.device)]

    def guided_rule(self, batch: Batch) -> ScoreRule:
        o, rule = self.options, copy.copy(self.rule)
        assert isinstance(rule, DistributionMatching)
        if o.kappa_of != "neither":
            low, high = o.kappa
            u = batch.noise.uniform("kappa") if o.kappa_per == "sample" else batch.noise.shared_uniform("kappa")
            kappa = low if low == high else low + (high - low) * u  # (1); a fixed 1 asks for no null condition
            if o.kappa_of in ("both", "teacher"):
                rule.guidance = kappa
            if o.kappa_of in ("both", "critic"):
                rule.critic_guidance = kappa
        if o.alpha > 0 and o.negative_scores != "none":
            null = null_cond(self.teacher, batch.size) or {}
            rule.negative = {**null, text_of(self.teacher): self.negative(batch)}  # (4)
            rule.critic_negative = rule.negative if o.negative_scores == "both" else None
        return rewarded(rule, self.rewards, o.iterations) if self.rewards else rule


def text_of(denoiser: Any) -> str:
    """The name under which a denoiser is given its prompt: that of a diffusers model if it has such a null, else "text"."""
    return "encoder_hidden_states" if "encoder_hidden_states" in (denoiser.null or {}) else "text"


def steered(method: Any, batch: Batch, call: int) -> Sample:
    """(3): the method's samples with a negative prompt each, at one alpha for the whole batch."""
    o: SNOOPIOptions = method.options
    alpha = o.alpha * batch.noise.shared_uniform("alpha", call=call)
    produce = uniform_steps if o.match == "uniform" else whole_chain
    with negative_prompt(method.student, method.negative(batch), alpha, mode=o.mode):  # (2)
        return produce(method, batch, call)


def negative_sampler(
    method: Generator,
    negative: Tensor | None = None,
    alpha: float = 0.0,
    *,
    mode: str = "nasa",
    phi: float = 4.0,
    tau: float = 2.5,
    guidance: float = 1.0,
    ema: bool = True,
    steps: int | None = None,
) -> Callable[..., Tensor]:
    """NASA-I: the sampler of any generator whose student attends to a text, with a negative prompt (M, C') for all samples.

    ``alpha``: 0.1 (Stable Diffusion 1.5), 0.2 (2.1) and 0.5 (PixArt) are the paper's; ``mode``, ``phi``, ``tau``: see
    :func:`limbeck.interop.negative_prompt`. ``guidance`` w > 1 guides the outputs as well, with the negative prompt in the
    null condition's place: of a one-step generator it blends two images, and a warning says so. A negative prompt that has no
    effect is warned of too.
    """
    if negative is None or (alpha == 0 and guidance == 1):
        if negative is not None:
            warnings.warn("the negative prompt is ignored: alpha is 0 and guidance is 1; set alpha > 0", stacklevel=2)
        return method.sampler(ema, steps)
    rollout = method.rollout if steps is None else replace(method.rollout, times=tuple(method.times[:steps].tolist()))
    if alpha > 0 and guidance != 1 and rollout.K == 1:
        warnings.warn(
            f"guidance {guidance:g} of a one-step generator's outputs blends two images (the paper: human preference falls "
            "from 30.6 to 28.0); with alpha > 0 leave it at 1",
            stacklevel=2,
        )
    student: Any = method.roles["student"].best if ema else method.student
    null = {**(student.null or {}), text_of(student): negative}
    denoiser = student if guidance == 1 else ClassifierFree(student, guidance, negative=null)

    @torch.no_grad()
    def sample(z: Tensor, cond: Cond | None = None, noise: Callable[[int], Tensor] | None = None) -> Tensor:
        with negative_prompt(student, negative, alpha, mode=mode, phi=phi, tau=tau):  # (2)
            return rollout(denoiser, z, cond, noise=noise).x

    return sample


METHOD, OPTIONS = SNOOPI, SNOOPIOptions
__all__ = ["PRESETS", "SNOOPI", "SNOOPIOptions", "negative_sampler", "steered"]
