"""Score implicit matching: one-step distillation by a whole family of score distances (arXiv 2410.16794). Needs no data.

With x = G(z, c), x_t = a x + s e, the scores S_T of the teacher and S_F of a critic trained on the generator's samples,
and any distance d with d(0) = 0,

(1) D = E_t w(t) E_{x_t} d(y_t),  y_t = S_F(x_t) - S_T(x_t)                     x_t drawn from the generator, held fixed
(2) L_G = w(t) (-d'(y_t)) . (S_F(x_t) - grad log q(x_t|x)),  grad log q = -e/s        its mean has the gradient of (1)
(3) S_F - grad log q = a (D_F - x) / s^2,  y_t = a (D_F - D_T) / s^2            what is coded, in x0 predictions
(4) d'(y) = y / sqrt(|y|^2 + c^2)                                               pseudo-Huber, the norm over a whole sample
(5) L_F = E w_F(t) |D_F(x_t, t, c) - sg[x]|^2

(2) is differentiated through x, through the inputs of both networks and through d'; their parameters are frozen in it.
d = |y|^2 is SiD with alpha = 1; pseudo-Huber takes the size of each sample's residual out of its pull, so that training
hardly feels the scale. One iteration is a critic update, then a student update, each with fresh noise and conditions.

Differs from the paper / from its code: no training code was published. The factor a / s^2 of (3) is left to w(t); c is
meant in x0 space unless ``space="score"``, by default 0.00054 sqrt(D) (the paper's is unverified). Losses are means over
elements; non-finite gradients stop the run instead of becoming 0 or 1e5. Networks that know only the levels of a table
are asked at those with ``score_law="uniform"``.
"""

from dataclasses import dataclass
from typing import Literal

from limbeck.denoisers import check_denoiser
from limbeck.methods.generators.generator import Ingredients, first_rows
from limbeck.methods.generators.score import ScoreDistillation, ScoreOptions
from limbeck.rules import ScoreImplicit
from limbeck.tasks import imported
from limbeck.training import EmaOptions, OptimizerOptions


@dataclass(frozen=True)
class SIMOptions(ScoreOptions):
    """Options of SIM: those of all score methods, the distance and the weight. The defaults are what works on the digits."""

    iterations: int = 1200
    batch: int = 64
    student: OptimizerOptions = OptimizerOptions(lr=5e-4, warmup=20, decay="cosine", clip=1.0)
    critic: OptimizerOptions = OptimizerOptions(lr=1e-3, warmup=20, decay="cosine", clip=1.0)
    distance: str = "pseudo_huber"
    """l2, pseudo_huber, unit, power, power_each, huber or log_cosh (see limbeck.rules), or your own d'(y) as MODULE:NAME."""
    c: float | None = None
    """Scale of pseudo_huber (None: 0.00054 sqrt(D)), huber and log_cosh (None: 1)."""
    power: float = 2.0
    """k of power and power_each, at least 1."""
    space: Literal["x0", "score"] = "x0"
    """Where the distance is taken: of x0 predictions, or of scores."""
    weight: str = "none"
    """w(t): none, or one of SiD's ("sid": 1 / mean|x - D_T|)."""


_PAPER = OptimizerOptions(lr=1e-5, betas=(0.0, 0.999))
PRESETS = {
    "recommended": SIMOptions(),
    # c, the student's law of noise levels and w(t) are unverified; Adam, batch and average are those of SiD's code
    "paper-cifar10": SIMOptions(
        iterations=2_000_000, batch=256, student=_PAPER, critic=_PAPER, ema=EmaOptions("half_life", 1953.0, ramp=0.05),
        score_law="critic", critic_mean=-1.2, critic_std=1.2,
    ),
    # batch, rates and length are unverified; the teacher is asked at the 1,000 levels of its table, the student at number 440
    "paper-pixart": SIMOptions(
        iterations=20_000, batch=256, student=_PAPER, critic=_PAPER, guidance=4.5, score_law="uniform", critic_law="score",
        score_low=0.03, score_high=14.0, critic_weight="eps", sigmas=(2.5023,),
    ),
}  # fmt: skip


class SIM(ScoreDistillation):
    """See the module. The teacher must let gradients through to its input; real images, where there are any, are not read."""

    order: Literal["student", "critic"] = "critic"

    def __init__(self, parts: Ingredients, options: SIMOptions = PRESETS["recommended"]):
        check_denoiser(parts.teacher, *first_rows(parts), gradients=True)
        super().__init__(parts, options)  # critic (5)
        named = ":" in options.distance
        self.rule = ScoreImplicit(  # (1) to (4)
            parts.teacher, self.critic, distance=imported(options.distance, "distance") if named else options.distance,
            c=options.c, power=options.power, space=options.space, weight=options.weight,
            guidance=options.guidance, critic_guidance=options.critic_guidance,
        )  # fmt: skip


METHOD, OPTIONS = SIM, SIMOptions
__all__ = ["PRESETS", "SIM", "SIMOptions"]
