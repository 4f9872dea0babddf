"""Phased DMD against few-step DMD at equal calls, on a ring of unequal modes in two classes, and its critic's target alone
(arXiv 2510.27684).

Arms, four steps each, as many iterations each: Phased DMD in two phases, sampled as it is trained, by deterministic steps; DMD
whose steps are trained one at a time (stochastic gradient truncation) on states with fresh noise, sampled with fresh noise, which
is its own sampler, and deterministically; the same trained on deterministic states; the start network. The target: a small
network learns the velocity of points that are still noisy from the exact target, and from the naive one, e - x_s.
"""

from dataclasses import replace
from typing import Any

import torch

from limbeck.claims.claim import Figures
from limbeck.claims.generators.digits import distil
from limbeck.claims.generators.marginals import judged_points, marginals, ring_task
from limbeck.denoisers import FiniteSetDenoiser, Preconditioned
from limbeck.losses import denoising_loss
from limbeck.metrics import class_variance_ratio
from limbeck.networks import ResidualMLP
from limbeck.noise import RectifiedFlow
from limbeck.tasks import Task

SIGMAS, BOUNDARY = (5.0, 1.6, 0.5, 0.16), 0.5
ITERATIONS, BATCH = 600, 128
POINTS = (-1.0, 0.0, 1.0, 2.0)


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    return {**learned_velocity(seed), **students(seed, ring_task(2), ITERATIONS, BATCH)}


def learned_velocity(seed: int, iterations: int = 700, width: int = 128) -> Figures:
    """The relative L2 error of velocities at times in (0.5, 1] after training on points at time 0.5, by target."""
    process, figures = RectifiedFlow(), {}
    exact = FiniteSetDenoiser(torch.tensor(POINTS, dtype=torch.float64)[:, None], process)
    for name in ("exact", "naive"):
        torch.manual_seed(seed)
        critic = Preconditioned(ResidualMLP((1,), width=width, blocks=3), process, "edm", 1.0)
        optimizer = torch.optim.Adam(critic.parameters(), 3e-3, betas=(0.9, 0.99))
        for k in range(iterations):
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - k / iterations)
            loss = velocity_loss(critic, 512, naive=name == "naive")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            x, t, eps, level = noisy_points(process, 4096)
            x_t = process.diffuse(x, eps, t, level)
            v, u = ((x_t - d(x_t, t).float()) / t[:, None].float() for d in (exact, critic))
            figures[f"target {name} error"] = float((u - v).norm() / v.norm())
    return figures


def noisy_points(process: RectifiedFlow, count: int) -> Any:
    """x_s at s = 0.5, t in (0.52, 1), noise, and s."""
    x0 = torch.tensor(POINTS)[torch.randint(len(POINTS), (count, 1))]
    level = torch.full((count,), 0.5, dtype=torch.float64)
    x = process.add_noise(x0, torch.randn(count, 1), level)
    return x, 0.52 + 0.48 * torch.rand(count, dtype=torch.float64), torch.randn(count, 1), level


def velocity_loss(critic: Preconditioned, count: int, naive: bool) -> torch.Tensor:
    """The damped squared error of velocities; ``naive``: of the target e - x_s, as a prediction of x0."""
    process: Any = critic.process
    x, t, eps, level = noisy_points(process, count)
    if not naive:
        return denoising_loss(critic, x, t, eps, weight="velocity", level=level)
    x_t = process.diffuse(x, eps, t, level)
    clean = process.convert(eps - x, x_t, t, "velocity", "x0")
    return denoising_loss(critic, x, t, eps, weight="velocity", level=level, clean=clean, importance="none")


def students(seed: int, task: Task, iterations: int, batch: int) -> Figures:
    """The arms that are distilled."""
    common = {"iterations": iterations, "batch": batch, "sigmas": SIGMAS}
    phased, _ = distil("phased-dmd", seed, task=task, boundaries=(BOUNDARY,), **common)
    fresh, _ = distil("dmd", seed, task=task, **common)
    truncated, _ = distil("dmd", seed, task=task, renoise="ode", **common)
    dead, _ = distil("phased-dmd", seed, task=task, boundaries=(BOUNDARY,), **{**common, "iterations": iterations // 4},
                     critic=replace(phased.options.critic, lr=0.0))  # fmt: skip
    deterministic = replace(fresh.rollout, renoise="ode")
    student: Any = fresh.roles["student"].best
    figures: Figures = {}
    arms = {
        "phased": phased.sampler(), "own": fresh.sampler(), "truncated": truncated.sampler(), "dead critic": dead.sampler(),
        "ode": lambda z, cond, noise: deterministic(student, z, cond).x,
        "start": lambda z, cond, noise: deterministic(task.start, z, cond).x,
    }  # fmt: skip
    cond, real = task.evaluator.cond, task.evaluator.real
    assert cond is not None
    for name, sampler in arms.items():
        with torch.no_grad():
            figures |= judged_points(sampler, task, name)
            x = task.evaluator.sample(sampler)
        figures[f"{name} diversity"] = class_variance_ratio(x, cond["label"], real, cond["label"])
    for name, method in {"phased": phased, "truncated": truncated}.items():
        figures |= marginals(method.roles["student"].best, method.times.tolist(), task, name)
    return figures
