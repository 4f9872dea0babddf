"""Tasks: what is distilled. A task brings a teacher, data, conditions and an evaluator."""

from collections.abc import Mapping
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.tasks.catalogue import TASKS, WINGS, check_files, chosen_task, given_names, module_of, recorded, task_options
from limbeck.tasks.contract import AnyTask, Column, Picture, judgement, student_of
from limbeck.tasks.digit_features import DigitFeatures, digit_split, load_digit_features, load_digits
from limbeck.tasks.features import image_features, whitened
from limbeck.tasks.folder import Pictures, load_pictures
from limbeck.tasks.named import imported, named_by, refuse_code
from limbeck.tasks.own import own_task
from limbeck.tasks.picture_pairs import DegradedPictures, PicturePairs, degraded_pairs
from limbeck.tasks.task import Evaluator, Figures, Reward, Task, heun_sampler, scored
from limbeck.tasks.teacher import TeacherOptions, cached_teacher, drop_conditions
from limbeck.training.options import check_arguments


def build_task(
    name: str, options: Mapping[str, Any] | None = None, *, device: str = "cpu", dtype: str = "float32", quiet: bool = False
) -> Any:
    """The task of that name, an :class:`AnyTask`.

    Raises LimbeckError for unknown names, for options that it does not have, that are of a wrong type, or that were Python objects.
    """
    module, given = module_of(name), dict(options or {})
    check_files(given)
    make = getattr(module, TASKS[name].partition(":")[2])
    for whole in ("device", "dtype", "quiet"):
        if whole in given:
            raise LimbeckError(f"{whole} is no option of the task {name!r}; it is one of the whole run")
    check_arguments(make, given, f"options of the task {name!r}")
    return make(**given, device=device, dtype=dtype, quiet=quiet)


def preferred_options(name: str, options: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Method options that suit a task better than the methods' own defaults, by method; of some tasks they depend on its options."""
    module = module_of(name)
    if hasattr(module, "preferred"):
        return module.preferred(**dict(options or {}))
    return getattr(module, "PREFERRED", {})


__all__ = [
    "TASKS",
    "WINGS",
    "AnyTask",
    "Column",
    "DegradedPictures",
    "DigitFeatures",
    "Evaluator",
    "Figures",
    "Picture",
    "PicturePairs",
    "Pictures",
    "Reward",
    "Task",
    "TeacherOptions",
    "build_task",
    "cached_teacher",
    "chosen_task",
    "degraded_pairs",
    "digit_split",
    "drop_conditions",
    "given_names",
    "heun_sampler",
    "image_features",
    "imported",
    "judgement",
    "load_digit_features",
    "load_digits",
    "load_pictures",
    "named_by",
    "own_task",
    "preferred_options",
    "recorded",
    "refuse_code",
    "scored",
    "student_of",
    "task_options",
    "whitened",
]
