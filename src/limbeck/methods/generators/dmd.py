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

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser
from limbeck.errors import LimbeckError
from limbeck.losses import denoising_loss, discriminator_loss, generator_loss, logit_accuracy, r1_finite_difference
from limbeck.methods.generators.generator import Generator, Ingredients, check_guidance, discriminator_on, trained_copy
from limbeck.networks import FeatureTap
from limbeck.noise import InSigma, Karras, LogNormal
from limbeck.rules import DistributionMatching, Sample, input_gradient, surrogate
from limbeck.training import Batch, EmaOptions, OptimizerOptions, Role, Step, Update
from limbeck.training.diagnostics import diversity


@dataclass(frozen=True)
class DMDOptions:
    """Options of DMD and DMD2. The defaults are what works on the digits."""

    iterations: int = 1100
    batch: int = 128
    student: OptimizerOptions = OptimizerOptions(lr=1e-3, warmup=20, decay="cosine", clip=1.0)
    critic: OptimizerOptions = OptimizerOptions(lr=2e-3, warmup=20, decay="cosine", clip=1.0)
    ema: EmaOptions = EmaOptions("inverse", 0.05)
    sigmas: tuple[float, ...] = (2.5,)
    """Noise levels sigma of the student's steps, decreasing; one level: a one-step generator."""
    critic_steps: int = 1
    """Critic updates per student update."""
    guidance: float = 1.0
    """w of the teacher."""
    normaliser: str = "mean_abs"
    score_low: float = 0.1
    score_high: float = 5.0
    """The score difference is taken at Karras levels (rho 7) of sigma in [score_low, score_high]."""
    critic_mean: float = -0.6
    critic_std: float = 1.4
    """The critic learns at ln sigma ~ N(critic_mean, critic_std^2)."""
    critic_weight: str = "edm"
    gan_weight: float = 0.0
    """lambda; 0 switches the GAN off."""
    gan_critic_weight: float = 1.0
    """Weight of the discriminator's loss where it also trains the critic."""
    gan_on: Literal["teacher", "critic"] = "teacher"
    gan_time: Literal["own", "shared"] = "own"
    gan_features: tuple[str, ...] = ()
    """Names of the tapped layers (empty: the network's own choice)."""
    gan_r1: float = 0.0
    """Weight of the finite-difference R1 penalty."""
    discriminator: OptimizerOptions = OptimizerOptions(lr=1e-3, warmup=20, decay="cosine", clip=1.0)

    def __post_init__(self):
        if self.critic_steps < 1:
            raise LimbeckError(f"critic_steps={self.critic_steps}: the critic needs at least 1 update per student update")


_PAPER = OptimizerOptions(lr=2e-6, kind="adamw", betas=(0.9, 0.999), weight_decay=0.01, warmup=500, clip=10.0)
PRESETS = {
    "recommended": DMDOptions(),
    "paper-imagenet64": DMDOptions(
        iterations=400_000, batch=280, student=_PAPER, critic=_PAPER, discriminator=_PAPER, sigmas=(80.0,), critic_steps=5,
        score_low=0.002, score_high=80.0, critic_mean=-1.2, critic_std=1.2, gan_weight=3e-3, gan_critic_weight=1e-2,
        gan_on="critic", ema=EmaOptions("constant", 0.9999),
    ),
}  # fmt: skip


class DMD(Generator):
    """See the module. ``parts.data`` must hold images where ``gan_weight`` > 0."""

    def __init__(self, parts: Ingredients, options: DMDOptions = PRESETS["recommended"]):
        super().__init__(parts, options.sigmas)
        check_guidance(parts.teacher, options.guidance)
        self.options, self.draws = options, options.critic_steps
        self.teacher: Denoiser = parts.teacher
        self.critic = trained_copy(parts.teacher)
        self.roles = {
            "teacher": Role(parts.teacher),
            "student": Role(self.student, options.student, options.ema),
            "critic": Role(self.critic, options.critic),
        }
        self.score_times = InSigma(Karras(options.score_low, options.score_high), self.process)
        self.critic_times = InSigma(LogNormal(options.critic_mean, options.critic_std), self.process)
        self.rule = DistributionMatching(parts.teacher, self.critic, guidance=options.guidance, normaliser=options.normaliser)
        if options.gan_weight > 0:
            if not parts.images:
                raise LimbeckError("gan_weight > 0 needs real images for the discriminator; give data or set gan_weight to 0")
            self.watched = self.critic if options.gan_on == "critic" else parts.teacher
            self.heads = discriminator_on(self.watched, parts, options.gan_features)
            self.roles["discriminator"] = Role(self.heads, options.discriminator)

    def step(self, batch: Batch) -> Step:
        o = self.options
        k = batch.noise.shared_randint("step", 0, len(self.times))
        sample = self.produce(batch, grad_step=k)  # (5)
        t, eps = self.score_times(batch.noise.uniform("score time")), self.normal(batch, "score noise")
        pull = self.rule(sample, t, eps, batch.step)  # (1)
        gradient, logs = pull.gradient, {**pull.logs, "diversity": diversity(sample.x)}
        if o.gan_weight > 0:
            if o.gan_time == "own":
                t, eps = self.critic_times(batch.noise.uniform("gan time")), self.normal(batch, "gan noise")
            gradient = gradient + o.gan_weight * self.gan_gradient(sample, t, eps)
        yield Update("student", surrogate(sample.x, gradient), logs)  # (2)

        for i in range(o.critic_steps):
            part = batch.draw(i)
            if i > 0:
                with torch.no_grad():
                    sample = self.produce(part, grad_step=part.noise.shared_randint("step", 0, len(self.times), call=i))
            x = sample.x.detach()
            t, eps = self.critic_times(part.noise.uniform("critic time")), self.normal(part, "critic noise")
            loss = denoising_loss(  # (3)
                self.critic, x, t, eps, sample.cond, weight=o.critic_weight, sigma_data=self.sigma_data
            )
            if o.gan_weight == 0:
                yield Update("critic", loss)
                continue
            gan, logs = self.discriminator_loss(part, x)
            if o.gan_on == "critic":
                yield Update(("critic", "discriminator"), loss + o.gan_critic_weight * gan, logs)
            else:
                yield Update("critic", loss)
                yield Update("discriminator", gan, logs)

    def logits(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """log p_real / p_fake at (x_t, t, c) from the watched network's features, (B, heads)."""
        with FeatureTap(self.watched, list(self.heads.shapes)) as tap:
            self.watched(x_t, t, cond)
        return self.heads(tap.features)

    def gan_gradient(self, sample: Sample, t: Tensor, eps: Tensor) -> Tensor:
        """Gradient of (4)'s term for the sum over elements of x, like a pull's."""

        def loss(x: Tensor) -> Tensor:
            return generator_loss(self.logits(self.process.add_noise(x, eps, t), t, sample.cond)) * x.numel()

        return input_gradient(loss, sample.x, self.watched, self.heads)[0]

    def discriminator_loss(self, batch: Batch, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_D of (4); real and fake at times and noises of their own."""
        assert batch.x is not None
        logits = []
        for name, x in (("fake", fake), ("real", batch.x)):
            t = self.critic_times(batch.noise.uniform(f"{name} time"))
            x_t = self.process.add_noise(x, self.normal(batch, f"{name} noise"), t)
            logits.append(self.logits(x_t, t, batch.cond))
        fake_logits, real_logits = logits
        loss = discriminator_loss(real_logits, fake_logits)
        if self.options.gan_r1 > 0:
            of_real = lambda y: self.logits(y, t, batch.cond)  # noqa: E731
            loss = loss + self.options.gan_r1 * r1_finite_difference(of_real, x_t, self.normal(batch, "r1 noise"))
        return loss, {"logit_accuracy": logit_accuracy(real_logits.detach(), fake_logits.detach())}


METHOD, OPTIONS = DMD, DMDOptions
__all__ = ["DMD", "PRESETS", "DMDOptions"]
