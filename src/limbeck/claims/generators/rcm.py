"""rCM against its two halves on eight unequal modes in the plane, with the exact teacher (arXiv 2510.08431).

Arms at the same number of student updates: sCM, DMD and rCM, four steps each, and rCM with ten times the weight of its score
term. Quality: the share of samples further than three standard deviations from every mode, and the mean negative
log-density under the true law. Diversity: total variation of the shares of the nearest modes, and the spread within a mode
over the true one. Control: the network that all arms start as, sampled in the same four steps without any distillation.

lambda is not the paper's 0.01. The consistency tangent has a length below 1 per sample however many numbers a sample has,
the score term's grows with their square root: 0.01 on a video's two million is about 10 on two.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.claims.generators.digits import distil
from limbeck.denoisers import MixtureDenoiser
from limbeck.methods.generators.generator import make_method
from limbeck.methods.generators.rcm import RCM, RCMOptions
from limbeck.tasks import Task, build_task
from limbeck.tasks.ring import UNEQUAL
from limbeck.training.keyed import Keyed

STD, SAMPLES, STEPS = 0.1, 16_384, (1, 4)
UPDATES = 300  # of the student
LAMBDA = 10.0
ARMS: dict[str, dict[str, Any]] = {
    "sCM": {"dmd_weight": 0.0, "iterations": UPDATES},
    "DMD": {"scm_weight": 0.0, "dmd_weight": 1.0, "iterations": 2 * UPDATES},
    "rCM": {"dmd_weight": LAMBDA, "iterations": 2 * UPDATES},
    "heavy": {"dmd_weight": 10 * LAMBDA, "iterations": 2 * UPDATES},
}


@lru_cache(maxsize=1)
def ring_task() -> Task:
    """The ring of unequal modes with its cached start."""
    return build_task("ring", {"weights": UNEQUAL, "std": STD}, quiet=True)


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    task = ring_task()
    figures: Figures = {}
    start = make_method(RCM, RCMOptions(), task, seed)
    figures |= placed(task.teacher, sampled(start.sampler(), seed), "start")
    figures |= placed(task.teacher, task.teacher.sample(SAMPLES, None, torch.Generator().manual_seed(seed)), "data")
    for arm, options in ARMS.items():
        method, figures[f"{arm} seconds"] = distil("rcm", seed, None, task, batch=256, cycle=2, **options)
        for k in STEPS:
            figures |= placed(task.teacher, sampled(method.sampler(steps=k), seed), f"{arm} {k} steps")
    return figures


def sampled(sampler: Callable[..., Tensor], seed: int) -> Tensor:
    """Samples from noises of the seed."""
    noise = Keyed(seed, 0, torch.arange(SAMPLES))
    return sampler(noise.normal("judged", (2,)), None, lambda i: noise.normal(f"judged {i}", (2,)))


def placed(law: MixtureDenoiser, x: Tensor, label: str) -> Figures:
    """Where points (N, 2) lie in a mixture of isotropic modes of standard deviation ``STD``; names after ``label``."""
    x, centers = x.double(), law.means
    distance, nearest = torch.cdist(x, centers).min(1)
    inside = distance < 3 * STD
    shares = torch.bincount(nearest, minlength=len(centers)) / len(x)
    t = torch.full((len(x),), law.process.t_min, dtype=torch.float64)
    figures = {
        "off": 1 - inside.double().mean(),
        "nll": -law.log_prob(x, t).mean(),
        "tv": (shares - law.weights).abs().sum() / 2,
        "spread": (x - centers[nearest])[inside].std() / STD,
    }
    return {f"{label} {name}": float(value) for name, value in figures.items()}


def judge(runs: Sequence[Figures]) -> list[Check]:
    """The gates."""
    m = medians(runs)

    def ratio(one: str, other: str, figure: str, k: int = 4) -> float:
        return m[f"{one} {k} steps {figure}"] / m[f"{other} {k} steps {figure}"]

    return [
        at_most("quality: samples off the modes, rCM / sCM", ratio("rCM", "sCM", "off"), 0.9),
        at_most("diversity: total variation of the modes' shares, rCM / DMD", ratio("rCM", "DMD", "tv"), 0.8),
        at_least("control: samples off the modes, start / rCM", m["start off"] / m["rCM 4 steps off"], 2.0),
        at_most(
            "quality within 10 % of the better half: off the modes, rCM / DMD", ratio("rCM", "DMD", "off"), 1.1, gated=False
        ),
        at_most("diversity within 10 % of the better half: rCM / sCM", ratio("rCM", "sCM", "tv"), 1.1, gated=False),
        at_least("trade-off: total variation, ten times lambda / lambda", ratio("heavy", "rCM", "tv"), 1.0, gated=False),
        at_most("trade-off: off the modes, ten times lambda / lambda", ratio("heavy", "rCM", "off"), 1.0, gated=False),
    ]


CALIBRATION = ""
CLAIM = Claim("rcm", "2510.08431", measure, judge, ring_task, CALIBRATION)
