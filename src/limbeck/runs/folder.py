"""The folder of a run: free, to be replaced, or to go on with."""

import itertools
import sys
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from limbeck.errors import LimbeckError
from limbeck.runs.config import RunConfig, read_config
from limbeck.training import Loop
from limbeck.training.checkpoints import load as load_checkpoint
from limbeck.training.durable import PARTIAL, discard, put_in_place
from limbeck.training.options import changed
from limbeck.version import __version__


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
    if folder.is_dir() and _filled(folder):
        if not (folder / "config.yaml").is_file():
            raise LimbeckError(f"{folder} is not a run (no config.yaml) and will not be overwritten; choose another --out")
        if not overwrite:
            raise LimbeckError(f"{folder} already exists; --resume {folder} goes on with it, --overwrite replaces it")
    return folder


def begin(folder: Path, config: RunConfig, overwrite: bool, resume: bool) -> None:
    """Empty the folder of a new run and write its config.yaml. Called once task and method stand: what fails there costs no run."""
    if resume:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:  # config.yaml goes last: it says that this is a run, and may be overwritten
        for path in folder.iterdir():
            if path.name != "config.yaml":
                discard(path)
    if left := [name for name in _filled(folder) if not overwrite or name != "config.yaml"]:
        raise LimbeckError(f"{folder} holds {left[0]}, which another run wrote meanwhile; choose another --out")
    put_in_place(folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))


def _filled(folder: Path) -> list[str]:
    """What is in a folder, but for what a killed run had not finished writing."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(PARTIAL)]


def restore(loop: Loop, folder: Path, config: RunConfig, quiet: bool = False) -> None:
    """Continue after the last good checkpoint of a run; says which damaged ones it passed over.

    Raises LimbeckError where there is none, and for a checkpoint of another run.
    """
    checkpoint = load_checkpoint(folder / "checkpoints")
    for line in checkpoint.skipped if not quiet else ():
        print(f"skipped a damaged checkpoint: {line}", file=sys.stderr)
    if (method := checkpoint.meta.get("method")) != config.method:
        raise LimbeckError(f"{folder} holds a run of {method!r}, not of {config.method!r}")
    try:
        loop.restore(checkpoint)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise LimbeckError(f"{checkpoint.path} does not fit {folder / 'config.yaml'} ({said}); start the run anew") from None


def fresh_folder(config: RunConfig) -> Path:
    """runs/METHOD-TASK-NUMBER, the first number that is free."""
    names = (Path("runs") / f"{config.method}-{config.task}-{number}" for number in itertools.count(1))
    return next(folder for folder in names if not folder.exists())
