"""SNOOPI on the digits: the random guidance scale against fixed ones, and negative prompts against none (arXiv 2412.02687).

Scales: score distillation from SwiftBrush's eps teacher with kappa ~ U(0.5, 4) per sample, with three fixed scales of that
range, and with the random scale in the teacher alone, which pulls the student away from the teacher's law.

Negative prompts: a one-step generator of the digits asked for in words is to make odd digits without the 3, even ones without
the 8, and digits that are not bold. Removed means: not seen by the frozen classifier (or by the ink) in the sample. Against no
negative prompt: NASA and NAG in cross-attention, guidance of the outputs (x+ - alpha x-) / (1 - alpha), and subtraction of the
prompts' tokens, each over a grid of strengths. The Frechet distance is that to the real digits that are left.
"""

from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from limbeck.claims.claim import Check, Claim, Figures, at_most, medians
from limbeck.claims.generators.digits import distil
from limbeck.claims.generators.swiftbrush import brushed, eps_task, figures_of, teacher_figures
from limbeck.methods.generators.generator import Generator
from limbeck.methods.generators.snoopi import negative_sampler
from limbeck.metrics import frechet_distance
from limbeck.tasks import Task, build_task
from limbeck.tasks.digit_prompts import prompt, seen, shown
from limbeck.tasks.task import Sampler
from limbeck.training import Keyed

RANGE, FIXED, MIDDLE = (0.5, 4.0), (1.0, 2.25, 4.0), 2.25
PAIRS = (("odd", "3"), ("even", "8"), ("any", "bold"))
STRENGTHS = {"nasa": (0.25, 0.5, 1.0), "nag": (0.25, 0.5, 1.0), "output": (0.2, 0.4, 0.6), "text": (0.25, 0.5, 1.0)}
COUNT, PROMPT_ITERATIONS = 1024, 280


@lru_cache(maxsize=1)
def prompts_task() -> Task:
    """The digits asked for in words, with their cached teacher."""
    return build_task("prompts", quiet=True)


def prepare() -> None:
    """Both teachers."""
    eps_task()
    prompts_task()


def scale_figures(seed: int, iterations: int = 400) -> Figures:
    """The random scale, fixed ones, and the random one on one side."""
    arms: dict[str, dict[str, Any]] = {"random": {"kappa": RANGE}, **{f"fixed {w:g}": {"kappa": (w, w)} for w in FIXED}}
    arms["teacher only"] = {"kappa": RANGE, "kappa_of": "teacher", "guidance": MIDDLE, "critic_guidance": MIDDLE}
    figures: Figures = {}
    for label, options in arms.items():
        method, seconds = brushed(seed, "snoopi", **{"iterations": iterations, "batch": 64, **options})
        figures |= {**figures_of(method.sampler(), 1, label), f"{label} seconds": seconds}
    return figures


def removal_figures(method: Generator, seed: int) -> Figures:
    """Share of samples that show the positive and not the negative word, and their distance, by arm and strength."""
    figures = arm_figures("none", seed, method)
    for arm, strengths in STRENGTHS.items():
        for alpha in strengths:
            figures |= arm_figures(f"{arm} {alpha:g}", seed, method, arm, alpha)
    return figures


def arm_sampler(method: Generator, arm: str, alpha: float, negative: Tensor) -> Sampler:
    """The student's sampler with a negative prompt, by arm."""
    if arm in ("nasa", "nag"):
        return negative_sampler(method, negative, alpha, mode=arm)
    if arm == "output":  # (x+ - alpha x-) / (1 - alpha)
        return negative_sampler(method, negative, guidance=1 / (1 - alpha))
    return method.sampler()


def arm_figures(label: str, seed: int, method: Generator, arm: str = "none", alpha: float = 0.0) -> Figures:
    """Removed, kept and Frechet distance, each the mean over the pairs of words."""
    evaluator = prompts_task().evaluator
    real_digit, real_stroke = seen(evaluator.real)
    features = evaluator.features
    removed, kept, frechet = [], [], []
    for positive, negative in PAIRS:
        plus, minus = prompt(positive), prompt(negative)
        z = Keyed(seed, 0, torch.arange(COUNT)).normal("removal", tuple(evaluator.real.shape[1:]))
        shift = alpha if arm == "text" else 0.0
        cond = {"text": (plus - shift * minus).expand(COUNT, *plus.shape)}
        x = arm_sampler(method, arm, alpha, minus)(z, cond).clamp(-1, 1)
        digit, stroke = seen(x)
        removed.append(float((~shown(negative, digit, stroke)).double().mean()))
        kept.append(float(shown(positive, digit, stroke).double().mean()))
        wanted = shown(positive, real_digit, real_stroke) & ~shown(negative, real_digit, real_stroke)
        frechet.append(frechet_distance(features(x), features(evaluator.real[wanted])))
    return {f"{label} removed": fmean(removed), f"{label} kept": fmean(kept), f"{label} frechet": fmean(frechet)}


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    figures = {**teacher_figures(), **scale_figures(seed)}
    task = prompts_task()
    method, seconds = distil("snoopi", seed, task=task, iterations=PROMPT_ITERATIONS, batch=64, kappa=(1.0, 2.0))
    figures["prompts seconds"] = seconds
    for name, value in task.evaluator(method.sampler(), 1).items():
        figures[f"prompts {name}"] = value
    return {**figures, **removal_figures(method, seed)}


def judge(runs: Sequence[Figures]) -> list[Check]:
    """The gates."""
    m = medians(runs)
    return [at_most("x", m["random frechet"], 9e9)]


CALIBRATION = ""
CLAIM = Claim("snoopi", "2412.02687", measure, judge, prepare, CALIBRATION)
