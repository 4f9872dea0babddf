"""Score identity distillation: match teacher and sample scores through the derivative of both networks (SiD)."""

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.denoisers import Denoiser, guided, in_process
from limbeck.errors import unknown
from limbeck.losses import denoising_target
from limbeck.noise import Process
from limbeck.rules.contract import Pull, Sample, Target, evaluating, fixed_target, input_gradient
from limbeck.rules.matching import critic_lag


def _sid(x: Tensor, teacher: Tensor, process: Process, t: Tensor) -> Tensor:
    return 1 / (x - teacher).abs().flatten(1).mean(1).double().clamp(min=1e-5)


# w(t) of the loss, (B,), no gradient
WEIGHTS: dict[str, Callable[[Tensor, Tensor, Process, Tensor], Tensor]] = {
    "sid": _sid,  # 1 / mean |x - D_T|
    "none": lambda x, teacher, process, t: torch.ones_like(t, dtype=torch.float64),
    "one_minus_s": lambda x, teacher, process, t: 1 - process.s(t),  # flow teachers
    "one_minus_s_squared": lambda x, teacher, process, t: (1 - process.s(t)) ** 2,
    "inverse_s": lambda x, teacher, process, t: 1 / process.s(t),
    "inverse_s_squared": lambda x, teacher, process, t: process.s(t) ** -2,
    "root_snr": lambda x, teacher, process, t: 1 / process.sigma(t),
    "snr": lambda x, teacher, process, t: process.sigma(t) ** -2,
}


Integrand = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (D_T, D_F, x or its D*, t) -> (B, ...)


def through_both(
    integrand: Integrand,
    target: Denoiser,
    critic: Denoiser,
    sample: Sample,
    t: Tensor,
    eps: Tensor,
    *,
    weight: str,
    guidance: float | Tensor = 1.0,
    critic_guidance: float | Tensor = 1.0,
) -> Pull:
    """The gradient of sum w(t) integrand(D_T(x_t), D_F(x_t), x, t) through x and through the inputs of both networks.

    Their parameters get no gradient and their dropout is off. Of an x at a noise level, D* of
    :func:`limbeck.losses.denoising_target` takes x's place. Logs: gap, critic_lag.
    """
    process = critic.process
    logs: dict[str, Tensor] = {}
    scales: list[Tensor] = []

    def loss(x: Tensor) -> Tensor:
        x_t = process.diffuse(x, eps, t, sample.level)
        teacher = guided(in_process(target, process), x_t, t, sample.teacher_cond, guidance)
        fake = guided(critic, x_t, t, sample.cond, critic_guidance)
        clean = denoising_target(process, x, x_t, eps, t, sample.level)
        w = WEIGHTS[weight](sample.clean.detach(), teacher.detach(), process, t).to(x)
        scales.append(w)
        logs["gap"] = (teacher - fake).detach().square().mean().sqrt()
        logs["critic_lag"] = critic_lag(clean.detach(), fake.detach(), teacher.detach())
        return (w * integrand(teacher, fake, clean, t).flatten(1).sum(1)).sum()

    with evaluating(target, critic):
        gradient, _ = input_gradient(loss, sample.x, target, critic)
    return Pull(gradient, logs, scales[0])


class ScoreIdentity:
    """The gradient of L = w(t) (D_T - D_F) . [(D_T - x) - alpha (D_T - D_F)], x_t = a x + s eps (SiD, arXiv 2404.04057).

    Differentiated through x and through the inputs of both frozen networks: see :func:`through_both`. alpha = 1 leaves
    w (D_T - D_F) . (D_F - x); the identity E <D_T - D_F, D_F - D*> = 0 holds for samples at a noise level too.
    ``guidance`` and ``critic_guidance`` are the w of teacher and critic (long-short guidance: both > 1; Zero-CFG: critic 0).
    """

    def __init__(
        self,
        teacher: Denoiser | Target,
        critic: Denoiser,
        *,
        alpha: float = 1.2,
        weight: str = "sid",
        guidance: float | Tensor = 1.0,
        critic_guidance: float | Tensor = 1.0,
    ):
        if weight not in WEIGHTS:
            raise unknown("SiD weight", weight, WEIGHTS)
        self.target, self.critic, self.alpha, self.weight = fixed_target(teacher), critic, alpha, weight
        self.guidance, self.critic_guidance = guidance, critic_guidance

    def __call__(self, sample: Sample, t: Tensor, eps: Tensor, step: int = 0) -> Pull:
        def integrand(teacher: Tensor, critic: Tensor, clean: Tensor, t: Tensor) -> Tensor:
            delta = teacher - critic
            return delta * ((teacher - clean) - self.alpha * delta)

        return through_both(
            integrand, self.target(step), self.critic, sample, t, eps,
            weight=self.weight, guidance=self.guidance, critic_guidance=self.critic_guidance,
        )  # fmt: skip
