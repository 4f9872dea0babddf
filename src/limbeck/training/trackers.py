"""Where the figures of a run go besides metrics.jsonl: TensorBoard, Weights & Biases, trackio."""

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import LimbeckError, unknown

PROJECT = "limbeck"


Sink = Callable[[int, dict[str, float]], Any]  # (step, its figures); one that holds something open has a close() too


def check_trackers(track: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the trackers to use. None: those of the environment variable LIMBECK_TRACK, else TensorBoard if installed.

    "none" stands for no tracker. Raises LimbeckError for names that are not known and packages that are not installed.
    """
    if track is None:
        given = os.environ.get("LIMBECK_TRACK")
        track = given.split(",") if given else ["tensorboard"] if find_spec("tensorboard") else []
    names = tuple(name for name in dict.fromkeys(track) if name != "none")
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, (*TRACKERS, "none"))
        if find_spec(name) is None:
            raise LimbeckError(f"{name} is not installed: {INSTALL[name]}; or track without it, --track none")
    return names


def open_trackers(track: Sequence[str] | None, folder: Path, resume_from: int | None) -> list[Sink]:
    """A sink per tracker of :func:`check_trackers`; a run that is resumed goes on where it was tracked.

    Raises LimbeckError for a service that does not start, as where nobody has logged in.
    """
    sinks: list[Sink] = []
    for name in check_trackers(track):
        try:
            sinks.append(TRACKERS[name](folder, resume_from))
        except Exception as error:  # whatever a service raises
            for sink in sinks:
                close(sink)
            hint = "run `wandb login`, set WANDB_MODE=offline, or " if name == "wandb" else ""
            raise LimbeckError(f"{name} did not start ({type(error).__name__}: {error}); {hint}track without it") from error
    return sinks


def close(sink: Sink) -> None:
    """Close what a sink holds open, if it holds anything."""
    getattr(sink, "close", lambda: None)()


class _TensorBoard:
    """Event files under tensorboard/; those of steps after ``resume_from`` no longer count."""

    def __init__(self, folder: Path, resume_from: int | None):
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resume_from is None else resume_from + 1
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WandB:
    """A run of Weights & Biases, of the project WANDB_PROJECT or "limbeck"; its id is kept in the folder."""

    def __init__(self, folder: Path, resume_from: int | None):
        self.run = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.resolve().name,
            id=_kept_id(folder / "wandb-id"),
            dir=str(folder),
            config=_config(folder),
            resume="allow",
        )

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        self.run.log(figures, step=step)

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    """A run of trackio, which finds it again by its name: the folder's, and an id that is kept in the folder."""

    def __init__(self, folder: Path, resume_from: int | None):
        self.trackio = import_module("trackio")
        name = f"{folder.resolve().name}-{_kept_id(folder / 'trackio-id')}"
        self.trackio.init(project=PROJECT, name=name, config=_config(folder), resume="allow")

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        self.trackio.log(figures, step=step)

    def close(self) -> None:
        self.trackio.finish()


TRACKERS: dict[str, Callable[[Path, int | None], Sink]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "trackio": _Trackio,
}
INSTALL = {
    "tensorboard": "pip install 'limbeck[track]'",
    "wandb": "pip install wandb",
    "trackio": "pip install trackio",
}


def _kept_id(file: Path) -> str:
    if not file.is_file():
        file.write_text(uuid.uuid4().hex[:8] + "\n")
    return file.read_text().strip()


def _config(folder: Path) -> Mapping[str, Any]:
    """What the run depends on, as its config.yaml says; {} where it has none."""
    file = folder / "config.yaml"
    return yaml.safe_load(file.read_text()) if file.is_file() else {}
