"""The figures of teacher and student, at a run's end and whenever they are asked for again."""

import platform
from typing import Any

import torch

from limbeck.methods import find
from limbeck.methods.generators.generator import Generator
from limbeck.runs.config import RunConfig
from limbeck.tasks import Task
from limbeck.training import Loop
from limbeck.version import __version__


def judged(task: Task, method: Generator) -> dict[str, Any]:
    """Teacher, teacher with the student's number of calls, student, and what a perfect model would get."""
    nfe = len(method.times)
    return {
        "teacher": task.judged_teacher(task.teacher_nodes),
        "teacher_at_student_nfe": task.judged_teacher((nfe + 1) // 2),  # Heun with n nodes costs 2 n - 1 calls
        "student": task.evaluator(method.sampler(), nfe),
        "noise_floor": task.evaluator.noise_floor(),
    }


def summarise(config: RunConfig, task: Task, method: Generator, loop: Loop, command: str | None) -> dict[str, Any]:
    """The figures of teacher and student, as they go to summary.json."""
    entry = find(config.method)
    return {
        "method": entry.id,
        "title": entry.title,
        "arxiv": entry.arxiv,
        "task": config.task,
        "seed": config.seed,
        **judged(task, method),
        "seconds": round(loop.seconds, 2),
        "iterations": loop.step,
        "teacher_seconds": task.facts.get("seconds"),
        "teacher_origin": task.facts.get("origin"),
        "reference": task.facts.get("reference", "the real data"),
        "history": loop.history,
        "messages": loop.messages,
        "versions": {"limbeck": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "command": command or f"limbeck distill {entry.id} --task {config.task} --seed {config.seed}",
    }
