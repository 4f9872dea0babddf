"""Gaussian modes on a circle in the plane, with their exact teacher: what a method does to a law can be measured, not judged.

The teacher is the mixture's closed form. Students and critics start as one small network that learned to denoise the
mixture's samples (cached). Judged by 4,096 samples: Frechet and energy distance, sliced Wasserstein distance, the total
variation of the modes' shares, and the share of samples further than three standard deviations from every mode.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond, MixtureDenoiser, Preconditioned
from limbeck.errors import LimbeckError
from limbeck.metrics import energy_distance, mode_histogram, sliced_wasserstein
from limbeck.networks import ResidualMLP
from limbeck.noise import VE
from limbeck.tasks.task import Evaluator, Figures, Task
from limbeck.tasks.teacher import TeacherOptions, cached_teacher
from limbeck.training import OptimizerOptions, TensorSource

SIZE, JUDGED = 8192, 4096
UNEQUAL = (0.22, 0.03, 0.17, 0.05, 0.20, 0.08, 0.15, 0.10)
START = TeacherOptions(
    iterations=1500, batch=256,
    optimizer=OptimizerOptions(lr=2e-3, betas=(0.9, 0.99), warmup=50, decay="cosine", clip=1.0),
)  # fmt: skip
# what the digits' rates are to a network of 66,000 weights
PREFERRED: dict[str, dict[str, Any]] = {}


def ring(
    seed: int = 0,
    *,
    modes: int = 8,
    radius: float = 1.0,
    std: float = 0.1,
    weights: Sequence[float] = (),
    classes: int = 0,
    width: int = 128,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
    start: TeacherOptions | None = None,
) -> Task:
    """The task. ``weights`` of the modes (none given: equal; ``UNEQUAL`` is a set for eight); ``classes`` > 0 labels mode i with
    i mod classes; ``width`` of the network that students and critics start as; ``seed`` draws data and that network.

    Raises LimbeckError for weights that are not one per mode.
    """
    share = torch.tensor(weights or [1 / modes] * modes, dtype=torch.float64)
    if len(share) != modes:
        raise LimbeckError(f"{len(share)} weights do not fit {modes} modes; give one per mode, or none")
    share = share / share.sum()
    labels = torch.arange(modes) % classes if classes else None
    teacher = MixtureDenoiser.ring(modes, radius, std, VE(), share, labels)
    generator = torch.Generator().manual_seed(seed)
    cond = None if labels is None else {"label": labels[torch.multinomial(share, SIZE, True, generator=generator)]}
    x = teacher.sample(SIZE, cond, generator).to(getattr(torch, dtype))
    sigma_data = round(math.sqrt(radius**2 / 2 + std**2), 3)
    network = lambda: ResidualMLP((2,), width=width, blocks=3, classes=classes)  # noqa: E731
    source = TensorSource(x.float(), cond)
    fresh = lambda: Preconditioned(network(), VE(), "edm", sigma_data)  # noqa: E731
    options = replace(start or START, seed=seed)
    begin, facts = cached_teacher("ring", fresh, source, options, quiet)
    placed = TensorSource(x, cond)
    asked = None if cond is None else {"label": cond["label"][:JUDGED].to(device)}
    evaluator = ring_evaluator(teacher, share, std, x[:JUDGED].to(device), asked, labels)
    return Task(
        "ring", teacher.to(device), placed, (2,), evaluator, sigma_data, network, facts={**facts, "exact": True}, start=begin.to(x)
    )  # fmt: skip


def ring_evaluator(
    teacher: MixtureDenoiser, share: Tensor, std: float, real: Tensor, cond: Cond | None = None, labels: Tensor | None = None
) -> Evaluator:
    """Figures of points (N, 2) against the mixture whose modes have these shares and ``labels``: see the module."""
    centers = teacher.normals.mean.reshape(-1, 2)

    def extra(x: Tensor, cond: Cond | None) -> Figures:
        modes = mode_histogram(x, centers, 3 * std)
        return {
            "energy": energy_distance(x, real),
            "sliced_w2": sliced_wasserstein(x, real, 64, 0),
            "mode_tv": modes.total_variation(share),
            "off_mode": modes.off_mode,
        }

    def accuracy(x: Tensor, cond: Cond) -> float:
        assert labels is not None
        near = torch.cdist(x.double(), centers.to(x.device)).argmin(1)
        return float((labels[near.cpu()].to(x.device) == cond["label"]).double().mean())

    return Evaluator(
        lambda x: x.flatten(1),
        real,
        len(real),
        cond,
        None if labels is None else accuracy,
        chunk=JUDGED,
        extra=extra,
        clamp=None,
    )
