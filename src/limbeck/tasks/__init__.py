"""Tasks: what is distilled. A task brings a teacher, data, conditions and an evaluator."""

from collections.abc import Mapping
from typing import Any

from limbeck.tasks.catalogue import TASKS, check_files, chosen_task, given_names, module_of, recorded, task_options
from limbeck.tasks.digit_features import DigitFeatures, digit_split, load_digit_features, load_digits
from limbeck.tasks.features import image_features, whitened
from limbeck.tasks.folder import Pictures, load_pictures
from limbeck.tasks.named import imported
from limbeck.tasks.own import own_task
from limbeck.tasks.task import Evaluator, Figures, Reward, Task, heun_sampler, scored
from limbeck.tasks.teacher import TeacherOptions, cached_teacher, drop_conditions


def build_task(
    name: str, options: Mapping[str, Any] | None = None, *, device: str = "cpu", dtype: str = "float32", quiet: bool = False
) -> Task:
    """The task of that name. Raises LimbeckError for unknown names, and for options that were Python objects."""
    module = module_of(name)
    check_files(options or {})
    return getattr(module, TASKS[name].partition(":")[2])(**dict(options or {}), device=device, dtype=dtype, quiet=quiet)


def preferred_options(name: str, options: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Method options that suit a task better than the methods' own defaults, by method; of some tasks they depend on its options."""
    module = module_of(name)
    if hasattr(module, "preferred"):
        return module.preferred(**dict(options or {}))
    return getattr(module, "PREFERRED", {})


__all__ = [
    "TASKS",
    "DigitFeatures",
    "Evaluator",
    "Figures",
    "Pictures",
    "Reward",
    "Task",
    "TeacherOptions",
    "build_task",
    "cached_teacher",
    "chosen_task",
    "digit_split",
    "drop_conditions",
    "given_names",
    "heun_sampler",
    "image_features",
    "imported",
    "load_digit_features",
    "load_digits",
    "load_pictures",
    "own_task",
    "preferred_options",
    "recorded",
    "scored",
    "task_options",
    "whitened",
]
