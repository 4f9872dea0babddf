"""Classifiers for tasks: those that a person names, small students, what they answer, and how they are kept."""

import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.networks import Classifier
from limbeck.rules import evaluating
from limbeck.tasks.folder import TENSORS, read_arrays
from limbeck.tasks.named import imported, made, said


def given_teacher(teacher: Any, images: Tensor) -> tuple[nn.Module | None, Tensor]:
    """(the teacher as a module, if it is one; its logits (N, C) of all images, on the CPU).

    ``teacher``: a module, MODULE:NAME, logits, or a file of logits, a row per image in the order of the data.
    Raises LimbeckError for anything else.
    """
    if isinstance(teacher, (str, Path)):
        file = Path(teacher)
        if file.suffix in TENSORS:
            teacher = _logits_of_file(file)
        elif ":" in str(teacher):
            teacher = made(imported(str(teacher), "the teacher"), str(teacher), "the teacher")
        else:
            raise LimbeckError(
                f"the teacher {str(teacher)!r} is neither a file of logits ({', '.join(TENSORS)}) nor MODULE:NAME"
            )
    if isinstance(teacher, nn.Module):
        teacher = teacher.to(images).eval()
        return teacher, answers(teacher, images, "teacher")
    if not isinstance(teacher, (Tensor, np.ndarray)):
        raise LimbeckError(
            f"the teacher is a {type(teacher).__name__}; give a torch.nn.Module, its logits (N, C), a file or MODULE:NAME"
        )
    logits = torch.as_tensor(teacher).detach().cpu()
    if logits.ndim != 2 or len(logits) != len(images) or not logits.is_floating_point():
        raise LimbeckError(
            f"the teacher's logits are {logits.dtype} {tuple(logits.shape)}; give floating point ({len(images)}, C), a row per image "
            "of the data in its order (those of a folder by class, then by name)"
        )
    return None, logits.to(images.dtype)


def _logits_of_file(file: Path) -> Any:
    if not file.is_file():
        raise LimbeckError(f"the teacher {file} does not exist")
    found = read_arrays(file)
    if not isinstance(found, Mapping):
        return found
    logits = found.get("logits", next(iter(found.values())) if len(found) == 1 else None)
    if logits is None:
        raise LimbeckError(f'{file} holds {", ".join(map(str, found))}; name the teacher\'s logits "logits"')
    return logits


def student_factory(given: Any, shape: tuple[int, ...], classes: int, width: int) -> Callable[[], nn.Module]:
    """Makes students: what a person named (MODULE:NAME, a class or a function; a module is always itself), or small networks."""
    if given is None:
        return lambda: Classifier(shape, classes, width)
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    found = imported(given, "the student") if isinstance(given, str) else given

    def make() -> nn.Module:
        module = made(found, name, "the student")
        if not isinstance(module, nn.Module):
            raise LimbeckError(f"the student {name} is a {type(module).__name__}, not a torch.nn.Module")
        return module

    return make


@torch.no_grad()
def answers(module: nn.Module, images: Tensor, who: str = "student", chunk: int = 1024) -> Tensor:
    """A classifier's logits (N, C) of images, in eval mode, on the CPU; it is left in the mode that it was in.

    Raises LimbeckError where it fails or answers something else.
    """
    try:
        with evaluating(module):
            found = [getattr(answer, "logits", answer) for answer in map(module, images.split(chunk))]
    except Exception as error:  # a person's code
        raise LimbeckError(f"the {who} failed on images {tuple(images.shape[1:])}: {said(error)}") from error
    if not isinstance(found[0], Tensor) or found[0].ndim != 2 or sum(map(len, found)) != len(images):
        got = tuple(found[0].shape) if isinstance(found[0], Tensor) else type(found[0]).__name__
        raise LimbeckError(f"the {who} answered {got} for {len(images[:chunk])} images; a classifier gives logits (B, C)")
    return torch.cat([part.cpu() for part in found])


def images_per_second(module: nn.Module, images: Tensor) -> float:
    """How many images a classifier answers in a second, after a pass that warms it up."""
    answers(module, images)
    begun = time.perf_counter()
    answers(module, images)
    return len(images) / max(time.perf_counter() - begun, 1e-9)


def save_classifier(path: Path, module: nn.Module, about: Mapping[str, Any]) -> None:
    """PATH.safetensors, the weights under their own names, and PATH.json: ``about``, and what builds a network of the library's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(copy.deepcopy(module).cpu(), str(path.with_suffix(".safetensors")))
    network = module.config if isinstance(module, Classifier) else None
    path.with_suffix(".json").write_text(json.dumps({**about, "network": network}, indent=2) + "\n")


def load_classifier(path: Path | str) -> tuple[Classifier, dict[str, Any]]:
    """(a network of the library's in eval mode, what was said of it) as `save_classifier` wrote it.

    Raises LimbeckError where a file is missing or damaged, or where the network was the person's own.
    """
    path = Path(path)
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        network = Classifier(**about["network"])
        network.load_state_dict(load_file(path.with_suffix(".safetensors")))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LimbeckError(f"{path} (.json, .safetensors) holds no classifier of the library's: {reason}") from None
    return network.eval(), about
