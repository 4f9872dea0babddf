"""Score identity distillation, one step or few (arXiv 2404.04057, 2505.12674). Needs no data.

The Fisher divergence between the noised laws of generator and teacher, made computable by score identities. With
x = G(z, c), x_t = a x + s e, the teacher D_T and a critic D_F trained on the generator's samples,

(1) L_G = w(t) (D_T - D_F) . [(D_T - x) - alpha (D_T - D_F)]     w = 1 / sg[mean|x - D_T|]
(2) L_F = E w_F(t) |D_F(x_t, t, c) - sg[x]|^2

(1) is differentiated through x and through the inputs of both networks; their parameters are frozen in it. alpha = 1
leaves w (D_T - D_F) . (D_F - x). One iteration is a critic update, then a student update, each with fresh noise and
conditions. With K noise levels one step k ~ U{1..K} is drawn per iteration for both: the uniform mixture of the steps.

(3) guidance: w of the teacher in (1); critic_guidance: w of the critic in (1); critic_training_guidance: in (2)

Differs from the paper / from its code: losses are means over elements (theirs are sums times 100: Adam does not see the
factor); non-finite gradients stop the run instead of becoming 0 or 1e5; the Fisher divergence hardly sees the weights of
well separated modes, so expect SiD to miss mode weights that distribution matching gets right.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from limbeck.denoisers import check_denoiser
from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import Ingredients, first_rows
from limbeck.methods.generators.score import ScoreDistillation, ScoreOptions
from limbeck.rules import ScoreIdentity
from limbeck.training import EmaOptions, OptimizerOptions


@dataclass(frozen=True)
class SiDOptions(ScoreOptions):
    """Options of SiD: those of all score methods, alpha and the weight. The defaults are what works on the digits."""

    iterations: int = 1200
    batch: int = 64
    student: OptimizerOptions = OptimizerOptions(lr=5e-4, warmup=20, decay="cosine", clip=1.0)
    critic: OptimizerOptions = OptimizerOptions(lr=1e-3, warmup=20, decay="cosine", clip=1.0)
    alpha: float = 1.2
    weight: str = "sid"


_PAPER = OptimizerOptions(lr=1e-5, betas=(0.0, 0.999))
PRESETS = {
    "recommended": SiDOptions(),
    "paper-cifar10": SiDOptions(
        iterations=2_000_000, batch=256, student=_PAPER, critic=_PAPER, ema=EmaOptions("half_life", 1953.0, ramp=0.05),
        score_low=0.002, score_high=29.1, critic_mean=-1.2, critic_std=1.2,
    ),
    "paper-afhq64": SiDOptions(
        iterations=2_000_000, batch=256, student=_PAPER, critic=_PAPER, ema=EmaOptions("half_life", 1953.0, ramp=0.05),
        alpha=1.0, score_low=0.002, score_high=29.1, critic_mean=-1.2, critic_std=1.2,
    ),
}  # fmt: skip


class SiD(ScoreDistillation):
    """See the module. The teacher must let gradients through to its input. ``given``: as :class:`ScoreDistillation` takes it."""

    order: Literal["student", "critic"] = "critic"

    def __init__(self, parts: Ingredients, options: SiDOptions = PRESETS["recommended"], **given: Any):
        check_denoiser(parts.teacher, *first_rows(parts), gradients=True)
        if not 0.5 <= options.alpha <= 1.5:
            warnings.warn(f"alpha={options.alpha:g} lies outside [0.5, 1.5], where SiD was found to work", stacklevel=2)
        if options.critic_guidance == 0 and options.guidance != 1:
            raise LimbeckError(f"Zero-CFG (critic_guidance 0) wants an unguided teacher, not guidance {options.guidance:g}")
        super().__init__(parts, options, **given)  # critic (2), its guidance (3)
        self.rule = ScoreIdentity(  # (1), (3)
            parts.teacher, self.critic, alpha=options.alpha, weight=options.weight,
            guidance=options.guidance, critic_guidance=options.critic_guidance,
        )  # fmt: skip


METHOD, OPTIONS = SiD, SiDOptions
__all__ = ["PRESETS", "SiD", "SiDOptions"]
