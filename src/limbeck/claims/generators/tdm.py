"""TDM on a ring of unequal modes: the law of every state of a four-step trajectory, and one student for several numbers of steps
(arXiv 2503.06674).

Arms, on one grid of four steps: the start network; DMD whose steps are trained one at a time on states with fresh noise, sampled
with fresh noise, its own sampler, and deterministically; TDM with the critic's importance weights and with its exact target; one
student for 1, 2 and 4 steps, its critic told the number or not. DMD has as many updates of the student as TDM.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.claims.generators.digits import distil
from limbeck.claims.generators.marginals import judged_points, marginals, ring_task
from limbeck.noise import karras_grid
from limbeck.tasks import Task

SIGMAS = tuple(karras_grid(5, 0.05, 5.0)[:-1].tolist())
ITERATIONS, BATCH = 500, 128
COUNTS = (1, 2, 4)


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    return students(seed, ring_task(), ITERATIONS, BATCH)


def students(seed: int, task: Task, iterations: int, batch: int) -> Figures:
    """The arms; energy distances times 1000."""
    common: dict[str, Any] = {"iterations": iterations, "batch": batch}
    trained: dict[str, Any] = {
        "is": distil("tdm", seed, task=task, critic_target="is", **common)[0],
        "exact": distil("tdm", seed, task=task, anchor="x", **common)[0],
    }
    fresh, _ = distil("dmd", seed, task=task, sigmas=SIGMAS, **common)
    dmd: Any = fresh.roles["student"].best
    deterministic = replace(fresh.rollout, renoise="ode")
    figures: Figures = {}
    arms: dict[str, Callable[..., Any]] = {name: method.sampler() for name, method in trained.items()}
    arms |= {
        "is dpm": trained["is"].sampler(solver="dpm_solver_pp_2m"),
        "dmd own": fresh.sampler(),
        "dmd": lambda z, cond, noise: deterministic(dmd, z, cond).x,
        "start": lambda z, cond, noise: deterministic(task.start, z, cond).x.detach(),
    }
    for name, sampler in arms.items():
        figures |= judged_points(sampler, task, name)
    paths = {"start": task.start, "dmd": dmd, **{n: m.roles["student"].best for n, m in trained.items()}}
    for name, denoiser in paths.items():
        figures |= marginals(denoiser, list(SIGMAS), task, name)
    for name, told in (("told", True), ("untold", False)):
        method, _ = distil("tdm", seed, task=task, critic_target="is", counts=COUNTS, critic_told=told, **common)
        for K in COUNTS:
            figures |= judged_points(method.sampler(steps=K), task, f"{name} K={K}")
    return figures


def judge(runs: Sequence[Figures]) -> list[Check]:
    """The gates. Figures of single arms vary much between seeds: what is gated are ratios of medians."""
    m = medians(runs)
    last = len(SIGMAS) - 1

    def inner(name: str) -> float:
        return sum(m[f"{name} state {i}"] for i in range(1, last + 1)) / last

    return [
        at_most("TDM / start network, four deterministic steps: energy distance", m["is energy"] / m["start energy"], 0.5),
        at_most("TDM / DMD sampled deterministically: energy distance", m["is energy"] / m["dmd energy"], 1.0),
        at_most("TDM / DMD: energy distance of the states before the last", inner("is") / inner("dmd"), 0.5),
        at_most("TDM / start network: energy distance of the states before the last", inner("is") / inner("start"), 0.5),
        at_most("exact target / DMD: energy distance of the states before the last", inner("exact") / inner("dmd"), 0.5),
        at_most("exact target / start network: energy distance", m["exact energy"] / m["start energy"], 1.0),
        at_least(
            "control: DMD / start network: energy distance of the states before the last", inner("dmd") / inner("start"), 1
        ),
        at_most("TDM / DMD with its own noise between steps: energy distance", m["is energy"] / m["dmd own energy"], 1, False),
        at_most("exact target / importance weights: energy distance", m["exact energy"] / m["is energy"], 1.0, gated=False),
        at_most("exact target / importance weights: states before the last", inner("exact") / inner("is"), 1.0, gated=False),
        at_most("DPM-Solver / DDIM at sampling: energy distance", m["is dpm energy"] / m["is energy"], 1.0, gated=False),
        at_most("one student, K = 4 / K = 1: total variation", m["told K=4 tv"] / m["told K=1 tv"], 1.0),
        at_least("critic not told K / told, K = 1: energy", m["untold K=1 energy"] / m["told K=1 energy"], 1.2, gated=False),
    ]


CALIBRATION = ""
CLAIM = Claim("tdm", "2503.06674", measure, judge, ring_task, CALIBRATION)
