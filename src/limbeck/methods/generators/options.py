"""The options that all score methods share."""

from dataclasses import dataclass
from typing import Literal

from limbeck.errors import LimbeckError
from limbeck.training import EmaOptions, OptimizerOptions


def dmd2_rate(lr: float) -> OptimizerOptions:
    """How DMD2 and what builds on it train every network, at a learning rate."""
    return OptimizerOptions(lr=lr, kind="adamw", betas=(0.9, 0.999), weight_decay=0.01, warmup=500, clip=10.0)


@dataclass(frozen=True)
class ScoreOptions:
    """What all score methods take. The defaults are what works on the digits."""

    iterations: int = 1100
    batch: int = 128
    student: OptimizerOptions = OptimizerOptions(lr=1e-3, warmup=20, decay="cosine", clip=1.0)
    critic: OptimizerOptions = OptimizerOptions(lr=2e-3, warmup=20, decay="cosine", clip=1.0)
    ema: EmaOptions = EmaOptions("inverse", 0.05)
    sigmas: tuple[float, ...] = (2.5,)
    """Noise levels sigma of the student's steps, decreasing; one level: a one-step generator."""
    renoise: Literal["fresh", "fixed", "ode"] = "fresh"
    """The noise between two steps: new, the first one again, or the one that the step implies (deterministic)."""
    begin: Literal["noise", "unit"] = "noise"
    """The first input: s(t_0) z, or z itself (models that begin with N(0, I) where s < 1)."""
    match: Literal["uniform", "final"] = "uniform"
    """Train one step at a time, drawn uniformly, on the output of the steps before it; or the last step through the chain."""
    critic_steps: int = 1
    """Critic updates per student update."""
    share_draws: bool = False
    """Student and critic learn from one noised batch and one forward of the critic: fewer forwards, more memory (both graphs live at
    once, in every micro-batch). Needs one law of t for both (critic_law "score")."""
    guidance: float = 1.0
    """w of the teacher."""
    guidance_high: float | None = None
    """w ~ U(guidance, guidance_high), drawn per sample (None: fixed)."""
    guidance_random: Literal["teacher", "critic", "both"] = "both"
    """Whose w a random w is."""
    critic_guidance: float = 1.0
    """w of the critic where the rule asks it."""
    critic_training_guidance: float = 1.0
    """w of the critic in its own loss."""
    critic_drop: float = 0.0
    """Share of samples on which the critic is trained without their condition."""
    score_low: float = 0.1
    score_high: float = 5.0
    """Scores are compared at levels of sigma in [score_low, score_high]."""
    score_law: Literal["karras", "uniform", "critic"] = "karras"
    """How: Karras' spacing (rho 7), uniform in the process's time (the indices of a table), or at the critic's levels."""
    critic_mean: float = -0.6
    critic_std: float = 1.4
    """The critic learns at ln sigma ~ N(critic_mean, critic_std^2)."""
    critic_law: Literal["lognormal", "score", "process"] = "lognormal"
    """So, or where the scores are compared, or with their spacing over all levels of the process (DMD)."""
    critic_weight: str = "edm"
    critic_target: Literal["exact", "is", "raw_is", "x0"] = "exact"
    """What the critic learns of samples at a noise level: the exact conditional score, or their clean predictions, weighed by
    importance (tempered by the dimension, or raw), or not weighed."""
    critic_damping: float = 10.0
    """The exact target's weight is damped by min(1, this times s_{t|level}^2) ..."""
    damping_by: Literal["variance", "share"] = "variance"
    """... or times (s_{t|level} / s_t)^2."""
    anchor: Literal["x", "x0"] = "x"
    """What the pull moves of samples at a noise level: themselves, or the clean prediction they were made with."""
    surrogate: Literal["plain", "huber", "huber_sample"] = "plain"
    """The loss that holds the pull: its product with the sample, or a pseudo-Huber distance by element or by sample."""
    huber_c: float | None = 1e-3
    """Its c (None: 0.00054 sqrt(d))."""
    student_rank: int = 0
    critic_rank: int = 0
    """Rank of low-rank adapters on the shared frozen base (0: all weights are trained)."""
    adapter_alpha: float | None = None
    """alpha of the adapters (None: their rank)."""
    gan_weight: float = 0.0
    """lambda of the adversarial term; 0 switches it off."""
    gan_critic_weight: float = 1.0
    """Weight of the discriminator's loss where it also trains the critic."""
    gan_on: Literal["teacher", "critic"] = "teacher"
    gan_time: Literal["own", "shared"] = "own"
    """The student's adversarial term at a time of its own, or at the very point of the score difference."""
    gan_head: Literal["trained", "mean"] = "trained"
    """Small networks on the features, or none: the mean over the critic's channels is the logit (gan_on="critic")."""
    gan_features: tuple[str, ...] = ()
    """Names of the tapped layers (empty: the network's own choice)."""
    gan_paired: bool = False
    """Real and fake samples are judged at one time, under one noise."""
    gan_clamp: float | None = None
    """Largest size of a logit (None: any)."""
    gan_r1: float = 0.0
    """Weight of the finite-difference R1 penalty."""
    gan_after: int = 0
    """Iterations before the adversarial term acts on the student."""
    student_after: int = 0
    """Iterations in which critic and discriminator alone are trained."""
    discriminator: OptimizerOptions = OptimizerOptions(lr=1e-3, warmup=20, decay="cosine", clip=1.0)

    def __post_init__(self):
        if self.critic_steps < 1:
            raise LimbeckError(f"critic_steps={self.critic_steps}: the critic needs at least 1 update per student update")
        if self.guidance_high is not None and not 0 <= self.guidance <= self.guidance_high:
            raise LimbeckError(f"a random guidance needs 0 <= low <= high, not U({self.guidance:g}, {self.guidance_high:g})")
        if self.gan_head == "mean" and self.gan_on != "critic":
            raise LimbeckError(
                "gan_head='mean' has no weights of its own: it needs gan_on='critic', which is trained to be read"
            )
