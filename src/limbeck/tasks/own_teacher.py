"""A person's own teacher: read from a file or made by their code, declared, and tried on their data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import (
    Denoiser,
    ForeignNetwork,
    Preconditioned,
    Rescaled,
    load_denoiser,
    load_exported,
    third_parameter,
)
from limbeck.errors import LimbeckError
from limbeck.networks import NETWORKS
from limbeck.noise import PREDICTIONS, PROCESSES, Process, build_process
from limbeck.tasks.named import imported, made, refuse_code

STATES = (".safetensors", ".pt", ".pth")
FILES = (*STATES, ".pt2")


@dataclass(frozen=True)
class Declared:
    """What a person says about a network: see `own_task`."""

    prediction: str | None = None
    process: Process | str | None = None
    noise_input: str | None = None
    data_range: tuple[float, float] = (-1.0, 1.0)
    null_label: int | None = None

    def said(self) -> list[str]:
        """The declarations that a denoiser does not need, as it knows them itself."""
        return [name for name in ("prediction", "process", "noise_input", "null_label") if getattr(self, name) is not None]


def read_teacher(teacher: str | Path, network: str | None = None) -> tuple[Any, torch.dtype | None]:
    """(what a FILE or MODULE:FUNCTION holds, the dtype in which it wants its time if it says so).

    FILE: NAME.safetensors with NAME.json beside it (a denoiser); a .pt2 (module); or with ``network`` (MODULE:CLASS) a bare
    state dict (.pt, .pth, .safetensors). Raises LimbeckError for files that are missing, damaged, or hold something else.
    """
    path, name = Path(teacher), str(teacher)
    if path.suffix not in FILES:
        if ":" not in name:
            raise LimbeckError(f"the teacher {name!r} is neither a file ({', '.join(FILES)}) nor MODULE:FUNCTION")
        if network is not None:
            raise LimbeckError(
                f"--network is for a file of weights; the teacher {name} is made by its own function: leave it out"
            )
        return made(imported(name, "the teacher"), name, "the teacher"), None
    if not path.is_file():
        raise LimbeckError(f"the teacher {path} does not exist")
    if path.suffix == ".pt2":
        if network is not None:
            raise LimbeckError(f"{path} holds its network itself; leave --network out")
        refuse_code(name, "the exported teacher")  # such files may hold pickled objects
        return load_exported(path)
    if network is None:
        if path.suffix == ".safetensors" and path.with_suffix(".json").is_file():
            return load_denoiser(path)[0], None
        raise LimbeckError(
            f"{path} holds weights alone; name the network that they belong to with --network MODULE:CLASS (network=), a class "
            "or function that is called without arguments"
        )
    module = made(imported(network, "the network"), network, "the network")
    if not isinstance(module, nn.Module):
        raise LimbeckError(f"the network {network} made a {type(module).__name__}, not a torch.nn.Module")
    _load(module, read_state(path), path, network)
    return module, None


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from .pt or .pth read without pickle. Raises LimbeckError for anything else."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(path.read_bytes())
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise LimbeckError(
            f"{path} holds more than tensors, perhaps a whole pickled model, and is not opened; save model.state_dict() instead"
        ) from None
    except Exception as error:  # each library has its own for a damaged file
        raise LimbeckError(
            f"{path} cannot be read ({type(error).__name__}); is it a whole file written by torch.save?"
        ) from None
    tensors = isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())
    if not tensors or not state:
        held = ", ".join(map(str, list(state)[:8])) if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise LimbeckError(f"{path} is no state dict (names to tensors): it holds {held}; save the part with the weights alone")
    return dict(state)


def _load(module: nn.Module, state: dict[str, Tensor], path: Path, network: str) -> None:
    if all(name.startswith("module.") for name in state):  # as DataParallel saves
        state = {name.removeprefix("module."): value for name, value in state.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = "; ".join(" ".join(line.split()) for line in str(error).splitlines()[1:3])
        raise LimbeckError(f"{path} does not fit {network}: {lines[:300]}") from None


def as_denoiser(teacher: Any, declared: Declared, sigma_data: float, time: torch.dtype | None = None) -> Denoiser:
    """The teacher as a denoiser of images in [-1, 1] with this standard deviation: itself, or a network as declared.

    Raises LimbeckError for what is neither denoiser nor network, and for declarations that are missing, unknown or
    contradict a denoiser's own.
    """
    low, high = declared.data_range
    if not low < high:
        raise LimbeckError(f"the data range must be LOW,HIGH with LOW < HIGH, not {low:g},{high:g}")
    scale, shift = (high - low) / 2, (high + low) / 2
    if isinstance(getattr(teacher, "process", None), Process):
        if said := declared.said():
            raise LimbeckError(f"the teacher is a denoiser, which knows its own {', '.join(said)}; leave the declaration out")
        denoiser = _adapted(teacher) if isinstance(teacher, Preconditioned) else teacher
    elif isinstance(teacher, nn.Module):
        denoiser = _preconditioned(teacher, declared, scale * sigma_data, time)
    else:
        raise LimbeckError(
            f"the teacher is a {type(teacher).__name__}; give a torch.nn.Module, a denoiser (limbeck.denoisers), a file or "
            "MODULE:FUNCTION"
        )
    return denoiser if (scale, shift) == (1, 0) else Rescaled(denoiser, scale, shift)


def _preconditioned(network: nn.Module, declared: Declared, sigma_data: float, time: torch.dtype | None) -> Preconditioned:
    if declared.prediction is None or declared.process is None:
        raise LimbeckError(
            f"a {type(network).__name__} does not say what it predicts; declare prediction (--prediction edm, "
            f"{', '.join(PREDICTIONS)}) and process (--process {', '.join(PROCESSES)}), and noise_input unless it is the "
            "process's own time"
        )
    process = parsed_process(declared.process) if isinstance(declared.process, str) else declared.process
    raw = network
    if not isinstance(network, tuple(NETWORKS.values())) or declared.null_label is not None:
        raw = ForeignNetwork(network, declared.null_label, time)
    return Preconditioned(raw, process, declared.prediction, sigma_data, declared.noise_input)


def _adapted(teacher: Preconditioned) -> Preconditioned:
    """The denoiser, its network adapted where it is not called as the library's are."""
    network = teacher.network
    if isinstance(network, (ForeignNetwork, *NETWORKS.values())) or third_parameter(network)[0] == "cond":
        return teacher
    settings = teacher.prediction, teacher.sigma_data, teacher.noise_input, teacher.compute_dtype
    return Preconditioned(ForeignNetwork(network), teacher.process, *settings)


def parsed_process(text: str) -> Process:
    """A process from NAME or NAME:option=value,...; e.g. "flow:shift=3" or "ddpm:betas=cosine,steps=4000"."""
    name, _, options = text.partition(":")
    values: dict[str, Any] = {}
    for pair in filter(None, options.split(",")):
        key, _, value = pair.partition("=")
        for kind in (int, float, str):
            try:
                values[key] = kind(value)
                break
            except ValueError:
                continue
    if name == "resshift":
        raise LimbeckError("residual shifting needs a degraded image beside each sample; declare another process")
    try:
        return build_process({"kind": name, **values})
    except TypeError as error:
        raise LimbeckError(
            f"the process {text!r} has an option of a wrong kind ({error}); write NAME or NAME:option=value"
        ) from None


def parsed_range(value: str | tuple[float, float] | list[float]) -> tuple[float, float]:
    """(low, high) from "LOW,HIGH" or a pair."""
    parts = value.split(",") if isinstance(value, str) else list(value)
    try:
        low, high = map(float, parts)
    except ValueError:
        raise LimbeckError(f'the data range is {value!r}; give LOW,HIGH, e.g. "-1,1" or "0,1"') from None
    return low, high
