"""What the claims on the digits share: the cached task, and one distillation judged at its end."""

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from limbeck.claims.claim import Figures
from limbeck.methods import find, preset_of
from limbeck.methods.generators.generator import Generator, make_method
from limbeck.tasks import Task, build_task
from limbeck.training import Loop, LoopOptions
from limbeck.training.options import merged_options


@lru_cache(maxsize=1)
def digits_task() -> Task:
    """The digits with their cached teacher."""
    return build_task("digits", quiet=True)


@lru_cache(maxsize=1)
def teacher_figures() -> Figures:
    """The teacher at 35 calls, and at one."""
    task = digits_task()
    return {
        **{f"teacher {name}": value for name, value in task.judged_teacher(task.teacher_nodes).items()},
        "teacher at 1 NFE frechet": task.judged_teacher(1)["frechet"],
        "noise floor": task.evaluator.noise_floor(),
    }


def distil(
    name: str, seed: int, preset: str | None = None, task: Task | None = None, **options: Any
) -> tuple[Generator, float]:
    """(a method trained on the digits, CPU seconds that took)."""
    task = digits_task() if task is None else task
    entry = find(name)
    cls, _, presets = entry.load()
    chosen = merged_options(preset_of(name, presets, preset), options)
    method = make_method(cls, chosen, task, seed)
    loop = Loop(method, task.source, LoopOptions(chosen.iterations, chosen.batch, seed=seed), quiet=True)
    start = time.process_time()
    loop.train()
    return method, time.process_time() - start


def judged(method: Generator, label: str, steps: int | None = None, task: Task | None = None) -> Figures:
    """The student's figures, their names after ``label``."""
    task = digits_task() if task is None else task
    calls = len(method.times) if steps is None else steps
    figures: Mapping[str, float] = task.evaluator(method.sampler(steps=steps), calls)
    return {f"{label} {name}": value for name, value in figures.items()}
