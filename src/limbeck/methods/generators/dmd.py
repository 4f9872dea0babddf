"""Distribution matching distillation: DMD (arXiv 2311.18828) and DMD2 (arXiv 2405.14867). Needs no data without the GAN.

A generator x = G(z, c) is pulled by the difference of two denoisers at x_t = a x + s e: the teacher D_T and a critic D_F
that is trained on the generator's own samples.

(1) g = n (D_F(x_t, t, c) - D_T^w(x_t, t, c)),  n = 1 / mean|x - D_T^w|          score difference in x0 space, no gradient
(2) L_dm = mean(x sg[g])                                                          dL/dx = g / numel
(3) L_F = E w(t) |D_F(x_t, t, c) - sg[x]|^2                                       critic: denoising of the samples
(4) L_D = softplus(l(x_t^fake)) + softplus(-l(x_t^real));  L_G = L_dm + lambda softplus(-l(x_t))      optional GAN (DMD2)
(5) x = D_G(x_{t_k}, t_k, c), x_{t_k} from steps 0..k-1 of G itself               K steps: backward simulation (DMD2)

G and D_F start from the teacher. One iteration is one student update and ``critic_steps`` critic updates (the two time
scales of DMD2: 5, or 10 for Stable Diffusion), the first of them on the student's own samples.

Differs from the paper / from its code: DMD's regression term on stored ODE pairs is left out, as in DMD2. The GAN reads
features of the frozen teacher (``gan_on="teacher"``, found more stable by f-distill) or, as DMD2, of the critic, whose
weights it then trains too (``"critic"``). Noise levels are given as sigma = s/a and serve every process. GAN terms draw
their own time (DMD2) or share the score difference's (``gan_time="shared"``, which f-distill needs).
"""

from dataclasses import dataclass, replace
from typing import Any

from limbeck.methods.generators.generator import Ingredients
from limbeck.methods.generators.options import ScoreOptions, dmd2_rate
from limbeck.methods.generators.score import ScoreDistillation
from limbeck.rules import DistributionMatching
from limbeck.training import EmaOptions


@dataclass(frozen=True)
class DMDOptions(ScoreOptions):
    """Options of DMD and DMD2: those of all score methods, and the normaliser."""

    normaliser: str = "mean_abs"
    """n of (1): mean_abs, dmd1 (a times that), none, eps, vsd (see limbeck.rules)."""


_PAPER = dmd2_rate(2e-6)
# Stable Diffusion XL: times U{20..980} of its 1000 steps; one step is called at t = 399, four at 999, 749, 499 and 249
_SDXL = DMDOptions(
    iterations=4_800, batch=128, student=dmd2_rate(5e-7), critic=dmd2_rate(5e-7), discriminator=dmd2_rate(5e-7), critic_steps=5,
    guidance=8.0, sigmas=(1.1606,), begin="unit", score_low=0.13799, score_high=13.0431, score_law="uniform", critic_law="process",
    critic_weight="eps", gan_weight=5e-3, gan_critic_weight=1e-2, gan_on="critic",
)  # fmt: skip
PRESETS = {
    "recommended": DMDOptions(),
    "paper-imagenet64": DMDOptions(
        iterations=400_000, batch=280, student=_PAPER, critic=_PAPER, discriminator=_PAPER, sigmas=(80.0,), critic_steps=5,
        score_low=0.00323, score_high=72.05, critic_law="process", gan_weight=3e-3, gan_critic_weight=1e-2,
        gan_on="critic", ema=EmaOptions("constant", 0.9999),
    ),
    "paper-sdxl": _SDXL,
    "paper-sdxl-4": replace(_SDXL, sigmas=(14.6146, 4.0817, 1.6129, 0.6932)),
}  # fmt: skip


class DMD(ScoreDistillation):
    """See the module. ``parts.images`` is needed where ``gan_weight`` > 0: (3) and (4) are those of score distillation.
    ``given``: a student, critic or producer of one's own, as :class:`ScoreDistillation` takes them."""

    def __init__(self, parts: Ingredients, options: DMDOptions = PRESETS["recommended"], **given: Any):
        super().__init__(parts, options, **given)  # critic (3), discriminator (4), producer of samples (5)
        self.rule = DistributionMatching(  # (1); its surrogate is (2)
            parts.teacher,
            self.critic,
            guidance=options.guidance,
            critic_guidance=options.critic_guidance,
            normaliser=options.normaliser,
        )


METHOD, OPTIONS = DMD, DMDOptions
__all__ = ["DMD", "PRESETS", "DMDOptions"]
