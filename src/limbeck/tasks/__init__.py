"""Tasks: what is distilled. A task brings a teacher, data, conditions and an evaluator."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from limbeck.errors import unknown
from limbeck.tasks.task import Evaluator, Task, heun_sampler

TASKS = {
    "digits": "limbeck.tasks.digits:digits",
    "photos": "limbeck.tasks.photos:photos",
    "own": "limbeck.tasks.own:own_task_from_options",
}


def build_task(
    name: str, options: Mapping[str, Any] | None = None, *, device: str = "cpu", dtype: str = "float32", quiet: bool = False
) -> Task:
    """The task of that name. Raises LimbeckError for unknown names."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    module, _, function = TASKS[name].partition(":")
    return getattr(import_module(module), function)(**dict(options or {}), device=device, dtype=dtype, quiet=quiet)


__all__ = ["TASKS", "Evaluator", "Task", "build_task", "heun_sampler"]
