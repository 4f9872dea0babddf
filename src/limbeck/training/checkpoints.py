"""Checkpoints: safetensors and JSON, complete or absent, every byte accounted for.

    folder/
      best.json                     the step that is best, which is never pruned
      step-00000900/
        checkpoint.json             format, step, meta, size and sha256 of every file, sha256 of itself
        student.safetensors, ...    one file per group of tensors

A checkpoint is written to a temporary sibling folder, synced to disk, and renamed into place: under its final
name it is whole, and damage done to it later is found when it is read.
"""

import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from limbeck.errors import LimbeckError, unknown
from limbeck.training import tensorfile
from limbeck.training.durable import PARTIAL, Writer, discard, sync_folder, verify, write_known, write_synced
from limbeck.training.sealed import Damaged, Document, check_json, seal, unseal
from limbeck.training.tensorfile import chunks, untie

FORMAT = 1
# MIGRATIONS[k] turns the document of format k into that of format k + 1.
MIGRATIONS: dict[int, Callable[[Document], Document]] = {}

_STEP = re.compile(r"step-(\d{8,})(\.old)?")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class CheckpointError(LimbeckError):
    """A checkpoint that cannot be written or read: the message says which, why, and what to do next."""


@dataclass(frozen=True)
class Checkpoint:
    """What was loaded: tensors (on the CPU) by group and name; `skipped` says why newer ones were not."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]
    path: Path
    skipped: list[str]


def save(
    folder: Path | str,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    meta: dict[str, Any],
    keep: int = 2,
    best: bool = False,
    writer: Writer = write_synced,
) -> Path:
    """Write the checkpoint of `step`, then remove all but the `keep` newest and the best one.

    Tensors come back equal bit for bit, tied ones tied; strides are not kept. A checkpoint of the same step
    is replaced; those of later steps are left alone (`rewind` removes them). One process writes at a time.

    Args:
        tensors: by group and name; a group is a file, so its name is made of letters, digits, and `_.-`.
        meta: what JSON gives back unchanged: None, bool, int, finite float, str, list, dict with str keys.
        keep: how many of the newest checkpoints stay, at least 1.
        best: point `best.json` at this step.
        writer: writes one file from chunks of bytes.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: for a request that cannot be stored, and when the disk refuses; previous checkpoints
            are intact.
    """
    folder = Path(folder)
    if step < 0 or keep < 1:
        raise CheckpointError(f"cannot save step {step} with keep={keep}: step is at least 0, and keep at least 1")
    for group in tensors:
        if not _GROUP.fullmatch(group):
            raise CheckpointError(f"{group!r} cannot name a file of a checkpoint: use letters, digits, and _.-")
    final = folder / f"step-{step:08d}"
    partial = folder / f"{PARTIAL}{final.name}"
    try:
        check_json(meta, "meta")
        folder.mkdir(parents=True, exist_ok=True)
        for litter in folder.glob(f"{PARTIAL}*"):
            discard(litter)
        partial.mkdir()
        files: dict[str, dict[str, int | str]] = {}
        aliases: dict[str, dict[str, str]] = {}
        for group, named in tensors.items():
            kept, aliases[group] = untie(named)
            file = f"{group}.safetensors"
            files[file] = write_known(writer, partial / file, chunks(kept))
        document = {"format": FORMAT, "step": step, "meta": meta, "files": files, "aliases": aliases}
        write_known(writer, partial / "checkpoint.json", [seal(document)])
        sync_folder(partial)
        _put_in_place(partial, final)
        if best:
            mark_best(folder, step, writer)
        sync_folder(folder)
    except LimbeckError as error:
        raise CheckpointError(f"checkpoint of step {step}: {error}") from None
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder}: {error.strerror or error}. "
            f"Earlier checkpoints are intact (steps: {_listed(folder)}): "
            "free space or choose another folder, then resume"
        ) from error
    finally:
        discard(partial)
    try:
        _prune(folder, step, keep)
    except (OSError, Damaged) as error:
        warnings.warn(f"old checkpoints in {folder} were not removed: {error}", stacklevel=2)
    return final


def take_part(tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """What the other processes do while one saves tensors that are split over all of them."""
    for named in tensors.values():
        tensorfile.take_part(named)


def mark_best(folder: Path | str, step: int, writer: Writer = write_synced) -> None:
    """Point ``best.json`` at a checkpoint."""
    partial = Path(folder) / f"{PARTIAL}best.json"
    discard(partial)
    try:
        write_known(writer, partial, [seal({"format": FORMAT, "step": step})])
        os.replace(partial, Path(folder) / "best.json")
    finally:
        discard(partial)


def exist(folder: Path | str) -> bool:
    """Is there any checkpoint, whole or damaged?"""
    return bool(_found(Path(folder)))


def load(folder: Path | str, which: str | int = "last") -> Checkpoint:
    """Read a checkpoint after verifying every file of it.

    `last` takes the newest good one and says in `skipped` why newer ones are not; `best` and a step take that
    one or none.

    Raises:
        CheckpointError: no checkpoint asked for is there and whole.
    """
    folder = Path(folder)
    if isinstance(which, str) and which not in ("last", "best"):
        raise unknown("checkpoint", which, ["last", "best", "a step"])
    found = _found(folder)
    if not found:
        raise CheckpointError(f"no checkpoints in {folder}: check the folder, or start the run anew")
    if which != "last":
        try:
            step = _best(folder) if which == "best" else which
        except (Damaged, OSError) as error:
            raise CheckpointError(f"{folder / 'best.json'} {error}: load the last checkpoint instead") from None
        if step is None:
            raise CheckpointError(f"no checkpoint in {folder} was marked as best: load the last one instead")
        found = [entry for entry in found if entry[0] == step]
        if not found:
            raise CheckpointError(f"no checkpoint of step {step} in {folder}; there are {_listed(folder)}")
    skipped: list[str] = []
    for step, path in found:
        try:
            tensors, meta = _read(path, step)
            return Checkpoint(step, tensors, meta, path, skipped)
        except (Damaged, OSError, SafetensorError) as error:
            skipped.append(f"{path.name}: {error}")
    raise CheckpointError(
        f"no usable checkpoint in {folder}: {'; '.join(skipped)}. Steps there: {_listed(folder)}. Load another one, restore the "
        "files from a copy, or start anew"
    )


def rewind(folder: Path | str, step: int, keep: int | None = None) -> list[int]:
    """Remove the checkpoints of steps after `step`, for a run that continues from there; return their steps.

    A best checkpoint among them goes too: it belongs to the abandoned future. What a save left behind that was killed goes as
    well: half-written files, and (`keep` given) older checkpoints that it would have removed.
    """
    folder = Path(folder)
    later = [(n, path) for n, path in _found(folder) if n > step]
    with suppress(Damaged):
        if (best := _best(folder)) is not None and best > step:
            (folder / "best.json").unlink()
    for _, path in later:
        _remove(path)
    for litter in folder.glob(f"{PARTIAL}*"):
        discard(litter)
    if keep is not None:
        with suppress(Damaged):
            _prune(folder, step, keep)
    return sorted({n for n, _ in later})


def _found(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints, newest first; one set aside by an interrupted replacement comes after its successor."""
    matches = [(_STEP.fullmatch(path.name), path) for path in folder.glob("step-*")]
    found = [(int(m[1]), not m[2], path) for m, path in matches if m]
    return [(step, path) for step, _, path in sorted(found, reverse=True)]


def _listed(folder: Path) -> str:
    return ", ".join(str(n) for n in sorted({step for step, _ in _found(folder)})) or "none"


def _best(folder: Path) -> int | None:
    return _document(folder / "best.json")["step"] if (folder / "best.json").exists() else None


def _document(path: Path) -> Document:
    document = unseal(path.read_bytes(), FORMAT, MIGRATIONS)
    if type(document.get("step")) is not int:
        raise Damaged("names no step")
    return document


def _read(path: Path, step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    if path.is_symlink() or (path / "checkpoint.json").is_symlink():
        raise Damaged("is a link, or its checkpoint.json is one")
    if not (path / "checkpoint.json").is_file():
        raise Damaged("checkpoint.json is missing")
    try:
        document = _document(path / "checkpoint.json")
    except Damaged as error:
        raise Damaged(f"checkpoint.json {error}") from None
    match document:
        case {"meta": dict(meta), "files": dict(files), "aliases": dict(aliases)} if document["step"] == step:
            pass
        case _:
            raise Damaged(f"checkpoint.json (step {document['step']}) does not describe this folder")
    tensors = {}
    for file, facts in files.items():
        group = file.removesuffix(".safetensors")
        if not _GROUP.fullmatch(group) or file == group:
            raise Damaged(f"checkpoint.json lists {file!r}, which is no name of a tensor file")
        verify(path / file, facts)
        tensors[group] = load_file(path / file)
        ties = aliases.get(group)
        if not isinstance(ties, dict):
            raise Damaged(f"checkpoint.json has no aliases of {group!r}")
        for alias, target in ties.items():
            if not isinstance(target, str) or target not in tensors[group]:
                raise Damaged(f"checkpoint.json ties {alias!r} to {target!r}, which {file} lacks")
            tensors[group][alias] = tensors[group][target]
    return tensors, meta


def _put_in_place(partial: Path, final: Path) -> None:
    # A folder cannot replace a full one in one move: the old one is set aside under a name that `load` knows.
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        _remove(old)
        final.rename(old)
    partial.rename(final)


def _prune(folder: Path, step: int, keep: int) -> None:
    best = _best(folder)
    kept: set[int] = set()
    for n, path in [entry for entry in _found(folder) if entry[0] <= step]:
        if n in kept or (len(kept) >= keep and n != best):
            _remove(path)
        kept.add(n)


def _remove(path: Path) -> None:
    # Renamed first, so that a checkpoint is never seen half removed.
    if path.exists():
        shutil.rmtree(path.rename(path.with_name(f"{PARTIAL}{path.name}")))
