"""Folders of diffusers on disk: what is in them, and their components one by one. Safetensors alone; no code of theirs runs."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import LimbeckError, unknown

WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True)
class Folder:
    """A pipeline's folder: its class, its components by name as (library, class), and what else model_index.json says.

    ``places``: where a component lies if that is not the subfolder of its name (a bare model: its own folder).
    """

    path: Path
    kind: str
    components: dict[str, tuple[str, str]]
    settings: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)

    def place(self, name: str) -> Path:
        """Where a component lies."""
        return self.places.get(name, self.path / name)

    def config(self, name: str) -> dict[str, Any]:
        """The config of a model, or of a scheduler. Raises LimbeckError where there is none."""
        file = self.place(name) / ("scheduler_config.json" if name == "scheduler" else "config.json")
        return read_json(file)

    def load(self, name: str, dtype: torch.dtype = torch.float32) -> Any:
        """A component, models in eval mode. Raises LimbeckError for classes from elsewhere and weights that are pickles."""
        import diffusers
        import transformers

        library, kind = self.components[name]
        if library not in LIBRARIES:
            raise LimbeckError(
                f"the {name} of {self.path} is {library}.{kind}; only classes of {' and '.join(LIBRARIES)} are loaded, no others' code"
            )
        cls = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind, None)
        if cls is None:
            raise LimbeckError(f"the {name} of {self.path} is a {kind}, which the installed {library} does not have; update it")
        place = self.place(name)
        if not issubclass(cls, torch.nn.Module):
            return cls.from_pretrained(place, local_files_only=True)
        more = {"variant": variant} if (variant := variant_of(place, kind)) else {}
        with quiet_libraries():
            model = cls.from_pretrained(place, local_files_only=True, use_safetensors=True, torch_dtype=dtype, **more)
        return model.eval()

    def digest(self, names: Iterable[str]) -> str:
        """sha256 of all files of these components."""
        total = hashlib.sha256(self.kind.encode())
        for name in names:
            for file in sorted(p for p in self.place(name).iterdir() if p.is_file()):
                with file.open("rb") as opened:
                    total.update(f"{name}/{file.name}".encode() + hashlib.file_digest(opened, "sha256").digest())
        return total.hexdigest()


def read_folder(path: Path | str) -> Folder:
    """A pipeline's folder (model_index.json), or a bare model's (config.json) with a folder ``scheduler`` in it or beside it.

    Raises LimbeckError for anything else.
    """
    path = Path(path)
    if not path.is_dir():
        raise LimbeckError(f"{path} is no folder; give one that diffusers' save_pretrained wrote (nothing is downloaded)")
    index = path / "model_index.json"
    if not index.is_file():
        return _bare(path)
    said = read_json(index)
    kind = said.get("_class_name")
    if not isinstance(kind, str):
        raise LimbeckError(
            f"{index} names code of its own as its class ({kind!r}), which is not run; use a pipeline of diffusers"
        )
    pairs = {n: v for n, v in said.items() if isinstance(v, list) and len(v) == 2 and not n.startswith("_")}
    components = {n: (str(v[0]), str(v[1])) for n, v in pairs.items() if v[1] is not None}
    return Folder(path, kind, components, {n: v for n, v in said.items() if n not in pairs})


def _bare(path: Path) -> Folder:
    if not (path / "config.json").is_file():
        raise LimbeckError(
            f"{path} holds neither model_index.json (a pipeline) nor config.json (a model); give the folder that "
            "pipeline.save_pretrained(DIR) wrote"
        )
    if (path.parent / "model_index.json").is_file():
        raise LimbeckError(f"{path} is a part of the pipeline {path.parent}; give that folder")
    places = [p for p in (path / "scheduler", path, path.parent / "scheduler") if (p / "scheduler_config.json").is_file()]
    if not places:
        raise LimbeckError(
            f"{path} is a model without a scheduler, so how it was trained is not known; put its scheduler beside it: "
            f"scheduler.save_pretrained('{path / 'scheduler'}')"
        )
    model = str(read_json(path / "config.json").get("_class_name"))
    scheduler = str(read_json(places[0] / "scheduler_config.json").get("_class_name"))
    components = {"model": ("diffusers", model), "scheduler": ("diffusers", scheduler)}
    return Folder(path, "", components, places={"model": path, "scheduler": places[0]})


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a mapping. Raises LimbeckError for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise LimbeckError(f"{file} does not exist; is the pipeline's folder whole?") from None
    except ValueError as error:
        raise LimbeckError(f"{file} is no JSON ({str(error).splitlines()[0]}); copy the folder again") from None
    if not isinstance(found, dict):
        raise LimbeckError(f"{file} holds a {type(found).__name__}, not a mapping; copy the folder again")
    return found


def variant_of(place: Path, kind: str) -> str | None:
    """The variant ("fp16") of the weights in a folder, None for the plain ones. Raises LimbeckError where there are no safetensors."""
    files = sorted(p.name for p in place.iterdir()) if place.is_dir() else []
    found = [match["variant"] for name in files if (match := WEIGHTS.fullmatch(name))]
    if found:
        return None if None in found else found[0]
    if pickles := [name for name in files if name.endswith(PICKLES)]:
        raise LimbeckError(
            f"{place} holds its weights as a pickle ({pickles[0]}), which can run code and is not opened; convert it where you "
            f"trust it: {kind}.from_pretrained('{place}', use_safetensors=False).save_pretrained('{place}')"
        )
    raise LimbeckError(f"{place} holds no weights (*.safetensors); is the pipeline's folder whole?")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """diffusers and transformers say errors alone, and show no bars of their own."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    levels = ours.get_verbosity(), theirs.get_verbosity()
    bars = theirs.is_progress_bar_enabled()
    for library in (ours, theirs):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        ours.set_verbosity(levels[0])
        theirs.set_verbosity(levels[1])
        ours.enable_progress_bar()
        if bars:
            theirs.enable_progress_bar()


def known(kind: str, table: Iterable[str]) -> None:
    """Raise LimbeckError unless a class of pipelines is in the table."""
    if kind not in (names := list(table)):
        raise unknown("class of pipelines", kind, names)
