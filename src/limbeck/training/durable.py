"""Files and folders that are on the disk when the call returns, with the facts to check them later."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.training.sealed import Damaged

PARTIAL = ".partial-"
"""How the names begin of what is not finished yet."""

Chunks = Iterable[bytes | memoryview]
Writer = Callable[[Path, Chunks], None]


def write_synced(path: Path, data: Chunks) -> None:
    """Write a new file and wait until it is on the disk."""
    with open(path, "xb") as file:
        for chunk in data:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def write_known(writer: Writer, path: Path, data: Chunks) -> dict[str, int | str]:
    """Write a file; the size and sha256 of what was meant to be written."""
    digest, size = sha256(), 0

    def observed() -> Chunks:
        nonlocal size
        for chunk in data:
            digest.update(chunk)
            size += len(chunk)
            yield chunk

    writer(path, observed())
    return {"size": size, "sha256": digest.hexdigest()}


def verify(path: Path, facts: Any) -> None:
    """Raise Damaged unless the file has the size and sha256 that `write_known` returned."""
    match facts:
        case {"size": int(size), "sha256": str(digest)}:
            pass
        case _:
            raise Damaged(f"{path.name} has no size and sha256 on record")
    if path.is_symlink():
        raise Damaged(f"{path.name} is a link")
    if not path.is_file():
        raise Damaged(f"{path.name} is missing")
    if (actual := path.stat().st_size) != size:
        raise Damaged(f"{path.name} has {actual} bytes instead of {size}")
    with open(path, "rb") as file:
        if file_digest(file, "sha256").hexdigest() != digest:
            raise Damaged(f"{path.name} does not agree with its sha256")


def put_in_place(path: Path, data: bytes | str) -> None:
    """Write a file beside ``path`` and rename it into place: whoever reads finds the old file or the new one, whole.

    A link under that name is replaced, never followed.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    discard(partial)
    try:
        write_synced(partial, [data.encode() if isinstance(data, str) else data])
        os.replace(partial, path)
    finally:
        discard(partial)
    sync_folder(path.parent)


@contextmanager
def assembled(folder: Path) -> Iterator[Path]:
    """A new folder inside; when the block ends, its files move into ``folder``, each in one step, in the order of their names."""
    partial = folder / f"{PARTIAL}files"
    discard(partial)
    partial.mkdir()
    try:
        yield partial
        for file in sorted(path for path in partial.rglob("*") if path.is_file()):
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            target = folder / file.relative_to(partial)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
        sync_folder(folder)
    finally:
        discard(partial)


def refuse_links(folder: Path) -> None:
    """Raise a LimbeckError where something in a folder is a link to what lies outside of it: reading or writing a run that
    somebody else made must not reach beyond it."""
    root = os.path.realpath(folder)
    for parent, folders, files in os.walk(root):
        for path in (os.path.join(parent, name) for name in (*folders, *files)):
            if os.path.islink(path) and not os.path.realpath(path).startswith(root + os.sep):
                raise LimbeckError(f"{path} is a link out of the folder of its run; put there what it points to, or remove it")


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "posix":  # a folder cannot be opened elsewhere
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file or a link, or as much of a folder as can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
