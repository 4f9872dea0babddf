"""What tasks may be told: each task's module declares its OPTIONS, and these are what the command line and Python offer."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, unknown

TASKS = {
    "digits": "limbeck.tasks.digits:digits",
    "photos": "limbeck.tasks.photos:photos",
    "prompts": "limbeck.tasks.digit_prompts:prompts",
    "ring": "limbeck.tasks.ring:ring",
    "own": "limbeck.tasks.own:own_task_from_options",
    "diffusers": "limbeck.tasks.diffusers:diffusers_task_from_options",
    "photos-sr": "limbeck.tasks.photos_sr:photos_sr",
    "head": "limbeck.tasks.scenes.head:head_task",
    "text": "limbeck.tasks.scenes.text:text_task",
    "sbm": "limbeck.tasks.graphs.sbm:sbm",
    "digits-graph": "limbeck.tasks.graphs.digits:digits",
    "planetoid": "limbeck.tasks.graphs.planetoid:planetoid",
    "classify": "limbeck.tasks.classify:classify",
    "symbols": "limbeck.tasks.symbols:symbols",
    "language": "limbeck.tasks.language:language",
}
WINGS: dict[str, tuple[str, ...]] = {
    "generators": ("digits", "photos", "prompts", "ring", "own", "diffusers"),
    "restoration": ("photos-sr",),
    "scenes": ("head", "text"),
    "sequences": ("language", "symbols"),
    "structures": ("sbm", "digits-graph", "planetoid"),
    "recognition": ("classify",),
}
"""The tasks of each wing of methods that has any; the first is meant where none is named."""


def wing_of(name: str) -> str:
    """The wing that a task is of."""
    return next((wing for wing, names in WINGS.items() if name in names), "generators")


def module_of(name: str) -> Any:
    """The module of a task. Raises LimbeckError for unknown names."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return import_module(TASKS[name].partition(":")[0])


def tasks_of(wing: str, fits: Collection[str] = ()) -> list[str]:
    """The tasks of a wing, in its order; those alone that are in ``fits``, where it names any."""
    tasks = dict.fromkeys([*WINGS.get(wing, ()), *(task for task in TASKS if wing_of(task) == wing)])
    return [task for task in tasks if not fits or task in fits]


def task_options(wing: str | None = None, fits: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """By task (of a wing, see :func:`tasks_of`; None: all), the fields of what it declares as OPTIONS, by name; tasks that
    declare nothing are left out."""
    tasks = list(TASKS) if wing is None else tasks_of(wing, fits)
    found = {name: getattr(module_of(name), "OPTIONS", None) for name in tasks}
    return {name: {f.name: f for f in fields(options)} for name, options in found.items() if options is not None}


def given_names(more: Mapping[str, Any], wing: str, fits: Collection[str] = ()) -> list[str]:
    """Which of these keywords are options of a task of the wing: those declared, and those for objects in memory."""
    known = {name for options in _known(wing, fits).values() for name in options}
    return [name for name in more if name in known]


def _known(wing: str, fits: Collection[str]) -> dict[str, dict[str, Any]]:
    """:func:`task_options` with the keywords that no command line has: what a task's module lists as FURTHER."""
    return {
        task: {**options, **dict.fromkeys(getattr(module_of(task), "FURTHER", ()))}
        for task, options in task_options(wing, fits).items()
    }


def chosen_task(name: str | None, given: Iterable[str], wing: str = "generators", fits: Collection[str] = ()) -> str:
    """The wing's task that is meant: the one named, or the first that takes all options given. ``fits``: see :func:`tasks_of`.

    Raises LimbeckError where it takes not all of them, and for a task of another wing, or one that does not fit the method.
    """
    given, known, tasks = list(given), _known(wing, fits), tasks_of(wing, fits)
    if name is None:
        fitting = [task for task in tasks if set(given) <= set(known.get(task, {}))]
        return fitting[0] if fitting else _refused(given, known)
    if name not in tasks:
        of = "this method" if fits else f"methods of the wing {wing}"
        raise unknown("task" if name not in TASKS else f"task for {of}", name, tasks)
    if strange := [option for option in given if option not in known.get(name, {})]:
        raise LimbeckError(
            f"the task {name} does not take {_flag(strange[0])}; that is for the task {_takers(strange[0], known)}: choose it with "
            "--task, or leave the option out"
        )
    return name


def _refused(given: list[str], known: Mapping[str, Any]) -> str:
    takers = "; ".join(f"{_flag(option)} is for the task {_takers(option, known)}" for option in given)
    raise LimbeckError(f"no task takes all of these options: {takers}")


def _takers(option: str, known: Mapping[str, Any]) -> str:
    return " or ".join(task for task, options in known.items() if option in options) or "none"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """What config.yaml says of a task's options: all of it where it is of strings and numbers (or lists of strings), else
    {"python": a description}."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items() if value is not None}
    if all(_plain(value) for value in plain.values()):
        return plain
    return {"python": ", ".join(f"{name} {_described(value)}" for name, value in plain.items())}


def check_files(options: Mapping[str, Any]) -> None:
    """Raise LimbeckError for the options of a run that was started with Python objects."""
    if "python" in options:
        raise LimbeckError(
            f"this run was started from Python with objects that no file holds ({options['python']}); go on with it there: "
            "limbeck.distill(..., out=FOLDER, resume=True) with the same objects, or give files in a new run"
        )


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float)) or (
        isinstance(value, (list, tuple)) and all(isinstance(item, (str, float)) for item in value)
    )


def _described(value: Any) -> str:
    if isinstance(value, (str, int, float)):
        return str(value)
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" {tuple(shape)}" if shape is not None else "")
