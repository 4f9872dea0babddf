"""f-distill: one-step students that match any f-divergence, not the reverse KL alone (arXiv 2502.15681). Needs images.

With p_t and q_t the laws of teacher and student noised to t, r = p_t / q_t and D_f(p_t || q_t) = E_q f(r),

(1) grad D_f = -E[h(r) (S_p - S_q)(x_t, t) a_t dG],  h(r) = r^2 f''(r)         DMD's pull with one weight per sample
(2) r = exp l(x_t, t, c), l in [-10, 10], r in [0.1, 20]                        l: mean logit of the discriminator's heads
(3) r <- r / (m_b + 1e-6),  m_b <- ema m_b + (1 - ema) mean of r in bin b       E_q[r] = 1 must hold at every noise level
(4) h <- h / (mean of h + 1e-6)                                                 one scale for the whole batch
(5) g = h (D_F - D_T^w) / mean|x - D_T^w|,  L_G = mean(x sg[g]) + lambda softplus(-l(x_t))
(6) L_D = softplus(l(x_t^fake)) + softplus(-l(x_t^real)),  L_F = E w(t) |D_F(x_t, t, c) - sg[x]|^2

    key       f(r)                              h(r)        covers modes
    rkl       -log r                            1           no: this is DMD, bit for bit
    sf        (r + 1) log(1/2 + 1/(2r))         1/(1+r)     no
    js        r log r - (r + 1) log((r+1)/2)    r/(1+r)     between
    sh        1 - sqrt(r)                       sqrt(r)/4   between
    kl        r log r                           r           yes, noisy
    jf        (r - 1) log r                     1+r         yes, noisiest
    neyman    (1 - r)^2 / r                     2/r         least of all; not in the paper

The ratio, the score difference and (by default) the generator's adversarial term are taken at the same (x_t, t). The bins of
(3) have equal width in the uniform number that the law of t is made from, and so hold equally many samples: in sigma^(1/7)
between score_low and score_high, in the process's time where score_law is uniform. Sums for (3) and (4) are over the whole
batch, micro-batches and ranks. rkl skips (2) to (4).

Differs from the paper / from its authors' code: the code's bins have equal width in t; h of sh keeps its 1/4 and that of
neyman its 2, which (4) removes. A logit that is not finite stops the run. One iteration here is one student update and
``critic_steps`` critic updates, so that their 60,000 alternating iterations with 1 : 4 are 12,000. The logits cost a forward
pass of the watched network of their own. The second phase of ImageNet (rate 5e-7) is a second run.
"""

from dataclasses import dataclass
from typing import Any, Literal

from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import Ingredients
from limbeck.methods.generators.options import ScoreOptions, dmd2_rate
from limbeck.methods.generators.ratio import RatioWeighted
from limbeck.rules import DistributionMatching
from limbeck.training import EmaOptions


@dataclass(frozen=True)
class FDistillOptions(ScoreOptions):
    """Options of f-distill: those of all score methods, the divergence and the bins. The defaults are DMD's on the
    digits, with a discriminator; they were not tried there."""

    gan_weight: float = 1e-3
    gan_time: Literal["own", "shared"] = "shared"
    divergence: str = "js"
    """f: rkl, sf, js, sh, kl, jf or neyman."""
    ratio_bins: int = 10
    ratio_ema: float = 0.9
    """What a bin keeps of its average (0: the current batch alone decides)."""
    normaliser: str = "mean_abs"
    """What the score difference is multiplied with, as in DMD."""


def _paper(lr: float) -> dict[str, Any]:
    rate = dmd2_rate(lr)
    return {"student": rate, "critic": rate, "discriminator": rate, "ratio_ema": 0.0, "critic_law": "process"}


# times U{20..980} of 1000 Karras levels, or of the 1000 steps of Stable Diffusion
_EDM: dict[str, Any] = {"sigmas": (80.0,), "score_low": 0.00323, "score_high": 72.05}
PRESETS = {
    "recommended": FDistillOptions(),
    "paper-cifar10": FDistillOptions(
        iterations=12_000, batch=2048, critic_steps=4, gan_weight=1e-3, gan_r1=1.0, divergence="kl",
        ema=EmaOptions("constant", 0.9999), **_EDM, **_paper(1e-4),
    ),
    "paper-imagenet64": FDistillOptions(
        iterations=76_000, batch=512, critic_steps=4, gan_weight=3e-3, ema=EmaOptions("constant", 0.99995),
        **_EDM, **_paper(2e-6) | {"ratio_ema": 0.5},
    ),
    "paper-sd15": FDistillOptions(
        iterations=6_000, batch=1024, critic_steps=9, gan_weight=1e-3, gan_r1=1.0, guidance=1.75,
        ema=EmaOptions("constant", 0.9996), sigmas=(14.6146,), begin="unit", score_low=0.13799, score_high=13.0431,
        score_law="uniform", critic_weight="eps", **_paper(1e-5),
    ),
}  # fmt: skip
"""Unverified: what the paper's own text says of bins and averages (these are its authors' code's), and the critic's law."""


class FDistill(RatioWeighted):
    """See the module. (5) and (6) are those of score distillation. ``given``: a student, critic or producer of one's own.

    Raises LimbeckError without images, without the adversarial term, for a guided critic and an unknown divergence; warns where
    the batch is too small for the bins.
    """

    def __init__(self, parts: Ingredients, options: FDistillOptions = PRESETS["recommended"], **given: Any):
        if options.divergence != "rkl":
            _check(parts, options)
        self.weigh_by(options.divergence, options.ratio_bins, options.ratio_ema, options.batch)  # (1) to (4)
        random = options.guidance_high is not None and options.guidance_random != "teacher"
        if (options.critic_guidance, options.critic_training_guidance) != (1, 1) or random:
            raise LimbeckError(
                f"the critic of f-distill is not guided: critic_guidance={options.critic_guidance:g} and "
                f"critic_training_guidance={options.critic_training_guidance:g} must be 1, and a random guidance is the "
                "teacher's (guidance_random='teacher')"
            )
        super().__init__(parts, options, **given)  # critic and discriminator (6)
        self.rule = DistributionMatching(
            parts.teacher, self.critic, guidance=options.guidance, normaliser=options.normaliser
        )  # (5)


def _check(parts: Ingredients, o: FDistillOptions) -> None:
    if not parts.images:
        raise LimbeckError(
            "f-distill needs real (or teacher-sampled) images for the ratio; give data, or use dmd or sid, which need none"
        )
    if o.gan_weight <= 0:
        raise LimbeckError(
            f"gan_weight={o.gan_weight:g}: the ratio needs the discriminator; set gan_weight > 0, or divergence to 'rkl'"
        )


METHOD, OPTIONS = FDistill, FDistillOptions
__all__ = ["PRESETS", "FDistill", "FDistillOptions"]
