"""TDM on a ring of unequal modes: the law of every state of a four-step trajectory, and one student for several numbers of steps
(arXiv 2503.06674).

Arms, on one grid of four steps: the start network; DMD whose steps are trained one at a time on states with fresh noise, sampled
with fresh noise, its own sampler, and deterministically; TDM with the critic's importance weights and with its exact target; one
student for 1, 2 and 4 steps, its critic told the number or not. All have as many updates of the student, and of the critic one
for one, but for DMD, whose critic has two.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.claims.generators.digits import distil
from limbeck.claims.generators.marginals import judged_points, marginals, ring_task
from limbeck.noise import karras_grid
from limbeck.tasks import Task
from limbeck.training import OptimizerOptions

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
        "exact": distil("tdm", seed, task=task, critic_target="exact", critic_damping=1.0, anchor="x", **common)[0],
    }
    dead, _ = distil("tdm", seed, task=task, critic_target="is", iterations=iterations // 4, batch=batch,
                     critic=OptimizerOptions(lr=0.0))  # fmt: skip
    # with one update of its critic DMD does not settle on this grid: the baseline gets two
    fresh, _ = distil("dmd", seed, task=task, sigmas=SIGMAS, critic_steps=2, **common)
    dmd: Any = fresh.roles["student"].best
    deterministic = replace(fresh.rollout, renoise="ode")
    figures: Figures = {}
    arms: dict[str, Callable[..., Any]] = {name: method.sampler() for name, method in trained.items()}
    arms |= {
        "is dpm": trained["is"].sampler(solver="dpm_solver_pp_2m"),
        "dead critic": dead.sampler(),
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
        at_most("TDM / start network, four deterministic steps: energy distance", m["is energy"] / m["start energy"], 1.0),
        at_most("the same, as the paper's margin would have it", m["is energy"] / m["start energy"], 0.5, gated=False),
        at_most("TDM / DMD sampled deterministically: energy distance", m["is energy"] / m["dmd energy"], 1.0),
        at_most("TDM / DMD: energy distance of the states before the last", inner("is") / inner("dmd"), 0.6),
        at_least("control: a critic that never learns / TDM: energy distance", m["dead critic energy"] / m["is energy"], 10),
        at_most("TDM / start network: the states before the last", inner("is") / inner("start"), 1.0, gated=False),
        at_most("TDM / DMD with its own noise between steps: energy distance", m["is energy"] / m["dmd own energy"], 1, False),
        at_most("exact target / importance weights: energy distance", m["exact energy"] / m["is energy"], 1.0, gated=False),
        at_most("exact target / importance weights: states before the last", inner("exact") / inner("is"), 1.0, gated=False),
        at_most("exact target / DMD: the states before the last", inner("exact") / inner("dmd"), 1.0, gated=False),
        at_most("DPM-Solver / DDIM at sampling: energy distance", m["is dpm energy"] / m["is energy"], 1.0, gated=False),
        at_most("one student, K = 4 / K = 1: total variation of the modes", m["told K=4 tv"] / m["told K=1 tv"], 0.7),
        at_most("one student, K = 4 / K = 1: energy distance", m["told K=4 energy"] / m["told K=1 energy"], 1.0, gated=False),
        at_least("critic not told K / told, K = 1: energy", m["untold K=1 energy"] / m["told K=1 energy"], 1.2, gated=False),
    ]


CALIBRATION = (
    "3 seeds. TDM's energy distance (times 1000) 1.8, 2.2, 5.0, the start network's 7.6: ratios 0.23, 0.29, 0.66, of which "
    "the paper's 0.5 is missed once. DMD's critic has two updates for each of the student; with one it does not settle on "
    "this grid (17, 95, 84). TDM / DMD deterministically 0.08, 0.15, 0.18, with DMD's own noise 0.27, 0.10, 0.41, in the "
    "states before the last 0.30, 0.21, 0.15; in batches of 256 DMD with its own noise was as good as TDM (4.7 and 2.6 to "
    "7.4). States before the last, TDM / start network 0.81, 0.56, 0.42. The exact target's critic is noisier, 2 to 8 times "
    "at the end; twice as many updates of the critic or other dampings did not mend it (one seed each). DPM-Solver is worse "
    "than DDIM, 1.4 to 2.7 times. Critic not told K / told, K = 1: 1.75, 1.3, 2.5. A critic that never learns 870, 580, "
    "320. 60 CPU s a seed. On the digits (one run, 700 iterations, 36 CPU s) four steps have the Frechet distance 0.727 "
    "with importance weights and 1.449 with the exact target."
)
CLAIM = Claim("tdm", "2503.06674", measure, judge, ring_task, CALIBRATION)
