"""Tasks: what is distilled. A task brings a teacher, data, conditions and an evaluator."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from limbeck.errors import LimbeckError, unknown
from limbeck.tasks.digit_features import DigitFeatures, digit_split, load_digit_features, load_digits
from limbeck.tasks.features import image_features, whitened
from limbeck.tasks.folder import Pictures, load_pictures
from limbeck.tasks.named import imported, named_by, refuse_code
from limbeck.tasks.own import OWN_OPTIONS, own_task, recorded
from limbeck.tasks.task import Evaluator, Figures, Reward, Task, heun_sampler, scored
from limbeck.tasks.teacher import TeacherOptions, cached_teacher, drop_conditions
from limbeck.training.options import check_arguments

TASKS = {
    "digits": "limbeck.tasks.digits:digits",
    "photos": "limbeck.tasks.photos:photos",
    "prompts": "limbeck.tasks.digit_prompts:prompts",
    "ring": "limbeck.tasks.ring:ring",
    "own": "limbeck.tasks.own:own_task_from_options",
}


def build_task(
    name: str, options: Mapping[str, Any] | None = None, *, device: str = "cpu", dtype: str = "float32", quiet: bool = False
) -> Task:
    """The task of that name. Raises LimbeckError for unknown names, and for options that it does not have or of a wrong type."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    module, _, function = TASKS[name].partition(":")
    make, given = getattr(import_module(module), function), dict(options or {})
    for name_ in ("device", "dtype", "quiet"):
        if name_ in given:
            raise LimbeckError(f"{name_} is no option of the task {name!r}; it is one of the whole run")
    check_arguments(make, given, f"options of the task {name!r}")
    return make(**given, device=device, dtype=dtype, quiet=quiet)


def preferred_options(name: str) -> dict[str, dict[str, Any]]:
    """Method options that suit a task better than the methods' own defaults, by method."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return getattr(import_module(TASKS[name].partition(":")[0]), "PREFERRED", {})


__all__ = [
    "OWN_OPTIONS",
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
    "digit_split",
    "drop_conditions",
    "heun_sampler",
    "image_features",
    "imported",
    "load_digit_features",
    "load_digits",
    "load_pictures",
    "named_by",
    "own_task",
    "preferred_options",
    "recorded",
    "refuse_code",
    "scored",
    "whitened",
]
