"""The folder of a run: free, to be replaced, or to go on with."""

import itertools
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from limbeck.errors import LimbeckError
from limbeck.runs.config import RunConfig, read_config
from limbeck.training import Checkpoint
from limbeck.training.checkpoints import load as load_checkpoint
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


def last_checkpoint(folder: Path, quiet: bool = False) -> Checkpoint:
    """The last good checkpoint of a run; says which damaged ones it passed over."""
    checkpoint = load_checkpoint(folder / "checkpoints")
    for line in checkpoint.skipped if not quiet else ():
        print(f"skipped a damaged checkpoint: {line}", file=sys.stderr)
    return checkpoint


def fresh_folder(config: RunConfig) -> Path:
    """runs/METHOD-TASK-NUMBER, the first number that is free, taken by an empty folder."""
    for number in itertools.count(1):
        folder = Path("runs") / f"{config.method}-{config.task}-{number}"
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError
