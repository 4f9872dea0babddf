"""Distribution matching: the score of the samples minus the teacher's, both without gradient (DMD, VSD, f-distill)."""

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, guided, in_process
from limbeck.errors import unknown
from limbeck.losses import denoising_target
from limbeck.noise import Process, spread
from limbeck.rules.contract import Pull, Sample, Target, fixed_target

RatioWeight = Callable[[Tensor, Tensor, Cond | None], Tensor]  # h(r) (B,) at (x_t, t, cond)


def _mean_abs(sample: Sample, teacher: Tensor, process: Process, t: Tensor) -> Tensor:
    return 1 / ((sample.clean.detach() - teacher).abs().flatten(1).mean(1).double() + 1e-6)


def _kl(sample: Sample, teacher: Tensor, process: Process, t: Tensor) -> Tensor:
    # a_{t|level} (S_F - S_T), S = (a D - x) / s^2
    step = process.a(t) if sample.level is None else process.transition(sample.level, t)[0]
    return step * process.a(t) / process.s(t) ** 2


# what the difference D_F - D_T of the x0 predictions is multiplied with, (B,)
NORMALISERS: dict[str, Callable[[Sample, Tensor, Process, Tensor], Tensor]] = {
    "mean_abs": _mean_abs,  # DMD: 1 / mean |x - D_T|
    "kl": _kl,  # the gradient of KL(samples || teacher) at t itself
    "dmd1": lambda sample, teacher, process, t: process.a(t) * _mean_abs(sample, teacher, process, t),  # DMD of 2023, Eq. 8
    "none": lambda sample, teacher, process, t: torch.ones_like(t, dtype=torch.float64),
    "eps": lambda sample, teacher, process, t: 1 / process.sigma(t),  # difference of the eps predictions
    "vsd": lambda sample, teacher, process, t: process.a(t) * process.s(t),  # s^2 times that difference
}


class DistributionMatching:
    """g = h (D_F(x_t, t, c) - D_T^w(x_t, t, c)) n: DMD (arXiv 2311.18828), Eq. 7, in x0 space.

    ``teacher``: a denoiser or a target that changes with the step; ``guidance``: its w, a number or one per sample;
    ``critic``: the score of the samples, ``critic_guidance`` its w (DMD: 1; VSD: the teacher's); None: the noise itself takes
    the place of its answer (SDS: the samples collapse onto the teacher's modes). ``negative``, ``critic_negative``: what
    takes the null condition's place in the guidance of either.
    ``normaliser``: mean_abs, dmd1, kl, none, eps or vsd; ``ratio_weight``: h(r) of an f-divergence (None: reverse KL, h = 1).
    A sample at a noise level is diffused from there. Logs: gap (rms of D_F - D_T), critic_lag (see diagnostics).
    """

    def __init__(
        self,
        teacher: Denoiser | Target,
        critic: Denoiser | None,
        *,
        guidance: float | Tensor = 1.0,
        critic_guidance: float | Tensor = 1.0,
        normaliser: str = "mean_abs",
        ratio_weight: RatioWeight | None = None,
        negative: Cond | None = None,
        critic_negative: Cond | None = None,
    ):
        if normaliser not in NORMALISERS:
            raise unknown("normaliser", normaliser, NORMALISERS)
        self.target, self.critic = fixed_target(teacher), critic
        self.guidance, self.critic_guidance = guidance, critic_guidance
        self.normaliser, self.ratio_weight = normaliser, ratio_weight
        self.negative, self.critic_negative = negative, critic_negative

    @torch.no_grad()
    def __call__(self, sample: Sample, t: Tensor, eps: Tensor, step: int = 0) -> Pull:
        target, x = self.target(step), sample.x.detach()
        process = target.process if self.critic is None else self.critic.process
        x_t = process.diffuse(x, eps, t, sample.level)
        teacher = guided(in_process(target, process), x_t, t, sample.teacher_cond, self.guidance, self.negative)
        clean = critic = denoising_target(process, x, x_t, eps, t, sample.level)
        if self.critic is not None:
            critic = guided(self.critic, x_t, t, sample.cond, self.critic_guidance, self.critic_negative)
        delta = critic - teacher
        scale = NORMALISERS[self.normaliser](sample, teacher, process, t)
        if self.ratio_weight is not None:
            scale = scale * self.ratio_weight(x_t, t, sample.cond)
        logs = {"gap": delta.square().mean().sqrt(), "critic_lag": critic_lag(clean, critic, teacher)}
        return Pull(spread(scale, x) * delta, logs, scale)


def critic_lag(x: Tensor, critic: Tensor, teacher: Tensor) -> Tensor:
    """|E <d, D_F - x>| / (rms(d) rms(D_F - x)), d = D_T - D_F: 0 for the exact critic of clean samples (it is the mean of
    x given x_t, so its error is uncorrelated with every function of x_t), towards 1 as the critic falls behind."""
    delta, error = (teacher - critic).double(), (critic - x).double()
    norm = torch.sqrt(delta.square().mean() * error.square().mean())
    return ((delta * error).mean().abs() / norm.clamp(min=1e-30)).to(x.dtype)
