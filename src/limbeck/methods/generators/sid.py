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

import torch

from limbeck.denoisers import ClassifierFree, check_denoiser
from limbeck.errors import LimbeckError
from limbeck.losses import denoising_loss
from limbeck.methods.generators.generator import Generator, Ingredients, check_guidance, trained_copy
from limbeck.noise import InSigma, Karras, LogNormal
from limbeck.rules import ScoreIdentity, surrogate
from limbeck.training import Batch, EmaOptions, OptimizerOptions, Role, Step, Update
from limbeck.training.diagnostics import diversity


@dataclass(frozen=True)
class SiDOptions:
    """Options of SiD. The defaults are what works on the digits."""

    iterations: int = 1200
    batch: int = 64
    student: OptimizerOptions = OptimizerOptions(lr=5e-4, warmup=20, decay="cosine", clip=1.0)
    critic: OptimizerOptions = OptimizerOptions(lr=1e-3, warmup=20, decay="cosine", clip=1.0)
    ema: EmaOptions = EmaOptions("inverse", 0.05)
    sigmas: tuple[float, ...] = (2.5,)
    """Noise levels sigma of the student's steps, decreasing; one level: a one-step generator."""
    alpha: float = 1.2
    weight: str = "sid"
    guidance: float = 1.0
    critic_guidance: float = 1.0
    critic_training_guidance: float = 1.0
    score_low: float = 0.1
    score_high: float = 5.0
    """(1) is taken at Karras levels (rho 7) of sigma in [score_low, score_high]."""
    critic_mean: float = -0.6
    critic_std: float = 1.4
    critic_weight: str = "edm"


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


class SiD(Generator):
    """See the module. The teacher must let gradients through to its input."""

    def __init__(self, parts: Ingredients, options: SiDOptions = PRESETS["recommended"]):
        super().__init__(parts, options.sigmas)
        check_denoiser(parts.teacher, parts.example[:2], _first(parts.cond), gradients=True)
        if not 0.5 <= options.alpha <= 1.5:
            warnings.warn(f"alpha={options.alpha:g} lies outside [0.5, 1.5], where SiD was found to work", stacklevel=2)
        if options.critic_guidance == 0 and options.guidance != 1:
            raise LimbeckError(f"Zero-CFG (critic_guidance 0) wants an unguided teacher, not guidance {options.guidance:g}")
        check_guidance(parts.teacher, options.guidance, options.critic_guidance, options.critic_training_guidance)
        self.options, self.draws = options, 2
        self.critic = trained_copy(parts.teacher)
        self.roles = {
            "teacher": Role(parts.teacher),
            "student": Role(self.student, options.student, options.ema),
            "critic": Role(self.critic, options.critic),
        }
        self.score_times = InSigma(Karras(options.score_low, options.score_high), self.process)
        self.critic_times = InSigma(LogNormal(options.critic_mean, options.critic_std), self.process)
        self.rule = ScoreIdentity(
            parts.teacher, self.critic, alpha=options.alpha, weight=options.weight,
            guidance=options.guidance, critic_guidance=options.critic_guidance,
        )  # fmt: skip

    def step(self, batch: Batch) -> Step:
        o = self.options
        k = batch.noise.shared_randint("step", 0, len(self.times))
        with torch.no_grad():
            fake = self.produce(batch, grad_step=k)
        t, eps = self.critic_times(batch.noise.uniform("critic time")), self.normal(batch, "critic noise")
        critic = self.critic if o.critic_training_guidance == 1 else ClassifierFree(self.critic, o.critic_training_guidance)
        yield Update(  # (2), (3)
            "critic",
            denoising_loss(critic, fake.x, t, eps, fake.cond, weight=o.critic_weight, sigma_data=self.sigma_data),
        )
        fresh = batch.draw(1)
        sample = self.produce(fresh, grad_step=k)
        t, eps = self.score_times(fresh.noise.uniform("score time")), self.normal(fresh, "score noise")
        pull = self.rule(sample, t, eps, batch.step)  # (1)
        yield Update("student", surrogate(sample.x, pull.gradient), {**pull.logs, "diversity": diversity(sample.x)})


def _first(cond):
    return None if cond is None else {name: value[:2] for name, value in cond.items()}


METHOD, OPTIONS = SiD, SiDOptions
__all__ = ["PRESETS", "SiD", "SiDOptions"]
