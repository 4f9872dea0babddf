"""Phased DMD against few-step DMD at equal calls, on a ring of unequal modes in two classes, and its critic's target alone
(arXiv 2510.27684).

Arms, four steps each, as many iterations each: Phased DMD in two phases, sampled as it is trained, by deterministic steps; DMD
whose steps are trained one at a time (stochastic gradient truncation) on states with fresh noise, sampled with fresh noise, which
is its own sampler, and deterministically; the same trained on deterministic states; the start network. The target: a small
network learns the velocity of points that are still noisy from the exact target, and from the naive one, e - x_s.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.claims.generators.digits import distil
from limbeck.claims.generators.marginals import judged_points, marginals, ring_task
from limbeck.denoisers import FiniteSetDenoiser, Preconditioned
from limbeck.losses import denoising_loss
from limbeck.metrics import class_variance_ratio
from limbeck.networks import ResidualMLP
from limbeck.noise import RectifiedFlow
from limbeck.tasks import Task
from limbeck.training import OptimizerOptions

SIGMAS, BOUNDARY = (5.0, 1.6, 0.5, 0.16), 0.5
ITERATIONS, BATCH = 600, 128
POINTS = (-1.0, 0.0, 1.0, 2.0)


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    return {**learned_velocity(seed), **students(seed, ring_task(2), ITERATIONS, BATCH)}


def learned_velocity(seed: int, batch: int = 1024, width: int = 96) -> Figures:
    """The relative L2 error of velocities at times in (0.52, 1) after training on points at time 0.5, by target."""
    process, figures = RectifiedFlow(), {}
    exact = FiniteSetDenoiser(torch.tensor(POINTS, dtype=torch.float64)[:, None], process)
    for name, iterations in (("exact", 600), ("naive", 150)):  # the error of the naive one is its target's
        torch.manual_seed(seed)
        critic = Preconditioned(ResidualMLP((1,), width=width, blocks=2), process, "edm", 1.0)
        optimizer = torch.optim.Adam(critic.parameters(), 4e-3, betas=(0.9, 0.99))
        for k in range(iterations):
            optimizer.param_groups[0]["lr"] = 4e-3 * (1 - k / iterations)
            loss = velocity_loss(critic, batch, naive=name == "naive")
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
    common: dict[str, Any] = {"iterations": iterations, "batch": batch, "sigmas": SIGMAS}
    phased, _ = distil("phased-dmd", seed, task=task, boundaries=(BOUNDARY,), **common)
    fresh, _ = distil("dmd", seed, task=task, **common)
    truncated, _ = distil("dmd", seed, task=task, renoise="ode", **common)
    dead, _ = distil("phased-dmd", seed, task=task, boundaries=(BOUNDARY,), **{**common, "iterations": iterations // 4},
                     critic=OptimizerOptions(lr=0.0))  # fmt: skip
    deterministic = replace(fresh.rollout, renoise="ode")
    student: Any = fresh.roles["student"].best
    figures: Figures = {}
    arms: dict[str, Any] = {
        "phased": phased.sampler(), "own": fresh.sampler(),
        "truncated": truncated.sampler(), "dead critic": dead.sampler(),
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


def judge(runs: Sequence[Figures]) -> list[Check]:
    """The gates."""
    m = medians(runs)

    def compared(name: str, other: str, figure: str) -> float:
        return m[f"{name} {figure}"] / m[f"{other} {figure}"]

    lower = sum(run["phased energy"] < run["ode energy"] for run in runs) / len(runs)
    return [
        at_most("critic with the exact target: relative error of its velocity", m["target exact error"], 0.1),
        at_most("the same, as the paper's toy has it", m["target exact error"], 0.05, gated=False),
        at_least("control: with the naive target e - x_s", m["target naive error"], 0.25),
        at_least(
            "control: critics that never learn / Phased: energy distance", compared("dead critic", "phased", "energy"), 10
        ),
        at_least("Phased: variance within classes, the data's being 1", m["phased diversity"], 0.9),
        at_most("Phased / start network: total variation of the modes", compared("phased", "start", "tv"), 1.0),
        at_most(
            "Phased / DMD sampled deterministically: energy distance", compared("phased", "ode", "energy"), 1.0, gated=False
        ),
        at_least("share of the seeds in which it is lower", lower, 1.0, gated=False),
        at_most("Phased / DMD sampled deterministically: total variation", compared("phased", "ode", "tv"), 0.7, gated=False),
        at_most(
            "Phased / DMD trained on deterministic states: energy", compared("phased", "truncated", "energy"), 1.0, gated=False
        ),
        at_most("Phased / DMD with its own noise: energy distance", compared("phased", "own", "energy"), 1.0, gated=False),
        at_most("Phased / DMD with its own noise: total variation", compared("phased", "own", "tv"), 1.0, gated=False),
        at_least(
            "Phased / DMD with its own noise: variance in classes", compared("phased", "own", "diversity"), 1, gated=False
        ),
    ]


CALIBRATION = (
    "3 seeds, energy distances times 1000: Phased 2.8, 7.9, 8.0; DMD sampled deterministically 8.8, 10.9, 11.6, trained on "
    "deterministic states 7.5, 6.5, 7.8, with its own noise 8.1, 4.5, 5.0; the start network 7.5. Total variations of the modes: "
    "Phased 0.036, 0.077, 0.051, DMD deterministically 0.041, 0.055, 0.046, with its own noise 0.050, 0.053, 0.072, start 0.137. So "
    "the energy distance is lower than DMD's under the same sampler in each seed, but the paper's gain in modes does not show: it is "
    "the other way round in two of three; and DMD with its own noise is better in two. Where the first phase ends the laws differ "
    "between seeds: 11, 57, 6. Variance within classes 0.98 to 1.00, DMD with its own noise 0.94 to 0.98 (seeds 1 and 2, and seed 0 "
    "under another damping). Critics that never learn: 770 to 800. The target: naive 0.34 to 0.37; exact 0.063 (one seed; 0.079 to "
    "0.084 in three seeds of shorter training), so the paper's 5 % is not reached in the seconds given to it. 56 to 65 CPU s a seed "
    "before the target's training was changed. Phases in turns gave 4.6 (one seed). On the digits (one run, 1000 iterations, 47 CPU "
    "s) four steps have the Frechet distance 0.679 and the accuracy 0.987."
)
CLAIM = Claim("phased-dmd", "2510.27684", measure, judge, lambda: ring_task(2), CALIBRATION)
