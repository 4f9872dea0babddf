"""Consistency training: iCT (arXiv 2310.14189), its baseline CT and consistency distillation CD (arXiv 2303.01469).

A consistency function f maps every point of a path of the probability-flow ODE to the path's start. VE process,
t in [eps, T], x_t = x_0 + t e; N(k) increasing Karras levels t_1..t_N at iteration k of K.

(1) f(x, t) = c_skip x + c_out F(c_in x, ln(t)/4),  f(x, eps) = x exactly
(2) L = w_i d(f(x_{t_{i+1}}, t_{i+1}), sg f^-(x_{t_i}, t_i))        one e, one dropout mask for both points
(3) d = sqrt(|x - y|^2 + c^2) - c, c = 0.00054 sqrt(d)              pseudo-Huber, one norm per sample
(4) N(k) = min(s0 2^floor(k/K'), s1) + 1, K' = floor(K / (log2(s1/s0) + 1))
(5) p(i) = lognormal(P_mean, P_std) mass of [t_i, t_{i+1}]
(6) w_i = 1 / (t_{i+1} - t_i)
(7) x_{t_i} = one Heun step of the teacher's ODE from x_{t_{i+1}}   CD alone
(8) f^- = EMA of f with mu(k) = exp(s0 ln mu0 / N(k))               CT and CD; iCT: f^- = f

Every ingredient is an option, so that each rung between CT and iCT can be tried; the presets ``ct`` and ``cd`` are the
old ones with d = mean|x - y|^2 in LPIPS's place, uniform i, w = 1 and N(k) growing like a square root.

Differs from the paper / from its code: samples after the first step re-noise with t, not sqrt(t^2 - eps^2) (3e-6 apart).
Presets flagged "paper" keep its figures, of which those of ImageNet-64 (EMA, dropout, second step) are unverified.
"""

import copy
import functools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, Denoiser, Preconditioned, in_process
from limbeck.errors import LimbeckError
from limbeck.losses import consistency_loss, pseudo_huber, squared
from limbeck.methods.generators.generator import Generator, Ingredients
from limbeck.noise import VE, doubling_points, growing_points, karras_grid, lognormal_cells, spread
from limbeck.training import Batch, EmaOptions, OptimizerOptions, Role, Step, Update


@dataclass(frozen=True)
class ICTOptions:
    """Options of consistency training. The defaults are iCT as it works on the digits."""

    iterations: int = 4000
    batch: int = 256
    student: OptimizerOptions = OptimizerOptions(lr=1e-3, kind="radam", betas=(0.9, 0.999))
    ema: EmaOptions = EmaOptions("inverse", 0.05)
    start: Literal["scratch", "teacher"] = "scratch"
    """Weights of the student's network: new ones, or the teacher's."""
    path: Literal["data", "teacher"] = "data"
    """Where x_{t_i} comes from: the same x_0 and e (training), or (7) (distillation)."""
    target: Literal["student", "ema"] = "student"
    mu0: float = 0.9
    distance: Literal["pseudo_huber", "l2"] = "pseudo_huber"
    c: float | None = None
    """Pseudo-Huber's c (None: 0.00054 sqrt(d))."""
    reduce: Literal["sample", "element"] = "sample"
    law: Literal["lognormal", "uniform"] = "lognormal"
    mean: float = -1.1
    std: float = 2.0
    weight: Literal["inverse_gap", "one"] = "inverse_gap"
    curriculum: Literal["doubling", "growing"] = "doubling"
    s0: int = 4
    s1: int = 64
    t_min: float = 0.002
    t_max: float = 80.0
    second: float = 0.821
    """The time of the second step of a two-step sample."""
    dropout: float | None = None
    """Dropout of the student's network (None: as the network has it)."""

    def __post_init__(self):
        self.points(0)
        if not self.t_min < self.second < self.t_max:
            raise LimbeckError(f"the second step's time {self.second:g} lies outside [{self.t_min:g}, {self.t_max:g}]")

    def points(self, step: int) -> int:
        """N(k)."""
        return (doubling_points if self.curriculum == "doubling" else growing_points)(
            step, self.iterations, self.s0, self.s1
        )  # (4)


_CT = ICTOptions(target="ema", distance="l2", law="uniform", weight="one", curriculum="growing", s0=2, s1=64)
_PAPER = ICTOptions(
    iterations=400_000, batch=1024, student=OptimizerOptions(lr=1e-4, kind="radam", betas=(0.9, 0.999)),
    ema=EmaOptions("constant", 0.99993), s0=10, s1=1280, dropout=0.3,
)  # fmt: skip
PRESETS = {
    "recommended": ICTOptions(),
    "ct": _CT,
    "cd": replace(_CT, path="teacher", start="teacher"),
    "paper-cifar10": _PAPER,
    "paper-imagenet64": replace(
        _PAPER, iterations=800_000, batch=4096, ema=EmaOptions("constant", 0.99997), dropout=0.2, second=1.526
    ),
}


class ICT(Generator):
    """See the module. ``parts.data`` must hold images; the teacher is used only by ``path`` and ``start``."""

    def __init__(self, parts: Ingredients, options: ICTOptions = PRESETS["recommended"]):
        if not parts.images:
            raise LimbeckError("consistency training learns from images; give data, or use sid or dmd, which need none")
        measured = float(parts.example.double().std())
        if not 0.5 < measured / parts.sigma_data < 2:
            warnings.warn(f"sigma_data={parts.sigma_data:g}, but the data's standard deviation is {measured:.3g}", stacklevel=2)
        process = VE(options.t_min, options.t_max)
        network = copy.deepcopy(parts.teacher.network) if options.start == "teacher" else _new(parts)
        if options.dropout is not None:
            _set_dropout(network, options.dropout)
        student = Preconditioned(network.requires_grad_(True), process, "consistency", parts.sigma_data).train()  # (1)
        super().__init__(parts, (options.t_max, options.second), student)
        self.options = options
        self.roles = {"student": Role(self.student, options.student, options.ema)}
        self.target = self.student
        if options.target == "ema":
            self.target = copy.deepcopy(self.student).requires_grad_(False)
        if options.path == "teacher":
            self.roles["teacher"] = Role(parts.teacher)
            self.teacher: Denoiser = in_process(parts.teacher, process)

    def step(self, batch: Batch) -> Step:
        o, x0, e = self.options, batch.x, self.normal(batch, "noise")
        assert x0 is not None
        points, edges = (levels.to(x0.device) for levels in _levels(o, o.points(batch.step)))
        i = torch.searchsorted(edges, batch.noise.uniform("level"), right=True).clamp(max=len(points) - 2)  # (5)
        t_low, t_high = points[i], points[i + 1]
        x_high = self.process.add_noise(x0, e, t_high)
        if o.path == "data":
            x_low = self.process.add_noise(x0, e, t_low)
        else:
            with torch.no_grad():
                x_low = _heun(self.teacher, x_high, t_high, t_low, batch.cond)  # (7)
        distance = squared if o.distance == "l2" else functools.partial(pseudo_huber, c=o.c, reduce=o.reduce)  # (3)
        weight = 1 / (t_high - t_low) if o.weight == "inverse_gap" else None  # (6)
        loss = consistency_loss(  # (2)
            self.student, self.target, x_high, t_high, x_low, t_low, batch.cond, distance=distance, weight=weight
        )
        yield Update("student", loss, {"points": float(len(points))})

    @torch.no_grad()
    def finish(self, step: int) -> None:
        if self.options.target == "ema":  # (8)
            o = self.options
            mu = math.exp(o.s0 * math.log(o.mu0) / o.points(step))
            for average, weight in zip(self.target.parameters(), self.student.parameters(), strict=True):
                average.lerp_(weight, 1 - mu)

    def state(self) -> dict[str, Tensor]:
        return dict(self.target.state_dict()) if self.options.target == "ema" else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if self.options.target == "ema":
            self.target.load_state_dict(state)


def _set_dropout(network: nn.Module, p: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        elif isinstance(getattr(module, "dropout", None), float):  # the library's own networks
            setattr(module, "dropout", p)  # noqa: B010


def _new(parts: Ingredients) -> nn.Module:
    if parts.network is None:
        raise LimbeckError("consistency training from scratch needs the task's network; use start='teacher' for the teacher's")
    return parts.network().to(parts.example)


def _heun(teacher: Denoiser, x: Tensor, t: Tensor, t_to: Tensor, cond: Cond | None) -> Tensor:
    """One Heun step of dx/dt = (x - D(x, t)) / t, every sample at its own times."""
    high, low = spread(t, x), spread(t_to, x)
    slope = (x - teacher(x, t, cond)) / high
    euler = x + (low - high) * slope
    return x + (low - high) / 2 * (slope + (euler - teacher(euler, t_to, cond)) / low)


@functools.lru_cache(maxsize=4)
def _levels(options: ICTOptions, n: int) -> tuple[Tensor, Tensor]:
    """The n increasing levels and the upper edges of p(i)."""
    points = karras_grid(n, options.t_min, options.t_max).flip(0)
    p = lognormal_cells(points, options.mean, options.std) if options.law == "lognormal" else torch.full((n - 1,), 1 / (n - 1))
    return points, torch.cumsum(p.double(), 0)


METHOD, OPTIONS = ICT, ICTOptions
__all__ = ["ICT", "PRESETS", "ICTOptions"]
