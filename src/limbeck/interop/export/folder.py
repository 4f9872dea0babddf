"""A student as a pipeline's folder: its network and scheduler, the rest copied file by file from the teacher's."""

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.interop.export.stock import Plan


@contextmanager
def replaced(out: Path | str, overwrite: bool) -> Iterator[Path]:
    """A folder beside OUT to write into, which takes its place at the end; where that fails nothing is left.

    Raises LimbeckError where OUT is there already (``overwrite``: an exported folder or an empty one goes).
    """
    out = Path(out)
    check_target(out, overwrite)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.is_dir():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(out: Path, overwrite: bool) -> None:
    """Raise LimbeckError unless OUT is free, or may be overwritten."""
    if out.is_file() or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        if out.is_file() and not overwrite:
            raise LimbeckError(f"{out} already exists; --overwrite replaces it")
        return
    if not overwrite:
        raise LimbeckError(f"{out} already exists; --overwrite replaces it")
    if not (out / "limbeck.json").is_file():
        raise LimbeckError(
            f"{out} was not written by `limbeck export` (no limbeck.json) and is not replaced; choose another folder"
        )


def write_pipeline(
    folder: Path,
    source: Path | str,
    plan: Plan,
    models: Mapping[str, nn.Module],
    boundary: float | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a pipeline into an empty FOLDER: ``models`` by component, the plan's scheduler, and all else from SOURCE.

    ``boundary``: where transformer_2 takes over, as a share of the time (two models). ``dtype``: that of the models' weights.
    """
    source, index = Path(source), read_index(Path(source))
    name = plan.pipeline.name
    if plan.pipeline.takes:  # a pipeline of another class: nothing but what that one has
        index = {"unet": next(v for n, v in index.items() if n in ("unet", "model"))}
    index |= {"_class_name": name, "scheduler": ["diffusers", plan.scheduler]}
    for component, model in models.items():
        index[component] = ["diffusers", type(model).__name__]
    if boundary is not None:
        index["boundary_ratio"] = boundary
    elif len(models) == 1 and index.get("transformer_2"):
        index |= {"transformer_2": [None, None], "boundary_ratio": None}
    for component, pair in sorted(index.items()):
        if component.startswith("_") or not isinstance(pair, list) or len(pair) != 2 or pair[0] is None:
            continue
        if component == "scheduler":
            write_scheduler(folder / component, plan)
        elif component in models:
            cast(models[component], dtype).save_pretrained(folder / component)
        else:
            shutil.copytree(source / component, folder / component, ignore=shutil.ignore_patterns(".*"))
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def cast(model: Any, dtype: torch.dtype | None) -> Any:
    """The model, or a copy of it in another dtype."""
    return model if dtype is None else copy.deepcopy(model).to(dtype)


def write_scheduler(folder: Path, plan: Plan) -> None:
    """The plan's scheduler into a folder of its own."""
    import diffusers

    getattr(diffusers, plan.scheduler)(**plan.config).save_pretrained(folder)


def read_index(source: Path) -> dict[str, Any]:
    """The components of a pipeline's folder, or of a bare model's as those of a pipeline. Raises LimbeckError for others."""
    file = source / "model_index.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        return {n: v for n, v in found.items() if n != "_name_or_path"}
    if not (source / "config.json").is_file():
        raise LimbeckError(f"{source}, from which the teacher came, is no longer there; export where the teacher's folder is")
    return {"model": ["diffusers", json.loads((source / "config.json").read_text())["_class_name"]]}


def pipeline_class(source: Path | str) -> str:
    """The class of a folder's pipeline (of a bare model: the one that draws with it)."""
    return str(read_index(Path(source)).get("_class_name", "DDPMPipeline"))


def scheduler_config(source: Path | str) -> dict[str, Any]:
    """The configuration of a folder's scheduler, {} where there is none."""
    for place in (Path(source) / "scheduler", Path(source), Path(source).parent / "scheduler"):
        if (place / "scheduler_config.json").is_file():
            found: dict[str, Any] = json.loads((place / "scheduler_config.json").read_text())
            return found
    return {}
