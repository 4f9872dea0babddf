"""Files and folders that are on the disk when the call returns, with the facts to check them later."""

import os
import shutil
from collections.abc import Callable, Iterable
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from limbeck.training.sealed import Damaged

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
    if not path.is_file():
        raise Damaged(f"{path.name} is missing")
    if (actual := path.stat().st_size) != size:
        raise Damaged(f"{path.name} has {actual} bytes instead of {size}")
    with open(path, "rb") as file:
        if file_digest(file, "sha256").hexdigest() != digest:
            raise Damaged(f"{path.name} does not agree with its sha256")


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "posix":  # a folder cannot be opened elsewhere
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file, or as much of a folder as can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
