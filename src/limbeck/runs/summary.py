"""The figures of teacher and student, at a run's end and whenever they are asked for again."""

import platform
from typing import Any

import torch

from limbeck.methods import find
from limbeck.runs.config import RunConfig
from limbeck.tasks import AnyTask
from limbeck.training import Loop, Method
from limbeck.version import __version__


def summarise(config: RunConfig, task: AnyTask, method: Method, loop: Loop, command: str | None) -> dict[str, Any]:
    """The figures of teacher and student, as they go to summary.json."""
    entry = find(config.method)
    return {
        "method": entry.id,
        "title": entry.title,
        "arxiv": entry.arxiv,
        "task": config.task,
        "seed": config.seed,
        **task.judged(method),
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
