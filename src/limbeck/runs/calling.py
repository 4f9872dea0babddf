"""The call from Python, ``limbeck.distill``: what it asks for as a configuration, and the run."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from limbeck.errors import LimbeckError
from limbeck.methods import preset_of
from limbeck.runs.config import Execution, RunConfig, jsonable
from limbeck.runs.distillation import Run, begun, distilling, loop_options
from limbeck.tasks import TASKS, AnyTask, chosen_task, given_names, preferred_options, recorded
from limbeck.training import launched
from limbeck.training.options import merged_options, options_to_dict


def distill(
    teacher: Any = None,
    method: str = "dmd",
    data: Any = None,
    *,
    task: str | AnyTask | None = None,
    task_options: Mapping[str, Any] | None = None,
    options: Any = None,
    preset: str | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    iterations: int | None = None,
    micro_batches: int = 1,
    checkpoint_every: int = 300,
    from_run: Run | Path | str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    command: str | None = None,
    **more: Any,
) -> Run:
    """Distil a teacher into a few-step student. The main job, from Python.

    ``teacher``: a denoiser (see limbeck.denoisers) or your own network, with ``data`` (images (N, C, H, W) in [-1, 1], or a
    folder of pictures); what else there is to say of them (``labels=``, ``prediction=``, ``process=``, ...) are the keywords
    of :func:`limbeck.tasks.own_task`. Or a pipeline of diffusers (or ``model=FOLDER``), with ``prompts=`` and the further
    keywords of :func:`limbeck.tasks.diffusers.diffusers_task`. None: a ``task`` by name ("digits", the default). ``method``: see
    `limbeck methods`; ``options``: its options dataclass, or a mapping of those that differ from the ``preset``; further
    keywords are options too (``alpha=1.0``), or say how to carry the run out (:class:`limbeck.runs.Execution`: ``quiet=True``).
    ``from_run``: a run, whose student is what this one begins with (a folder that names code needs ``trust_code=True``).
    ``precision``: bfloat16 runs the networks under autocast, losses in ``dtype``. ``out``: the run's folder (None: a new one
    under runs/).
    Returns a :class:`Run`.
    Raises LimbeckError for what it cannot use.
    """
    entry = distilling(method)
    how = Execution(**{f.name: more.pop(f.name) for f in fields(Execution) if f.name in more})
    how = replace(how, trust_code=how.trust_code or isinstance(from_run, Run))  # one that is open was trusted before
    given = {"model" if is_pipeline(teacher) else "teacher": teacher, "data": data}
    given = {n: v for n, v in given.items() if v is not None} | {
        n: more.pop(n) for n in given_names(more, entry.wing, entry.fits)
    }
    built = None if task is None or isinstance(task, str) else task
    if built is not None and given:
        raise LimbeckError(f"a task knows its own {', '.join(given)}; leave that out, or the task")
    name = chosen_task(task, given, entry.wing, entry.fits) if task is None or isinstance(task, str) else task.name
    told = {**(task_options or {}), **given}
    if isinstance(options, Mapping) or options is None:
        _, _, presets = entry.load()
        suited: Mapping[str, Any] = {}
        if preset is None:
            own = {} if built is None else built.options
            suited = (own or (preferred_options(name, told) if name in TASKS else {})).get(entry.id, {})
        options = merged_options(preset_of(method, presets, preset), {**suited, **(options or {}), **more})
    if iterations is not None:
        options = merged_options(options, {"iterations": iterations})
    config = RunConfig(
        entry.id,
        name,
        jsonable(recorded(told)),
        options_to_dict(options),
        seed,
        device,
        dtype,
        micro_batches,
        checkpoint_every,
        None if from_run is None else str(from_run.path if isinstance(from_run, Run) else from_run),
        precision,
    )
    loop_options(config, options)
    with launched(device, how.parallel) as world:
        return begun(config, out, overwrite, resume, how=how, command=command, world=world, task=built, told=told)


def is_pipeline(teacher: Any) -> bool:
    """Is it a pipeline of diffusers? (diffusers is not imported for it)."""
    return any(kind.__name__ == "DiffusionPipeline" for kind in type(teacher).__mro__)
