"""Score identity distillation, one step or few (SiD, LSG, SiDA, few-step SiD, SiD-DiT). Needs no data without the GAN.

arXiv 2404.04057, 2406.01561, 2410.14919, 2505.12674, 2509.25127. The Fisher divergence between the noised laws of generator
and teacher, made computable by score identities. With x = G(z, c), x_t = a x + s e, the teacher D_T and a critic D_F trained
on the generator's samples,

(1) L_G = w(t) (D_T - D_F) . [(D_T - x) - alpha (D_T - D_F)]     w = 1 / sg[mean|x - D_T|]
(2) L_F = E w_F(t) |D_F(x_t, t, c) - sg[x]|^2

(1) is differentiated through x and through the inputs of both networks; their parameters are frozen in it. alpha = 1
leaves w (D_T - D_F) . (D_F - x). One iteration is a critic update, then a student update, each with fresh noise and
conditions.

(3) D_w = D(null) + w (D(c) - D(null)): k1 of the critic in (2), k2 = k3 of the critic in (1), k4 of the teacher in (1)
(4) x^(i+1) = D_G(a x^(i) + s n_i, t_i, c), i = 0..K-1: K steps of one network; (1) and (2) on one of them, k ~ U{1..K}
(5) L_D = lam_D / 2 [BCE(l(x_t^real), 1) + BCE(l(x_t), 0)], added to (2);  l: the mean over the channels of D_F's encoder
(6) L = L_G / 2 + lam w(t) BCE(l(x_t), 1) / 2                                   optional Diffusion-GAN, needs real images

With K noise levels one step k is drawn per iteration for both updates, from (seed, iteration) alone, so that it cannot differ
between processes; the steps before it run without gradient: the uniform mixture of the K outputs is matched to the data, and
one network serves every number of steps up to K. ``match="final"`` differentiates the whole chain instead.

Differs from the papers / from their code: losses are means over elements (theirs are sums times 100: Adam does not see the
factor); non-finite gradients stop the run instead of becoming 0 or 1e5. In (6) w and BCE of a sample are multiplied, or
(``gan_scale="batch"``, SiDA) their means over the batch. Anti-CFG's scale and final-step matching are unverified. The Fisher
divergence hardly sees the weights of well separated modes: SiD comes to them later than DMD (docs/images/sid_limitation.png).
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.denoisers import check_denoiser
from limbeck.errors import LimbeckError, unknown
from limbeck.methods.generators.generator import Ingredients, first_rows
from limbeck.methods.generators.score import ScoreDistillation, ScoreOptions
from limbeck.rules import Pull, ScoreIdentity
from limbeck.training import EmaOptions, OptimizerOptions, Total

STRATEGIES = ("none", "teacher", "long_short", "zero", "anti")


def guidance_of(strategy: str, w: float | None = None) -> tuple[float, float, float]:
    """(k1, k2, k4) of (3): critic in its own loss, critic in the student's, teacher.

    none: no guidance; teacher: classic guidance, w > 1; long_short: all of them (1.5 for the best FID, 4.5 for the best CLIP
    score); zero: the critic without condition, the teacher unguided; anti: the critic pushed away, w < 0, the teacher
    unguided. w None: 4.5, or -1 for anti. Raises LimbeckError for unknown names and scales that a strategy does not take.
    """
    if strategy == "anti":
        w = -1.0 if w is None else w
        if w >= 0:
            raise LimbeckError(f"Anti-CFG pushes the critic away from the condition: give a negative scale, not {w:g}")
        return w, w, 1.0
    w = 4.5 if w is None else w
    table = {"none": (1.0, 1.0, 1.0), "teacher": (1.0, 1.0, w), "long_short": (w, w, w), "zero": (0.0, 0.0, 1.0)}
    if strategy not in table:
        raise unknown("guidance strategy", strategy, STRATEGIES)
    return table[strategy]


@dataclass(frozen=True)
class SiDOptions(ScoreOptions):
    """Options of SiD: those of all score methods, alpha and the weight. The defaults are what works on the digits."""

    iterations: int = 1200
    batch: int = 64
    student: OptimizerOptions = OptimizerOptions(lr=5e-4, warmup=20, decay="cosine", clip=1.0)
    critic: OptimizerOptions = OptimizerOptions(lr=1e-3, warmup=20, decay="cosine", clip=1.0)
    alpha: float = 1.2
    weight: str = "sid"
    """w(t): sid, none, one_minus_s (flow teachers), one_minus_s_squared, inverse_s, inverse_s_squared, root_snr or snr."""
    strategy: Literal["none", "teacher", "long_short", "zero", "anti"] = "none"
    """Sets the three scales of (3); none: they are as given, 1 by default."""
    strategy_scale: float | None = None
    """The strategy's w (None: 4.5, or -1 for anti)."""
    strategy_drop: float = 0.1
    """Share of conditions that the critic is trained without where a strategy guides it."""
    gan_scale: Literal["none", "sample", "batch"] = "none"
    """L_G + lam BCE; or (6) with w(t) of each sample, or with the batch's means."""

    @property
    def guided(self) -> "SiDOptions":
        """The same with the strategy's scales and drops written out."""
        if self.strategy == "none":
            return self
        scales = self.critic_training_guidance, self.critic_guidance, self.guidance
        if scales != (1, 1, 1):
            raise LimbeckError(f"the strategy {self.strategy!r} sets the guidance scales; leave {scales} at 1, or use 'none'")
        k1, k2, k4 = guidance_of(self.strategy, self.strategy_scale)
        drop = self.strategy_drop if (k1, k2) != (1, 1) and self.critic_drop == 0 else self.critic_drop
        return replace(
            self, strategy="none", critic_training_guidance=k1, critic_guidance=k2, guidance=k4, critic_drop=drop
        )  # fmt: skip


_PAPER = OptimizerOptions(lr=1e-5, betas=(0.0, 0.999))
_SLOW = OptimizerOptions(lr=1e-6, betas=(0.0, 0.999))
_CLIPPED = replace(_SLOW, clip_value=1 / 16384)
_HALF_MIMG = EmaOptions("half_life", 1953.0, ramp=0.05)
_FLOW = SiDOptions(  # t = sigmoid(N(ln 2, 1.6^2)) for both; t_i = 0.999 (1 - i / 4)
    iterations=7800, batch=256, student=_SLOW, critic=_SLOW, ema=EmaOptions("constant", 0.0), alpha=1.0, weight="one_minus_s",
    sigmas=(999.0, 2.988, 0.998, 0.3329), score_law="critic", critic_mean=math.log(2), critic_std=1.6,
    critic_weight="velocity", strategy="long_short", strategy_scale=4.5,
)  # fmt: skip
PRESETS = {
    "recommended": SiDOptions(),
    "paper-cifar10": SiDOptions(
        iterations=2_000_000, batch=256, student=_PAPER, critic=_PAPER, ema=_HALF_MIMG,
        score_low=0.002, score_high=24.41, critic_mean=-1.2, critic_std=1.2,
    ),
    "paper-afhq64": SiDOptions(
        iterations=2_000_000, batch=256, student=_PAPER, critic=_PAPER, ema=_HALF_MIMG,
        alpha=1.0, score_low=0.002, score_high=24.41, critic_mean=-1.2, critic_std=1.2,
    ),
    # SiDA: the student waits for 100,000 images, its adversarial term for 200,000
    "paper-cifar10-sida": SiDOptions(
        iterations=2_000_000, batch=256, student=_PAPER, critic=_PAPER, ema=_HALF_MIMG, alpha=1.0, score_low=0.002,
        score_high=24.41, critic_mean=-1.2, critic_std=1.2, gan_weight=0.01, gan_critic_weight=0.5, gan_on="critic",
        gan_head="mean", gan_time="shared", gan_paired=True, gan_scale="batch", student_after=391, gan_after=782,
    ),
    # SD-LSG: 20 to 979 of 1,000 (scaled-linear betas), from 625; the error in v times SNR / (SNR + 1) is that in eps; gradients
    # of a sum over the 16,384 numbers of a sample clipped by value at 1
    "paper-sd15-lsg": SiDOptions(
        iterations=19_500, batch=512, student=_CLIPPED, critic=_CLIPPED,
        ema=EmaOptions("half_life", 97.7, ramp=0.05), alpha=1.0, sigmas=(2.5017,), score_law="uniform", critic_law="score",
        score_low=0.13799, score_high=12.9664, critic_weight="eps", strategy="long_short", strategy_scale=1.5,
    ),
    "paper-sid-dit": _FLOW,
    # the generator waits for 20,000 images, its adversarial term for 40,000
    "paper-sid-dit-gan": replace(
        _FLOW, gan_weight=1.0, gan_critic_weight=0.5, gan_on="critic", gan_head="mean", gan_time="shared", gan_paired=True,
        gan_scale="sample", gan_clamp=10.0, student_after=78, gan_after=156,
    ),
}  # fmt: skip


class SiD(ScoreDistillation):
    """See the module. The teacher must let gradients through to its input. ``given``: as :class:`ScoreDistillation` takes it."""

    order: Literal["student", "critic"] = "critic"

    def __init__(self, parts: Ingredients, options: SiDOptions = PRESETS["recommended"], **given: Any):
        check_denoiser(parts.teacher, *first_rows(parts), gradients=True)
        options = options.guided  # (3)
        if not 0.5 <= options.alpha <= 1.5:
            warnings.warn(f"alpha={options.alpha:g} lies outside [0.5, 1.5], where SiD was found to work", stacklevel=2)
        if options.critic_guidance == 0 and options.guidance != 1:
            raise LimbeckError(f"Zero-CFG (critic_guidance 0) wants an unguided teacher, not guidance {options.guidance:g}")
        super().__init__(parts, options, **given)  # critic (2) with its discriminator (5), rollout (4)
        self.gan_scale = options.gan_scale
        self.rule = ScoreIdentity(  # (1)
            parts.teacher, self.critic, alpha=options.alpha, weight=options.weight,
            guidance=options.guidance, critic_guidance=options.critic_guidance,
        )  # fmt: skip

    def with_adversary(self, pull: Pull, gan: Tensor) -> Any:
        """(6)"""
        if self.gan_scale == "none":
            return (yield from super().with_adversary(pull, gan))
        assert pull.scale is not None
        w = pull.scale
        if self.gan_scale == "batch":
            total, count = yield Total(torch.stack([w.sum(), w.new_tensor(float(len(w)))]))
            w = (total / count).expand(len(w))
        return (pull.gradient + self.options.gan_weight * w.reshape(-1, *[1] * (gan.ndim - 1)) * gan) / 2


METHOD, OPTIONS = SiD, SiDOptions
__all__ = ["PRESETS", "STRATEGIES", "SiD", "SiDOptions", "guidance_of"]
