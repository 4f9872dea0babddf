"""The options of sCM, rCM and what lies between, and their presets."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.noise import LogNormal, Mapped, Shifted, TimeLaw, Uniform
from limbeck.training import EmaOptions, OptimizerOptions

SAMPLING = {  # t_2, t_3, ... of the student's steps
    "paper": (1.3, 1.0, 0.6),
    "released": (1.5, 1.4, 1.0),
    "eight": (1.3, 1.0, 1.0, 0.6, 0.6, 0.3, 0.3),
}


@dataclass(frozen=True)
class RCMOptions:
    """Options of rCM. The defaults are what works on the digits. Noise levels are tan t = sigma / sigma_data."""

    iterations: int = 1000
    batch: int = 128
    student: OptimizerOptions = OptimizerOptions(lr=1e-3, kind="adamw", betas=(0.0, 0.999), warmup=20, decay="cosine")
    critic: OptimizerOptions = OptimizerOptions(lr=2e-3, kind="adamw", betas=(0.0, 0.999), warmup=20, decay="cosine")
    ema: EmaOptions = EmaOptions("power", 16.97)
    """Power function average of relative length 0.05; critic iterations count too."""
    scm_weight: float = 1.0
    """Weight of the consistency term; 0 leaves distribution matching, which needs no data."""
    dmd_weight: float = 1.0
    """lambda; 0 leaves sCM, without a critic. Its pull grows with the root of the numbers in a sample, see the module."""
    warmup: int = 0
    """H: iterations of consistency alone, in which the derivative's share r grows to 1."""
    warmup_form: Literal["rcm", "scm"] = "rcm"
    normalisation: Literal["norm", "root", "clamp", "none"] = "norm"
    """Of the tangent: g / (|g| + c) (the code), g / sqrt(|g|^2 + c) (the text), elements in [-1, 1], or as it is."""
    c: float = 0.1
    jvp: Literal["full", "semi", "discrete", "dcm"] = "full"
    """How dF/dt is had (limbeck.denoisers.derivative); "dcm": discrete consistency between neighbours on a grid instead."""
    h: float = 1e-4
    """Time difference of "semi" and "discrete"."""
    attention: Literal["tiled", "triton", "math"] = "tiled"
    """Attention under forward mode."""
    velocity: Literal["teacher", "data"] = "teacher"
    """F_T: the teacher's velocity, or the sample's own cos t e - sin t x_0 (sCT: training without a teacher)."""
    guidance: float = 1.0
    """w of the teacher, in both terms."""
    cycle: int = 2
    """F_q: iterations per student update once the warm-up is over; the others are the critic's."""
    phase: Literal["paper", "code"] = "paper"
    """Student where i mod F_q = 0, or (i - H) mod F_q = 0."""
    rollout_steps: int = 4
    """N_max: samples are made in N ~ U{1, ..., N_max} steps."""
    rollout_start: float | None = 20.0
    """Noise level at which they start (None: t = pi/2, no signal, as the paper has it)."""
    scm_mean: float = -0.8
    scm_std: float = 1.6
    """p_G: ln tan t ~ N(scm_mean, scm_std^2)."""
    frames: int = 1
    """T of a video's latents: p_G draws sqrt(T) tan t."""
    dmd_law: Literal["lognormal", "flow"] = "lognormal"
    """p_D: ln tan t ~ N(dmd_mean, dmd_std^2), or a rectified flow's time, uniform and then shifted."""
    dmd_mean: float = 0.0
    dmd_std: float = 1.6
    dmd_shift: float = 5.0
    steps: int = 4
    """Steps of the student's sampler: the first of t_1 = atan(sigma_max), t_2, ..."""
    sampling: Literal["paper", "released", "eight"] = "paper"
    sigma_max: float = 20.0
    """The first noise level. A larger one: better samples, less diversity; p_G must still reach it."""
    dcm_points: int = 48
    dcm_shift: float = 5.0
    """The grid of "dcm": shifted times of a rectified flow."""

    def __post_init__(self):
        if min(self.scm_weight, self.dmd_weight) < 0 or self.scm_weight == self.dmd_weight == 0:
            raise LimbeckError(
                f"scm_weight={self.scm_weight:g} and dmd_weight={self.dmd_weight:g}: at least one must be positive, none negative"
            )
        if self.warmup < 0 or (self.warmup and self.scm_weight == 0):
            raise LimbeckError(f"warmup={self.warmup}: the warm-up is of the consistency term alone; set it to 0 without one")
        if self.cycle < 1 or self.rollout_steps < 1 or self.frames < 1 or self.dcm_points < 2:
            raise LimbeckError(
                f"cycle={self.cycle}, rollout_steps={self.rollout_steps} and frames={self.frames} must be at least 1, "
                f"dcm_points={self.dcm_points} at least 2"
            )
        if not 1 <= self.steps <= len(self.angles):
            raise LimbeckError(f"steps={self.steps}: the {self.sampling!r} times have 1 to {len(self.angles)} steps")
        if not (self.sigma_max > math.tan(self.angles[1]) and self.h > 0):
            raise LimbeckError(
                f"sigma_max={self.sigma_max:g} must exceed the second step's noise level {math.tan(self.angles[1]):.3g}, and "
                f"h={self.h:g} be positive"
            )

    @property
    def angles(self) -> tuple[float, ...]:
        """t_1, t_2, ... of the sampler."""
        return (math.atan(self.sigma_max), *SAMPLING[self.sampling])

    def trains_student(self, i: int) -> bool:
        """Is iteration i the student's?"""
        if self.dmd_weight == 0 or i <= self.warmup:
            return True
        return (i if self.phase == "paper" else i - self.warmup) % self.cycle == 0

    @property
    def p_G(self) -> TimeLaw:
        """Times of the consistency term."""
        return Mapped(LogNormal(self.scm_mean + math.log(self.frames) / 2, self.scm_std), torch.atan)

    @property
    def p_D(self) -> TimeLaw:
        """Times of distribution matching, of its rollout and of the critic."""
        if self.dmd_law == "flow":
            return Mapped(Shifted(Uniform(0.0, 1.0), self.dmd_shift), flow_angle)
        return Mapped(LogNormal(self.dmd_mean, self.dmd_std), torch.atan)


def flow_angle(t: Tensor) -> Tensor:
    """TrigFlow's time of a rectified flow's: tan = t / (1 - t)."""
    return torch.atan2(t, 1 - t)


def _adam(lr: float) -> OptimizerOptions:
    return OptimizerOptions(lr=lr, kind="adamw", betas=(0.0, 0.999), weight_decay=0.01)


_COSMOS = RCMOptions(
    iterations=80_000, batch=1024, student=_adam(1e-6), critic=_adam(2e-7), guidance=4.5,
    ema=EmaOptions("power", 16.97), dmd_weight=0.01, cycle=5, rollout_start=None, sigma_max=80.0,
)  # fmt: skip
_WAN = replace(
    _COSMOS, iterations=10_000, batch=256, student=_adam(2e-6), critic=_adam(4e-7), guidance=5.0, warmup=1000,
    frames=21, dmd_law="flow", sigma_max=1600.0,
)  # fmt: skip
PRESETS = {
    "recommended": RCMOptions(),
    "scm": RCMOptions(dmd_weight=0.0, iterations=500),
    "paper-cosmos-0.6b": _COSMOS,
    "paper-cosmos-2b": replace(_COSMOS, iterations=30_000, batch=512),
    "paper-cosmos-14b": replace(_COSMOS, iterations=25_000, batch=256, sigma_max=800.0),
    "paper-wan-1.3b": _WAN,
    "paper-wan-14b": replace(_WAN, batch=64, student=_adam(1e-6), critic=_adam(1e-7), cycle=10, warmup=200),
}
