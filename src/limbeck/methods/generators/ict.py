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
(9) ECT in place of a grid: t = exp(N(P_mean, P_std^2)) and x_r in x_{t_i}'s place, r = max(0, t (1 - q^-(j+1) n(t))),
    n(t) = 1 + k sigmoid(-b t), j = floor(iteration / double);  f(x, 0) = x, so r = 0 is denoising;  c = 0, w = 1 / (t - r)

Every ingredient is an option, so that each rung between CT and iCT can be tried; the presets ``ct`` and ``cd`` are the
old ones with d = mean|x - y|^2 in LPIPS's place, uniform i, w = 1 and N(k) growing like a square root. ``ect`` (easy
consistency tuning, arXiv 2406.14548) starts from the teacher's network.

Differs from the paper / from its code: samples after the first step re-noise with t, not sqrt(t^2 - eps^2) (3e-6 apart).
ECT samples with the scaling that it was trained in, its code with (1)'s at eps = 0.003. An average as the target together
with (6) is refused: its gradient grows with N(k) whatever the data (the paper's own counter-example).
Presets "paper-...": the paper's figures, and ECT's as in its published scripts. Unverified: ImageNet-64's average, dropout
and second step; the learning rates and averages of the CT presets; ECT's rate, average and dropout on ImageNet-64. The
paper's CIFAR-10 network is told the noise by features that hardly vary (scale 0.02, where NCSN++ has 16).
"""

import copy
import functools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, Denoiser, Preconditioned, in_process
from limbeck.errors import LimbeckError
from limbeck.losses import FromZero, consistency_loss, pseudo_huber, squared
from limbeck.methods.generators.generator import Generator, Ingredients
from limbeck.noise import VE, LogNormal, doubling_points, growing_points, karras_grid, lognormal_cells, spread
from limbeck.training import Batch, EmaOptions, OptimizerOptions, Role, Step, Update


@dataclass(frozen=True)
class ICTOptions:
    """Options of consistency training. The defaults are iCT as it works on the digits."""

    iterations: int = 4000
    batch: int = 256
    student: OptimizerOptions = OptimizerOptions(lr=1e-3, kind="radam", betas=(0.9, 0.999))
    ema: EmaOptions = EmaOptions("inverse", 0.05)
    start: Literal["scratch", "teacher"] = "scratch"
    """Weights of the student's network: new ones, or those that the task's students start from (the teacher's)."""
    path: Literal["data", "teacher"] = "data"
    """Where x_{t_i} comes from: the same x_0 and e (training), or (7) (distillation)."""
    target: Literal["student", "ema"] = "student"
    mu0: float = 0.9
    distance: Literal["pseudo_huber", "l2"] = "pseudo_huber"
    c: float | None = None
    """Pseudo-Huber's c (None: 0.00054 sqrt(d))."""
    reduce: Literal["sample", "element"] = "sample"
    schedule: Literal["grid", "ect"] = "grid"
    """Neighbours t_i, t_{i+1} of the growing grid, or pairs r < t of (9), where ``law`` and ``curriculum`` play no part."""
    law: Literal["lognormal", "uniform"] = "lognormal"
    mean: float = -1.1
    std: float = 2.0
    weight: Literal["inverse_gap", "snr", "one"] = "inverse_gap"
    """(6), or 1 / t^2 + 1 / sigma_data^2 (ECT on ImageNet-64), or none."""
    curriculum: Literal["doubling", "growing"] = "doubling"
    s0: int = 4
    s1: int = 64
    double: int = 500
    """(9): iterations of one stage j."""
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    t_min: float = 0.002
    t_max: float = 80.0
    later: tuple[float, ...] = (0.821,)
    """The times of the second and later steps of a sample, decreasing."""
    c_noise: Literal["log_sigma", "log_sigma_thousand"] = "log_sigma"
    """ln(t)/4 of (1), or 1000 times that: the consistency models of diffusers, and what their sampler takes."""
    dropout: float | None = None
    """Dropout of the student's network (None: as the network has it)."""
    declared_range: tuple[float, float] | None = None
    """Where the data are declared to lie (None: anywhere)."""

    def __post_init__(self):
        if self.schedule == "grid":
            self.points(0)
        if not 0 < self.mu0 < 1:
            raise LimbeckError(f"mu0 must lie in (0, 1), not {self.mu0:g}; target='student' is the case without an average")
        for t, before in zip(self.later, (self.t_max, *self.later), strict=False):
            if not self.t_min < t < self.t_max or t >= before:
                raise LimbeckError(
                    f"the later steps' times must decrease inside [{self.t_min:g}, {self.t_max:g}], not {self.later}"
                )
        if self.target == "ema" and self.weight != "one":
            raise LimbeckError(
                f"an average as the target (target='ema') needs weight='one', not {self.weight!r}: as the levels close up, the "
                "weighted gradient follows the gap between student and average alone; use target='student' (iCT)"
            )
        if self.schedule == "ect" and self.path == "teacher":
            raise LimbeckError("schedule='ect' learns from data; use path='data', or schedule='grid' for distillation")
        if self.schedule == "ect" and not (self.double >= 1 and self.q > 1 and self.k >= 0):
            raise LimbeckError(f"ECT needs double >= 1, q > 1 and k >= 0, not {self.double}, {self.q:g}, {self.k:g}")

    def points(self, step: int) -> int:
        """N(k)."""
        return (doubling_points if self.curriculum == "doubling" else growing_points)(
            step, self.iterations, self.s0, self.s1
        )  # (4)

    def lower(self, t: Tensor, step: int) -> Tensor:
        """r(t) at an iteration, (9)."""
        share = self.q ** -(step // self.double + 1) * (1 + self.k * torch.sigmoid(-self.b * t))
        return (t * (1 - share)).clamp(min=0)


def _radam(lr: float) -> OptimizerOptions:
    return OptimizerOptions(lr=lr, kind="radam", betas=(0.9, 0.999))


_OLD: dict[str, Any] = {"target": "ema", "distance": "l2", "law": "uniform", "weight": "one", "curriculum": "growing", "s0": 2}
_CT = ICTOptions(**_OLD, s1=16)
_PAPER = ICTOptions(
    iterations=400_000, batch=1024, student=_radam(1e-4), ema=EmaOptions("constant", 0.99993),
    s0=10, s1=1280, dropout=0.3, declared_range=(-1.0, 1.0),
)  # fmt: skip
_PAPER_CT = replace(
    _PAPER, **_OLD, iterations=800_000, batch=512, student=_radam(4e-4), ema=EmaOptions("constant", 0.9999), s1=150, dropout=0.0
)
_ECT = ICTOptions(schedule="ect", start="teacher", c=0.0)
PRESETS = {
    "recommended": ICTOptions(),
    "ct": _CT,
    "cd": replace(_CT, path="teacher", start="teacher"),
    "ect": _ECT,
    "paper-cifar10": _PAPER,
    "paper-imagenet64": replace(
        _PAPER, iterations=800_000, batch=4096, ema=EmaOptions("constant", 0.99997), dropout=0.2, later=(1.526,)
    ),
    "paper-ct-cifar10": _PAPER_CT,
    "paper-ct-imagenet64": replace(
        _PAPER_CT, batch=2048, student=_radam(8e-6), ema=EmaOptions("constant", 0.999943), s1=200, mu0=0.95
    ),
    "paper-ect-cifar10": replace(
        _ECT, iterations=400_000, batch=128, student=_radam(1e-4), ema=EmaOptions("constant", 0.9999), dropout=0.2,
        double=25_000, declared_range=(-1.0, 1.0),
    ),
    "paper-ect-imagenet64": replace(
        _ECT, iterations=100_000, batch=128, student=OptimizerOptions(lr=1e-3, betas=(0.9, 0.999)),
        ema=EmaOptions("constant", 0.9999), double=25_000, q=4.0, weight="snr", later=(1.526,), declared_range=(-1.0, 1.0),
    ),
}  # fmt: skip


class ICT(Generator):
    """See the module. ``parts.data`` must hold images; the teacher is used only by ``path`` and ``start``."""

    def __init__(self, parts: Ingredients, options: ICTOptions = PRESETS["recommended"]):
        if not parts.images:
            raise LimbeckError("consistency training learns from images; give data, or use sid or dmd, which need none")
        _check_range(parts.example, options.declared_range)
        measured = float(parts.example.double().std())
        if not 0.5 < measured / parts.sigma_data < 2:
            warnings.warn(f"sigma_data={parts.sigma_data:g}, but the data's standard deviation is {measured:.3g}", stacklevel=2)
        process = VE(options.t_min, options.t_max)
        network = _teachers(parts) if options.start == "teacher" else _new(parts)
        if options.dropout is not None:
            _set_dropout(network, options.dropout)
        scaling = "consistency" if options.schedule == "grid" else "edm"  # (1), or (9) without eps
        settings = process, scaling, parts.sigma_data, options.c_noise
        student = Preconditioned(network.requires_grad_(True), *settings).train()
        super().__init__(parts, (options.t_max, *options.later), student)
        self.options = options
        self.roles = {"student": Role(self.student, options.student, options.ema)}
        self.target = self.student
        if options.target == "ema":
            self.target = copy.deepcopy(self.student).requires_grad_(False)
            self.whole = "the average that is its target is no role of its own"
        if options.path == "teacher":
            self.roles["teacher"] = Role(parts.teacher)
            self.teacher: Denoiser = in_process(parts.teacher, process)

    def step(self, batch: Batch) -> Step:
        o, x0, e = self.options, batch.x, self.normal(batch, "noise")
        assert x0 is not None
        if not x0.is_floating_point():
            raise LimbeckError(f"training images are {x0.dtype}; scale them to the data's range first, e.g. x / 127.5 - 1")
        u, target, logs = batch.noise.uniform("level"), self.target, {}
        if o.schedule == "ect":
            t_high = LogNormal(o.mean, o.std)(u)
            t_low = o.lower(t_high, batch.step)  # (9)
            target, logs = FromZero(target), {"stage": float(batch.step // o.double)}
        else:
            points, edges = (levels.to(x0.device) for levels in _levels(o, o.points(batch.step)))  # (4)
            i = torch.searchsorted(edges, u, right=True).clamp(max=len(points) - 2)
            t_low, t_high, logs = points[i], points[i + 1], {"points": float(len(points))}
        x_high = self.process.add_noise(x0, e, t_high)
        if o.path == "data":
            x_low = self.process.add_noise(x0, e, t_low)
        else:
            with torch.no_grad():
                x_low = _heun(self.teacher, x_high, t_high, t_low, batch.cond)  # (7)
        distance = squared if o.distance == "l2" else functools.partial(pseudo_huber, c=o.c, reduce=o.reduce)  # (3)
        weight = None
        if o.weight == "inverse_gap":
            weight = 1 / (t_high - t_low)  # (6)
        elif o.weight == "snr":
            weight = t_high**-2 + self.sigma_data**-2
        loss = consistency_loss(  # (2)
            self.student, target, x_high, t_high, x_low, t_low, batch.cond, distance=distance, weight=weight
        )
        yield Update("student", loss, logs)

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


def _check_range(x: Tensor, declared: tuple[float, float] | None) -> None:
    if declared is None:
        return
    low, high = float(x.min()), float(x.max())
    if low < declared[0] - 1e-3 or high > declared[1] + 1e-3:
        raise LimbeckError(
            f"the data reach from {low:.4g} to {high:.4g}, but are declared to lie in [{declared[0]:g}, {declared[1]:g}]; "
            "scale them, or set declared_range (null for latents)"
        )


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


def _teachers(parts: Ingredients) -> nn.Module:
    network, prediction = (getattr(parts.begin, name, None) for name in ("network", "prediction"))
    if not isinstance(network, nn.Module):
        raise LimbeckError(f"a {type(parts.begin).__name__} has no network to start from; use start='scratch'")
    if prediction not in ("edm", "consistency"):
        warnings.warn(
            f"the teacher's network predicts {prediction}, the student's starts as if that were EDM's: its first answers are "
            "wrong, and it must learn them anew (start='scratch' costs no more)",
            stacklevel=3,
        )
    return copy.deepcopy(network)


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
    p = torch.full((n - 1,), 1 / (n - 1), dtype=torch.float64)
    if options.law == "lognormal":
        p = lognormal_cells(points, options.mean, options.std)  # (5)
    return points, torch.cumsum(p, 0)


METHOD, OPTIONS = ICT, ICTOptions
__all__ = ["ICT", "PRESETS", "ICTOptions"]
