"""Runs: distil a task with a method in a folder that can be resumed, sampled, judged and reported.

A run's folder: config.yaml, metrics.jsonl, checkpoints/, samples/, student.safetensors + .json, summary.json, report.html.
"""

import itertools
import json
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from limbeck.denoisers import save_student
from limbeck.errors import LimbeckError, unknown
from limbeck.methods import Entry, find, preset_of
from limbeck.methods.generators.generator import Generator, make_method
from limbeck.tasks import OWN_OPTIONS, TASKS, Task, build_task, own_task, preferred_options, recorded
from limbeck.training import Checkpoint, Loop, LoopOptions, set_precision
from limbeck.training.checkpoints import load as load_checkpoint
from limbeck.training.options import changed, merged_options, options_from_dict, options_to_dict
from limbeck.version import __version__

FORMAT = 1
EVALUATIONS = 6  # evaluations of the student along a run, the last one at its end
PICTURED = 10  # columns of the sample grids


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on; written as config.yaml, replayed by ``--config`` and checked by ``--resume``."""

    method: str
    task: str = "digits"
    task_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    micro_batches: int = 1
    checkpoint_every: int = 300
    precision: Literal["float32", "bfloat16"] = "float32"
    version: str = __version__
    format: int = FORMAT


@dataclass
class Run:
    """A finished (or resumable) run: its folder, the student as a denoiser, and its summary."""

    path: Path
    config: RunConfig
    method: Generator
    summary: dict[str, Any]

    @property
    def student(self) -> Any:
        """The student's averaged weights as a denoiser; ``run.sampler()`` draws from it."""
        return self.method.roles["student"].best

    def sampler(self) -> Callable[..., Tensor]:
        """(z standard normal (B, ...), cond, fresh noise of step i) -> x: the student as a generator."""
        return self.method.sampler()


def prepare(config: RunConfig, task: Task) -> tuple[Generator, Any]:
    """The method of a configuration on a task, and its options."""
    cls, options_class, _ = distilling(config.method).load()
    options = options_from_dict(options_class, config.options, f"options of {config.method}")
    method = make_method(cls, options, task, config.seed)
    if config.precision != "float32":
        set_precision(method.roles, getattr(torch, config.precision))
    return method, options


def distilling(name: str) -> Entry:
    """The entry of a method that distils. Raises LimbeckError for unknown names and for samplers."""
    entry = find(name)
    if not entry.module:
        raise LimbeckError(f"{entry.id} is a sampler and distils nothing; see `limbeck reproduce {entry.id}`")
    return entry


def distill(
    teacher: Any = None,
    method: str = "dmd",
    data: Any = None,
    *,
    task: str | Task | None = None,
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
    precision: Literal["float32", "bfloat16"] = "float32",
    tensorboard: bool = False,
    quiet: bool = False,
    command: str | None = None,
    **more: Any,
) -> Run:
    """Distil a teacher into a few-step student. The main job, from Python.

    ``teacher``: a denoiser (see limbeck.denoisers) or your own network, with ``data`` (images (N, C, H, W) in [-1, 1], or a
    folder of pictures); what else there is to say of them (``labels=``, ``prediction=``, ``process=``, ...) are the keywords
    of :func:`limbeck.tasks.own_task`. None: a ``task`` by name ("digits", the default, or "photos"). ``method``: see
    `limbeck methods`; ``options``: its options dataclass, or a mapping of those that differ from the ``preset``; further
    keywords are options too (``alpha=1.0``). ``precision``: bfloat16 runs the networks under autocast, losses
    in ``dtype``. ``out``: the run's folder (None: a new one under runs/). Returns a :class:`Run`.
    Raises LimbeckError for what it cannot use.
    """
    entry = distilling(method)
    check_place(device, dtype)
    task_options = dict(task_options or {})
    if teacher is not None or data is not None:
        own = {**task_options, **{name: more.pop(name) for name in OWN_OPTIONS if name in more}}
        task = own_task(teacher, data, device=device, dtype=dtype, quiet=quiet, **own)
        task_options = recorded(teacher, data, own)
    name = task.name if isinstance(task, Task) else (task or "digits")
    if isinstance(options, Mapping) or options is None:
        _, _, presets = entry.load()
        suited = preferred_options(name).get(entry.id, {}) if preset is None and name in TASKS else {}
        options = merged_options(preset_of(method, presets, preset), {**suited, **(options or {}), **more})
    if iterations is not None:
        options = replace(options, iterations=iterations)
    config = RunConfig(
        entry.id,
        name,
        _jsonable(task_options),
        options_to_dict(options),
        seed,
        device,
        dtype,
        micro_batches,
        checkpoint_every,
        precision,
    )
    folder = open_folder(out, config, overwrite, resume)
    built = task if isinstance(task, Task) else build_task(name, task_options, device=device, dtype=dtype, quiet=quiet)
    return run(config, built, folder, overwrite, resume, quiet=quiet, tensorboard=tensorboard, command=command)


def run(
    config: RunConfig,
    task: Task,
    folder: Path,
    overwrite: bool = False,
    resume: bool = False,
    *,
    quiet: bool = False,
    command: str | None = None,
    tensorboard: bool = False,
) -> Run:
    """Train (or go on training) in a folder that :func:`open_folder` allowed, judge teacher and student, write it all down."""
    method, options = prepare(config, task)
    begin(folder, config, overwrite, resume)
    nfe = len(method.times)
    loop = Loop(
        method,
        task.source,
        LoopOptions(
            options.iterations,
            options.batch,
            config.micro_batches,
            config.seed,
            config.checkpoint_every,
            evaluate_every=max(-(-options.iterations // EVALUATIONS), 1),
        ),
        folder=folder,
        device=config.device,
        evaluate=lambda step: _kept(task.evaluator(method.sampler(), nfe)),
        best="frechet",
        tensorboard=tensorboard,
        meta={"method": config.method},
        quiet=quiet,
    )
    if (folder / "checkpoints").is_dir():
        checkpoint = last_checkpoint(folder)
        if checkpoint.meta.get("method") != config.method:
            raise LimbeckError(f"{folder} holds a run of {checkpoint.meta.get('method')!r}, not of {config.method!r}")
        loop.restore(checkpoint)
        print(f"resumed {folder} at step {loop.step} of {options.iterations}", file=sys.stderr)
    loop.train()
    summary = summarise(config, task, method, loop, command)
    done = Run(folder, config, method, summary)
    write_down(done, task)
    return done


def summarise(config: RunConfig, task: Task, method: Generator, loop: Loop, command: str | None) -> dict[str, Any]:
    """The figures of teacher and student, as they go to summary.json."""
    entry, nfe = find(config.method), len(method.times)
    nodes = (nfe + 1) // 2  # Heun with n nodes costs 2 n - 1 calls
    return {
        "method": entry.id,
        "title": entry.title,
        "arxiv": entry.arxiv,
        "task": config.task,
        "seed": config.seed,
        "teacher": task.judged_teacher(task.teacher_nodes),
        "teacher_at_student_nfe": task.judged_teacher(nodes),
        "student": task.evaluator(method.sampler(), nfe),
        "noise_floor": task.evaluator.noise_floor(),
        "seconds": round(loop.seconds, 2),
        "iterations": loop.step,
        "teacher_seconds": task.facts.get("seconds"),
        "teacher_origin": task.facts.get("origin"),
        "history": loop.history,
        "messages": loop.messages,
        "versions": {"limbeck": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "command": command or f"limbeck distill {entry.id} --task {config.task} --seed {config.seed}",
    }


def write_down(done: Run, task: Task) -> None:
    """Samples, student, summary and report."""
    from limbeck.report import save_grid, write_report

    samplers: dict[str, Callable[..., Tensor]] = {
        "teacher": task.teacher_sampler(task.teacher_nodes),
        "teacher_at_student_nfe": task.teacher_sampler((len(done.method.times) + 1) // 2),
        "student": done.sampler(),
    }
    pictures = {"real": task.pictures(PICTURED), **{n: task.pictures(PICTURED, s) for n, s in samplers.items()}}
    (done.path / "samples").mkdir(exist_ok=True)
    for name, images in pictures.items():
        save_grid(done.path / "samples" / f"{name}.png", images, PICTURED)
    info = {"method": done.config.method, "task": done.config.task, "times": done.method.times.tolist()}
    save_student(done.path / "student", done.student, info)
    (done.path / "summary.json").write_text(json.dumps(_jsonable(done.summary), indent=2) + "\n")
    write_report(done.path)


def open_folder(out: Path | str | None, config: RunConfig, overwrite: bool, resume: bool) -> Path:
    """The run's folder: free, to be replaced (``overwrite``), or checked to hold the same run (``resume``). Writes nothing."""
    if overwrite and resume:
        raise LimbeckError("--overwrite and --resume contradict each other; choose one")
    folder = fresh_folder(config) if out is None else Path(out)
    if folder.is_file():
        raise LimbeckError(f"{folder} is a file, not a folder; choose another --out")
    if resume:
        stored = read_config(folder)
        if differ := changed(asdict(replace(stored, version=__version__)), asdict(config)):
            raise LimbeckError(f"{folder} was started with other options ({'; '.join(differ)}); resume without changing them")
        return folder
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "config.yaml").is_file():
            raise LimbeckError(f"{folder} is not a run (no config.yaml) and will not be overwritten; choose another --out")
        if not overwrite:
            raise LimbeckError(f"{folder} already exists; --resume {folder} goes on with it, --overwrite replaces it")
    return folder


def begin(folder: Path, config: RunConfig, overwrite: bool, resume: bool) -> None:
    """Empty the folder of a new run and write its config.yaml. Called once task and method stand: what fails there costs no run."""
    if resume:
        return
    if folder.is_dir() and overwrite:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise LimbeckError(f"{folder} was filled by another run meanwhile; choose another --out")
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config), sort_keys=False))


def last_checkpoint(folder: Path) -> Checkpoint:
    """The last good checkpoint of a run; says which damaged ones it passed over."""
    checkpoint = load_checkpoint(folder / "checkpoints")
    for line in checkpoint.skipped:
        print(f"skipped a damaged checkpoint: {line}", file=sys.stderr)
    return checkpoint


def check_place(device: str, dtype: str) -> None:
    """Raise LimbeckError for a device that is not there and a dtype that cannot be trained in."""
    if dtype not in (dtypes := ("float32", "float64")):
        raise unknown("dtype", dtype, dtypes)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LimbeckError(f"the device {device!r} is not here ({str(error).splitlines()[0]}); use cpu or cuda") from None


def fresh_folder(config: RunConfig) -> Path:
    """runs/METHOD-TASK-NUMBER, the first number that is free, taken by an empty folder."""
    for number in itertools.count(1):
        folder = Path("runs") / f"{config.method}-{config.task}-{number}"
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def read_config(folder: Path | str) -> RunConfig:
    """The configuration of a run. Raises LimbeckError where the folder is no run, half-written, or too new."""
    file = Path(folder) / "config.yaml"
    if not file.is_file():
        raise LimbeckError(f"{folder} is not a run: it has no config.yaml (half-written or another folder); start a new run")
    return parse_config(file)


def parse_config(file: Path) -> RunConfig:
    """The configuration in a YAML file."""
    try:
        config = options_from_dict(RunConfig, yaml.safe_load(file.read_text()), str(file))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LimbeckError(
            f"{file} is not readable YAML: {str(error).splitlines()[0]}; restore it or start a new run"
        ) from None
    if config.format != FORMAT:
        raise LimbeckError(f"{file} has format {config.format}, this version reads {FORMAT}; use limbeck {config.version}")
    return config


def open_run(folder: Path | str, quiet: bool = False) -> tuple[Run, Task]:
    """A run with its student as of the last good checkpoint, and its task."""
    config = read_config(folder)
    task = build_task(config.task, config.task_options, device=config.device, dtype=config.dtype, quiet=quiet)
    method, options = prepare(config, task)
    loop = Loop(method, task.source, LoopOptions(options.iterations, options.batch, seed=config.seed), quiet=True)
    loop.restore(last_checkpoint(Path(folder)))
    file = Path(folder) / "summary.json"
    return Run(Path(folder), config, method, json.loads(file.read_text()) if file.is_file() else {}), task


def _kept(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: figures[name] for name in ("frechet", "accuracy") if figures[name] == figures[name]}


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _jsonable(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
