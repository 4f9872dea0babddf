"""Distil a task with a method, judge teacher and student, and write it all down."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.methods import Entry, find
from limbeck.runs.config import Execution, RunConfig, check_place, jsonable, read_config
from limbeck.runs.folder import begin, open_folder, restore
from limbeck.runs.summary import summarise
from limbeck.tasks import (
    WINGS,
    AnyTask,
    Task,
    build_task,
    named_by,
    student_of,
)
from limbeck.training import ALONE, Loop, LoopOptions, Method, World, checkpoint_roles, checkpoints, set_precision
from limbeck.training.compiled import TRIED, compile_roles
from limbeck.training.durable import assembled
from limbeck.training.options import options_from_dict
from limbeck.training.plain import read_plain

EVALUATIONS = 6  # evaluations of the student along a run, the last one at its end


@dataclass
class Run:
    """A finished (or resumable) run: its folder, the method with the student, and its summary."""

    path: Path
    config: RunConfig
    method: Method
    summary: dict[str, Any]

    @property
    def student(self) -> Any:
        """The student's averaged weights: of few-step generators a denoiser, from which ``run.sampler()`` draws."""
        return student_of(self.method)

    def sampler(self) -> Callable[..., Tensor]:
        """(z standard normal (B, ...), cond, fresh noise of step i) -> x: the student as a generator, where it is one."""
        return self.method.sampler()


def prepare(config: RunConfig, task: AnyTask, trust_code: bool = False) -> tuple[Method, Any]:
    """The method of a configuration on a task, and its options. ``trust_code``: of the run that it begins with."""
    cls, options_class, _ = distilling(config.method).load()
    method: Method
    options = options_from_dict(options_class, config.options, f"options of {config.method}")
    if config.from_run is not None:
        task = started(task, config.from_run, trust_code)
    method = cls.on(task, options, config.seed)
    if config.precision != "float32":
        set_precision(method.roles, getattr(torch, config.precision))
    return method, options


def started(task: Any, folder: Path | str, trust_code: bool = False) -> Any:
    """The task with the student of another run as what students and critics start as. Raises LimbeckError if it does not fit."""
    if not isinstance(task, Task):
        raise LimbeckError(f"students of the task {task.name} do not start from another run's; leave --from-run out")
    before, other = open_run(folder, quiet=True, trust_code=trust_code)
    if not isinstance(other, Task):
        raise LimbeckError(f"the student of {folder} is no few-step generator; name the run of one")
    if other.shape != task.shape:
        raise LimbeckError(f"the student of {folder} makes samples {other.shape}, but the task {task.name} has {task.shape}")
    return replace(task, start=before.student, start_sigmas=before.method.sigmas)  # type: ignore[attr-defined]


def distilling(name: str) -> Entry:
    """The entry of a method that distils a task. Raises LimbeckError for unknown names, samplers, and wings without tasks."""
    entry = find(name)
    if entry.wing not in WINGS:
        raise LimbeckError(
            f"{entry.id} has no task to distil yet (its wing is {entry.wing}); it is trained by `limbeck reproduce {entry.id}`, "
            f"or from Python with {entry.module}"
        )
    if not entry.module:
        raise LimbeckError(f"{entry.id} is a sampler and distils nothing; see `limbeck reproduce {entry.id}`")
    return entry


def begun(
    config: RunConfig,
    out: Path | str | None,
    overwrite: bool,
    resume: bool,
    *,
    how: Execution,
    command: str | None,
    world: World,
    task: AnyTask | None = None,
    told: Mapping[str, Any] | None = None,
) -> Run:
    """Open the folder, build the task (None: that of the configuration, ``told`` its options if they are objects), and run."""
    check_place(config.device, config.dtype)
    folder = world.first(lambda: open_folder(out, config, overwrite, resume))
    if task is None:
        place: dict[str, Any] = {"device": config.device, "dtype": config.dtype, "quiet": how.quiet or not world.writes}
        task = world.in_turn(lambda: build_task(config.task, config.task_options if told is None else told, **place))
    return run(config, task, folder, overwrite, resume, how=how, command=command, world=world)


def run(
    config: RunConfig,
    task: AnyTask,
    folder: Path,
    overwrite: bool = False,
    resume: bool = False,
    *,
    how: Execution = Execution(),  # noqa: B008
    command: str | None = None,
    world: World = ALONE,
) -> Run:
    """Train (or go on training) in a folder that :func:`open_folder` allowed, judge teacher and student, write it all down.

    Of several processes one judges and writes; the summary of the others is empty.
    """
    method, options = prepare(config, task, how.trust_code)
    if how.gradient_checkpointing:
        checkpoint_roles(method.roles)
    world.first(lambda: begin(folder, config, overwrite, resume))
    loop = Loop(
        method,
        method.source(task.source),
        loop_options(config, options, method),
        folder=folder,
        device=config.device,
        evaluate=lambda step: task.watched(method),
        best=task.best,
        track=how.track,
        meta={"method": config.method},
        quiet=how.quiet,
        world=world,
        offload=how.offload,
    )
    if world.first(lambda: checkpoints.exist(folder / "checkpoints")):  # else the run died before its first one
        restore(loop, folder, config, quiet=not world.writes)
        if world.any(loop.step != world.first(lambda: loop.step)):
            raise LimbeckError(
                f"not all processes see the same checkpoints in {folder}; put it on a disk that all of them share"
            )
        if world.writes:
            print(f"resumed {folder} at step {loop.step} of {options.iterations}", file=sys.stderr)
    if how.compile:
        compile_roles(method, (loop.batches(step)[0] for step in range(loop.step, loop.step + TRIED)))
    loop.train()
    if not world.evaluates:
        return Run(folder, config, method, {})
    done = Run(folder, config, method, summarise(config, task, method, loop, command))
    write_down(done, task, world)
    return done if world.writes else replace(done, summary={})


def loop_options(config: RunConfig, options: Any, method: Method | None = None) -> LoopOptions:
    """How long and how often; the ``method`` knows the batch that its options leave open.

    Raises LimbeckError for numbers that no run can have, before any teacher is trained for it.
    """
    every = max(-(-options.iterations // EVALUATIONS), 1)
    batch = options.batch or (config.micro_batches if method is None else method.batch)
    return LoopOptions(
        options.iterations, batch, config.micro_batches, config.seed, config.checkpoint_every, evaluate_every=every
    )


def write_down(done: Run, task: AnyTask, world: World = ALONE) -> None:
    """Pictures, student, summary and report."""
    from limbeck.report import save_grid, write_report

    album = task.album(done.method)
    done.summary["pictures"] = [{"name": name, "title": p.title, "note": p.note} for name, p in album.items()]
    with assembled(done.path) if world.writes else nullcontext(done.path) as folder:
        with world.gathered(done.student):
            if world.writes:
                task.leave(folder, done.method, {"method": done.config.method, "task": done.config.task})
        if not world.writes:
            return
        (folder / "samples").mkdir(exist_ok=True)
        for name, picture in album.items():
            save_grid(folder / "samples" / f"{name}.png", picture.images, picture.columns)
        (folder / "summary.json").write_text(json.dumps(jsonable(done.summary), indent=2) + "\n")
    write_report(done.path)


def open_run(folder: Path | str, quiet: bool = False, trust_code: bool = False) -> tuple[Run, Any]:
    """A run with its student as of the last good checkpoint, and its task.

    ``trust_code``: import what its config.yaml names as MODULE:NAME or .pt2. Raises LimbeckError where it names any otherwise.
    """
    config = read_config(folder)
    check_place(config.device, config.dtype)
    with named_by(Path(folder) / "config.yaml", trust_code):
        task = build_task(config.task, config.task_options, device=config.device, dtype=config.dtype, quiet=quiet)
        method, options = prepare(config, task, trust_code)
    loop = Loop(method, method.source(task.source), loop_options(config, options, method), quiet=True)
    restore(loop, Path(folder), config)
    file = Path(folder) / "summary.json"
    summary = read_plain(file)[1] if file.is_file() else {}
    if not isinstance(summary, dict):
        raise LimbeckError(f"{file} holds no names with values: remove it, or resume the run to write it again")
    return Run(Path(folder), config, method, summary), task
