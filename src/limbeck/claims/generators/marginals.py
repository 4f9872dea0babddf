"""What the claims on trajectories share: the ring of unequal modes, and the law of every state of a few-step trajectory."""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from limbeck.claims.claim import Figures
from limbeck.denoisers import Cond
from limbeck.metrics import energy_distance, mode_histogram
from limbeck.samplers import ddim_step
from limbeck.tasks import Task
from limbeck.tasks.ring import UNEQUAL, ring
from limbeck.tasks.task import EVALUATION_SEED
from limbeck.training import Keyed

STD = 0.1


@lru_cache(maxsize=2)
def ring_task(classes: int = 0) -> Task:
    """Eight modes of unequal weights, whose start network is cached."""
    return ring(weights=UNEQUAL, std=STD, classes=classes, quiet=True)


@torch.no_grad()
def states(denoiser: Any, times: list[float], count: int, cond: Cond | None = None) -> list[Tensor]:
    """x at every node after the first of a deterministic trajectory, and the clean samples at its end: len(times) of them."""
    process = denoiser.process
    z = Keyed(EVALUATION_SEED, 0, torch.arange(count)).normal("z", (2,))
    clean = float(process.time_of(torch.zeros(1, dtype=torch.float64)))
    x, found = process.s(torch.tensor(times[:1], dtype=torch.float64)).to(z) * z, []
    for t, t_to in pairwise(torch.tensor([*times, clean], dtype=torch.float64)):
        x = ddim_step(process, x, denoiser(x, t.expand(count), cond), t, t_to)
        found.append(x)
    return found


def marginals(denoiser: Any, times: list[float], task: Task, label: str) -> Figures:
    """1000 times the energy distance (unbiased) of every state to the data noised to its level, noisiest first; 0 is clean data."""
    real, process = task.evaluator.real, denoiser.process
    found = states(denoiser, times, len(real), task.evaluator.cond)
    figures: Figures = {}
    for i, (x, t) in enumerate(zip(found, [*times[1:], None], strict=True)):
        law = real
        if t is not None:
            eps = Keyed(EVALUATION_SEED, 1, torch.arange(len(real))).normal(f"noise {i}", (2,))
            law = process.add_noise(real, eps, torch.full((len(real),), t, dtype=torch.float64))
        figures[f"{label} state {len(found) - 1 - i}"] = 1000 * energy_distance(x, law, unbiased=True)
    return figures


def judged_points(sampler: Callable[..., Tensor], task: Task, label: str) -> Figures:
    """1000 times the energy distance to the data (unbiased), the total variation of the modes' shares, and the share off them."""
    x = task.evaluator.sample(sampler)
    modes = mode_histogram(x, task.teacher.means, 3 * STD)
    tv = modes.total_variation(torch.tensor(UNEQUAL, dtype=torch.float64))
    energy = 1000 * energy_distance(x, task.evaluator.real, unbiased=True)
    return {f"{label} energy": energy, f"{label} tv": tv, f"{label} off": modes.off_mode}
