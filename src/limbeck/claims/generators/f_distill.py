"""f-distill on a ring with two rare modes: does the divergence choose what a student covers (arXiv 2502.15681)?

Eight Gaussians, two of them with 1 % of the mass each, far from where the student starts. The student is rigid, x = A z + b:
it cannot have all modes, so the divergence decides. Its law is a Gaussian, so the learned ratio has an exact one to be compared
with. Arms at equal iterations: rkl (DMD2), js, kl; kl with every sample alone in its time bin, where r / r = 1 disables the
method (control); kl with a discriminator that never learns (control). Reverse KL with a critic ten times slower, updated once
and five times per update of the student, is reported.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.denoisers import Preconditioned
from limbeck.methods.generators.f_distill import FDistill, FDistillOptions
from limbeck.methods.generators.generator import make_method
from limbeck.metrics import mode_histogram
from limbeck.noise import VE
from limbeck.rules import density_ratio
from limbeck.tasks import Task
from limbeck.tasks.ring import ring
from limbeck.training import Loop, LoopOptions, OptimizerOptions

RARE, SHARE = (3, 5), 0.01
WEIGHTS = tuple(SHARE if i in RARE else (1 - 2 * SHARE) / 6 for i in range(8))
START = 2.5  # sigma at which the student is called
ITERATIONS = 400
ADAM = OptimizerOptions(lr=5e-3, warmup=20, decay="cosine", clip=1.0)
SHARED: dict[str, Any] = {
    "iterations": ITERATIONS, "batch": 128, "sigmas": (START,), "student": ADAM, "gan_features": ("network.blocks.1",),
    "score_low": 0.1, "score_high": 0.5, "ratio_ema": 0.98, "discriminator": OptimizerOptions(lr=2e-3, warmup=20, decay="cosine"),
}  # fmt: skip
ALONE: dict[str, Any] = {"ratio_bins": 20_000, "ratio_ema": 0.0}
SLOW = OptimizerOptions(lr=2e-4, warmup=20, decay="cosine", clip=1.0)
ARMS: dict[str, dict[str, Any]] = {
    "rkl": {"divergence": "rkl"},
    "js": {"divergence": "js"},
    "kl": {"divergence": "kl"},
    "alone": {"divergence": "kl", **ALONE},
    "dead": {"divergence": "kl", "discriminator": OptimizerOptions(lr=0.0)},
    "slow critic, 1 update": {"divergence": "rkl", "gan_weight": 0.0, "critic": SLOW},
    "slow critic, 5 updates": {"divergence": "rkl", "gan_weight": 0.0, "critic": SLOW, "critic_steps": 5},
}


class Rigid(nn.Module):
    """x = A z + b of z = x_t / sigma, at first a small blob at the first mode."""

    null: Mapping[str, Tensor] | None = {}

    def __init__(self, b: float):
        super().__init__()
        self.A, self.b = nn.Parameter(0.2 * torch.eye(2)), nn.Parameter(torch.tensor([b, 0.0]))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Any = None) -> Tensor:
        return x / START @ self.A.T + self.b

    def log_prob(self, x: Tensor, sigma: float) -> Tensor:
        """The log density of its samples noised to sigma, (B,)."""
        A = self.A.detach().double()
        covariance = A @ A.T + sigma**2 * torch.eye(2, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.b.detach().double(), covariance).log_prob(x.double())


@lru_cache(maxsize=1)
def rare_ring() -> Task:
    """The ring."""
    return ring(0, weights=WEIGHTS, width=64, quiet=True)


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    figures: Figures = {}
    for arm, own in ARMS.items():
        method, figures[f"{arm} seconds"] = trained(seed, student=Preconditioned(Rigid(0.5), VE(), "x0"), **own)
        figures |= {f"{arm} {name}": value for name, value in modes(method).items()}
        if arm in ("js", "kl", "dead"):
            figures |= {f"{arm} {name}": value for name, value in ratio_figures(method, seed).items()}
    return figures


def trained(seed: int, student: Any, **own: Any) -> tuple[Any, float]:
    """(a method after its iterations, CPU seconds)."""
    options, task = FDistillOptions(**{**SHARED, **own}), rare_ring()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bins with one sample: the control wants them
        cls: Any = partial(FDistill, student=student)
        method = make_method(cls, options, task, seed)
    loop = Loop(method, task.source, LoopOptions(options.iterations, options.batch, seed=seed), quiet=True)
    start = time.process_time()
    loop.train()
    return method, time.process_time() - start


def modes(method: Any) -> Figures:
    """Total variation of the shares at the nearest modes from the mixture's, and the share of rare modes that are found."""
    teacher: Any = method.teacher
    shares = mode_histogram(rare_ring().evaluator.sample(method.sampler()), teacher.normals.mean).shares
    wanted = torch.tensor(WEIGHTS, dtype=torch.float64)
    found = [float(shares[i] >= wanted[i] / 2) for i in RARE]
    return {"tv": float((shares - wanted).abs().sum()) / 2, "rare": sum(found) / len(found)}


@torch.no_grad()
def ratio_figures(method: Any, seed: int) -> Figures:
    """The learned ratio at samples of the student (weights not averaged): its correlation with the exact one, in logarithms, at
    two noise levels, and the largest |E r - 1| of a time bin after the bins' normalisation."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    z, e = torch.randn(2, 65_536, 2, generator=generator)
    student, figures = method.student.network, {}
    x = student(START * z, z)
    for sigma in (0.5, 1.0):
        t, x_t = torch.full((len(x),), sigma, dtype=torch.float64), x + sigma * e
        exact = method.teacher.log_prob(x_t, t).double() - student.log_prob(x_t, sigma)
        learned = method.adversary.logits(x_t, t, None).mean(1).double()
        figures[f"correlation at {sigma:g}"] = float(torch.corrcoef(torch.stack([exact, learned]))[0, 1].nan_to_num())
    u = torch.rand(len(x), generator=generator, dtype=torch.float64)
    t = method.score_times(u)
    r = density_ratio(method.adversary.logits(x + t[:, None].float() * e, t, None))
    total, count = method.ratios.sums(r, u)
    figures["bin error"] = float((total / count / method.ratios.mean - 1).abs().max())
    return figures


def judge(runs: Sequence[Figures]) -> list[Check]:
    """The gates, and what is reported."""
    m = medians(runs)
    slow = m["slow critic, 1 update tv"] / m["slow critic, 5 updates tv"]
    return [
        at_most("kl / rkl, total variation of the modes' shares", m["kl tv"] / m["rkl tv"], 0.9),
        at_most("js / rkl, total variation of the modes' shares", m["js tv"] / m["rkl tv"], 0.8),
        at_least("share of the rare modes that kl finds", m["kl rare"], 1, gated=False),
        at_least(
            "correlation of the learned log ratio with the exact one, kl, sigma 0.5",
            m["kl correlation at 0.5"],
            0.8,
            gated=False,
        ),
        at_least("the same, sigma 1, beyond the levels that are compared", m["kl correlation at 1"], 0.8, gated=False),
        at_most("largest |E r - 1| of a time bin, kl", m["kl bin error"], 0.1, gated=False),
        at_least("control: every sample alone in its bin / rkl, total variation", m["alone tv"] / m["rkl tv"], 0.8),
        at_least(
            "control: a discriminator that never learns / rkl, total variation", m["dead tv"] / m["rkl tv"], 0.8, gated=False
        ),
        at_least("rkl with a critic ten times slower: 1 update / 5 updates, total variation", slow, 1, gated=False),
    ]


CALIBRATION = (
    "3 seeds where 8 are wanted: total variation of the modes' shares, kl / rkl 0.57, 0.41, 0.61 (the paper's 20 % holds in "
    "each; its spread of 0.1 asks for the bound 0.9), js / rkl 0.54, 0.43, 0.58; every sample alone in its bin / rkl 0.95, "
    "0.92, 0.98; a dead discriminator / rkl 1.26, 1.11, 0.65, which gates nothing; kl finds both rare modes in all. "
    "Correlation of the learned ratio with the exact one 0.85, 0.86, 0.83 at sigma 0.5 and 0.70, 0.81, 0.75 at 1; largest "
    "|E r - 1| 0.08, 0.09, 0.09. Reverse KL without the adversarial term, its critic ten times slower: one update was "
    "better than five in all seeds, so that two time scales show no gain here. A network student that can have all modes "
    "has them under every divergence. 50 CPU s per seed."
)
CLAIM = Claim("f-distill", "2502.15681", measure, judge, rare_ring, CALIBRATION)
