"""Trajectory distribution matching (TDM, arXiv 2503.06674): a K-step deterministic student, matched where each step ends. No data.

The grid T = t_K > ... > t_1 > t_0 = 0 is counted from the end. Step i of the student is one DDIM step,

(1) x_{t_i} = a_{t_i} x0h + s_{t_i} eh           x0h, eh = student's predictions at x_{t_{i+1}}, itself made without gradient

and the law of x_{t_i} is compared with the teacher's after Markov noising within the step's own segment, tau in [t_i, t_{i+1}):

(2) x_tau = a_{tau|i} x_{t_i} + s_{tau|i} e,  a_{tau|i} = a_tau / a_{t_i},  s_{tau|i}^2 = s_tau^2 - a_{tau|i}^2 s_{t_i}^2
(3) sum_i E_tau lambda_tau KL(p_{theta, tau|i} || p_{T, tau}),  its pull on x_{t_i}: g = D_F(x_tau, tau) - D_T^w(x_tau, tau), times lambda

Segments do not overlap, so one critic D_F with the time as its only input describes the K different laws. Surrogates of (3):

(4) code: E_b mean (sqrt(g^2 + c^2) - c) / n with g on x0h,  n = mean|x0h - D_T^w|, c = 1e-3     (anchor x0, surrogate huber)
(5) paper: E_b sqrt(|g|^2 + c^2) - c with g on x_{t_i}, c = 0.00054 sqrt(d)                     (anchor x, surrogate huber_sample)

The critic's loss:

(6) exact: E w(tau) min(1, damping) |D_F(x_tau, tau) - D*|^2,  D* = (x_tau + s_tau^2 S*) / a_tau,  S* = -e / s_{tau|i}
(7) is: E min(SNR, 5) r mean|D_F(x_tau, tau) - sg x0h|^2,  r = exp(-mean(m^2) / 2) / exp(-mean(e^2) / 2)
(8) m = (a_{tau|i} s_{t_i} eh + s_{tau|i} e) / s_tau, the mixed noise of x_tau = a_tau x0h + s_tau m

K may be drawn from a set (``counts`` with several numbers): grids t_i = T i / K, K an input of student and critic. Where the
segments overlap (``separate`` false: tau up to T) the critic is told i.

Differs from the paper: the minimiser of (7) with r not tempered is the denoiser of x0h's noised law, not of x_{t_i}'s; the two
are the same only where eh does not depend on x0h. With the tempering by 1/d, which the paper's text does not have, it is neither.
(6), which is Phased DMD's (arXiv 2510.27684), is the score of (2) in all cases, but noisy where segments are short: (7) learns
faster here, and is the default. From its code: the critic's first update takes the
segments of the student's samples; only DDIM is trained, any deterministic solver may sample. The start and the GAN of the paper's
SD1.5 models are the task's and ``gan_weight``. Presets ``paper-`` take (5) and (7) with the paper's rates; their range of noise is
the code's, and none of them was run here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import Ingredients, trained_copy
from limbeck.methods.generators.producers import Segments, check_windows, counted_denoiser
from limbeck.methods.generators.score import ScoreDistillation, ScoreOptions
from limbeck.noise import DDPM, Process, check_decreasing, karras_grid
from limbeck.rules import DistributionMatching, ScoreIdentity, ScoreRule
from limbeck.samplers import Chain, Rollout
from limbeck.training import OptimizerOptions


@dataclass(frozen=True)
class TDMOptions(ScoreOptions):
    """Options of TDM: those of all score methods, the grids and the segments. The defaults are what works on the digits."""

    iterations: int = 700
    sigmas: tuple[float, ...] = (5.0,)
    renoise: Literal["fresh", "fixed", "ode"] = "ode"
    anchor: Literal["x", "x0"] = "x0"
    critic_target: Literal["exact", "is", "raw_is", "x0"] = "is"
    damping_by: Literal["variance", "share"] = "share"
    counts: tuple[int, ...] = (4,)
    """The numbers of steps K; several: one student for all of them, which is told K."""
    grid: Literal["karras", "raw", "sigmas"] = "karras"
    """K times by Karras' spacing from the first of ``sigmas`` towards ``grid_low``; T i / K in raw timesteps below ``total_steps``;
    or at ``sigmas`` themselves."""
    grid_low: float = 0.05
    """sigma of the node that Karras' grid would have after its last."""
    total_steps: int = 900
    """Raw timesteps in use, of the table's or of 1000."""
    nodes: tuple[float, ...] = ()
    """The times of one grid, in the process's own time, where they follow no rule."""
    separate: bool = True
    """tau within the step's own segment, or up to T (the critic is then told the step)."""
    margin_low: float = 0.0
    margin_high: float = 0.0
    """Distance of tau from the segment's ends, in the process's own time."""
    randmid: float = 0.0
    """Share of its segment by which a step's end, t_0 excepted, is moved up at random."""
    critic_told: bool = True
    """Is the critic told K, where K is drawn from several?"""
    normaliser: str = "mean_abs"
    """1 / n of (4): mean_abs, or none, kl, eps, vsd (see limbeck.rules)."""
    divergence: Literal["kl", "fisher"] = "kl"
    """The pull of (3), or that of the Fisher divergence (SiD's)."""
    alpha: float = 1.2
    """alpha of the Fisher divergence."""


_ADAMW = OptimizerOptions(kind="adamw", betas=(0.0, 0.999), clip=1.0)
_PAPER = TDMOptions(
    grid="raw", total_steps=900, margin_high=10.0, score_law="uniform", anchor="x", surrogate="huber_sample", huber_c=None,
    normaliser="none", critic_target="is", critic_weight="min_snr_5", begin="unit", critic=replace(_ADAMW, lr=2e-5, clip=None),
)  # fmt: skip
_SD: dict[str, Any] = {"score_low": 0.13799, "score_high": 14.6146}  # raw timesteps 20 and 999 of Stable Diffusion's table
_DDPM: dict[str, Any] = {"score_low": 0.0794, "score_high": 157.4}  # and of the table from 1e-4 to 0.02
PRESETS = {
    "recommended": TDMOptions(),
    "paper-sd15": replace(
        _PAPER, iterations=20_000, batch=256, counts=(1, 2, 3, 4), guidance=3.5, student=replace(_ADAMW, lr=2e-6), **_SD
    ),
    "paper-sdxl": replace(
        _PAPER, iterations=2000, batch=64, guidance=8.0, student=replace(_ADAMW, lr=1e-6),
        critic=replace(_ADAMW, lr=5e-6, clip=None), **_SD,
    ),
    "paper-pixart": replace(_PAPER, iterations=500, batch=32, guidance=3.5, student=replace(_ADAMW, lr=2e-6), **_DDPM),
    "paper-cogvideox": replace(_PAPER, nodes=(999.0, 856.0, 665.0, 399.0), student=replace(_ADAMW, lr=2e-6), **_SD),
    "code-pixart512": replace(
        _PAPER, iterations=10_000, total_steps=800, guidance=4.5, anchor="x0", surrogate="huber", huber_c=1e-3,
        normaliser="mean_abs", **_DDPM,
        student=OptimizerOptions(4e-6, "adamw", (0.0, 0.95), weight_decay=1e-2, warmup=50, decay="cosine", clip=1.0),
        critic=OptimizerOptions(2e-5, "adamw", (0.0, 0.95), weight_decay=1e-2),
    ),
}  # fmt: skip


def grids(process: Process, o: TDMOptions) -> dict[int, Tensor]:
    """The times of the steps of every K, decreasing, in the process's own time. Raises LimbeckError for a grid that is none."""
    if o.nodes:
        return {len(o.nodes): check_decreasing(o.nodes, "nodes")}
    if o.grid == "sigmas":
        return {len(o.sigmas): process.time_of(check_decreasing(o.sigmas, "sigmas"))}
    if not o.counts or min(o.counts) < 1:
        raise LimbeckError(f"counts={o.counts}: give the numbers of steps, each at least 1")
    if o.grid == "karras":
        return {K: process.time_of(karras_grid(K + 1, o.grid_low, o.sigmas[0])[:-1]) for K in o.counts}
    known = len(process.table) if isinstance(process, DDPM) else 1000
    if not max(o.counts) <= o.total_steps <= known:
        raise LimbeckError(
            f"total_steps={o.total_steps} must lie between the steps, {max(o.counts)}, and the {known} of training"
        )
    made = {}
    for K in o.counts:
        raw = o.total_steps * torch.arange(K, 0, -1, dtype=torch.float64) / K
        made[K] = raw - 1 if isinstance(process, DDPM) else process.t_max * raw / known
    return made


class TDM(ScoreDistillation):
    """See the module. Its sampler takes ``steps`` (a K that was trained) and ``solver``.

    Raises LimbeckError for grids with an empty segment, for a stochastic rollout, and for guidance or an adversary where K is drawn.
    """

    def __init__(self, parts: Ingredients, options: TDMOptions = PRESETS["recommended"]):
        o, process = options, parts.begin.process
        times = grids(process, o)
        rollouts = {K: Rollout(process, tuple(t.tolist()), o.renoise, start=o.begin) for K, t in times.items()}
        self.segments = Segments(  # (1)
            rollouts, o.separate, o.margin_low, o.margin_high, o.randmid, o.critic_told
        )
        told_student, told_critic = self.segments.values
        if (told_student or told_critic) and (o.gan_weight > 0 or o.critic_drop > 0 or o.critic_guidance != 1):
            raise LimbeckError(
                "a critic that is told K or the step takes no guidance, no dropped conditions and no adversary; "
                "set critic_guidance to 1, critic_drop and gan_weight to 0"
            )
        if o.divergence == "fisher":
            self.unshared = "the pull of divergence='fisher' differentiates through the critic; take 'kl'"
        longest = max(rollouts)
        super().__init__(
            parts,
            replace(o, sigmas=tuple(process.sigma(times[longest]).tolist())),
            student=counted_denoiser(trained_copy(parts.begin, o.student_rank, o.adapter_alpha), told_student),
            critic=counted_denoiser(trained_copy(parts.begin, o.critic_rank, o.adapter_alpha), told_critic),
            producer=self.segments,  # surrogate: (4), (5); critic_target: (6), (7) with the noise (8)
        )
        for K in rollouts:
            _, low, high = self.segments.windows(self.process, K)
            check_windows(f"the grid of {K} steps: segment", low, high, *self.edges)
        teacher: Any = self.segments.teacher(parts.teacher)
        scales: dict[str, Any] = {"guidance": o.guidance, "critic_guidance": o.critic_guidance}
        self.rule: ScoreRule  # compares the laws of (2); (3)
        if o.divergence == "fisher":
            self.rule = ScoreIdentity(teacher, self.critic, alpha=o.alpha, **scales)
        else:
            self.rule = DistributionMatching(teacher, self.critic, normaliser=o.normaliser, **scales)

    @property
    def sampling(self) -> Rollout | Chain:
        if len(self.segments.rollouts) > 1:
            raise LimbeckError(
                f"this student is told of how many steps it is one, K = {', '.join(map(str, sorted(self.segments.rollouts)))}, which no "
                "network elsewhere is; train it for one K (counts)"
            )
        return self.rollout

    def sampler(self, ema: bool = True, steps: int | None = None, *, solver: str = "ddim", **how: Any) -> Callable[..., Tensor]:
        """The student as (z (B, ...) standard normal, cond, noise, not used) -> x, K = ``steps``, with a deterministic solver."""
        return super().sampler(ema, steps, solver=solver, **how)


METHOD, OPTIONS = TDM, TDMOptions
__all__ = ["PRESETS", "TDM", "TDMOptions", "grids"]
