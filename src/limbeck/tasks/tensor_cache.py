"""Tensors that cost much to compute, kept on disk by what they depend on: embeddings of prompts, latents, a teacher's samples."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.tasks.teacher import cache_folder

Tensors = dict[str, Tensor]


def cached_tensors(
    name: str, parts: list[str | None], compute: Callable[[], Mapping[str, Tensor]], quiet: bool = False
) -> tuple[Tensors, str]:
    """(tensors by name, "cached" or "computed"): from LIMBECK_CACHE where they were computed before from the same ``parts``.

    ``parts`` is all that they depend on, as text or digests; with a None among them nothing is kept.
    """
    if None in parts:
        return dict(compute()), "computed"
    key = hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:16]
    path = cache_folder() / f"{name}-{key}.safetensors"
    if path.is_file():
        try:
            found = load_file(path)
        except (SafetensorError, OSError) as error:
            print(f"{path} is damaged ({error}); computing it again", file=sys.stderr)
        else:
            if not quiet:
                print(f"{name}: cached in {path}", file=sys.stderr)
            return found, "cached"
    made = {key: value.contiguous().cpu() for key, value in compute().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # two processes may compute the same at once
        save_file(made, Path(folder) / path.name)
        os.replace(Path(folder) / path.name, path)
    if not quiet:
        print(f"{name}: computed, kept in {path}", file=sys.stderr)
    return made, "computed"


def digest_of(*tensors: Tensor) -> str:
    """sha256 of the tensors' shapes, dtypes and numbers."""
    total = hashlib.sha256()
    for x in tensors:
        total.update(f"{tuple(x.shape)} {x.dtype}".encode() + x.detach().contiguous().cpu().numpy().tobytes())
    return total.hexdigest()
