"""Denoisers on disk: NAME.safetensors holds the weights, NAME.json what rebuilds the network, process and preconditioning."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from limbeck.denoisers.foreign import Exported
from limbeck.denoisers.preconditioned import Preconditioned
from limbeck.denoisers.protocol import Rescaled
from limbeck.errors import LimbeckError
from limbeck.networks import build_network, merged
from limbeck.noise import Process, build_process, process_config

FORMAT = 1


def denoiser_config(denoiser: Preconditioned) -> dict[str, Any]:
    """What rebuilds a denoiser but its weights. Raises LimbeckError where the network has no ``config``."""
    config = getattr(denoiser.network, "config", None)
    if not isinstance(config, Mapping):
        raise LimbeckError(
            f"a {type(denoiser.network).__name__} has no 'config' to be rebuilt from; save its state dict and load it with "
            "--network MODULE:CLASS"
        )
    return {
        "network": dict(config),
        "process": process_config(denoiser.process),
        "prediction": denoiser.prediction,
        "sigma_data": denoiser.sigma_data,
        "noise_input": denoiser.noise_input,
    }


def build_denoiser(config: Mapping[str, Any], network: nn.Module | None = None) -> Preconditioned:
    """The denoiser of a configuration, with new weights (or around a given network)."""
    return Preconditioned(
        build_network(config["network"]) if network is None else network,
        build_process(config["process"]),
        config["prediction"],
        config["sigma_data"],
        config["noise_input"],
    )


def save_denoiser(path: Path | str, denoiser: Preconditioned, info: Mapping[str, Any] | None = None) -> Path:
    """Write PATH.safetensors and PATH.json; returns the path of the weights. ``info``: JSON-able facts to keep."""
    path = Path(path).with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in denoiser.network.state_dict().items()}, path)
    text = {"format": FORMAT, "sha256": _sha256(path), **denoiser_config(denoiser), "info": dict(info or {})}
    path.with_suffix(".json").write_text(json.dumps(text, indent=2) + "\n")
    return path


def save_student(path: Path | str, denoiser: nn.Module, info: Mapping[str, Any]) -> Path:
    """Write a student so that it can be used again; returns the path of the weights.

    One of the library's networks: as `save_denoiser` does (``info`` tells the data range of a rescaled one). Any other
    network: its state dict under its own names in PATH.safetensors, with what was declared of it and ``info`` as that
    file's metadata; such a file is read with ``--teacher PATH.safetensors --network MODULE:CLASS`` and the declarations.
    Adapters are merged. Experts by noise level: PATH-0 (the least noisy), PATH-1, ... so, and PATH.json says which times each
    serves (:func:`limbeck.samplers.load_experts`); its path is returned.
    """
    if experts := getattr(denoiser, "experts", None):
        return _save_experts(Path(path).with_suffix(".json"), experts, info)
    denoiser = merged(denoiser)
    path, inner = Path(path).with_suffix(".safetensors"), denoiser
    if isinstance(denoiser, Rescaled):
        low, high = (denoiser.shift + sign * denoiser.scale for sign in (-1, 1))
        inner, info = denoiser.denoiser, {**info, "data_range": f"{low:g},{high:g}"}  # type: ignore[assignment]
    network = inner.network if isinstance(inner, Preconditioned) else inner
    if isinstance(inner, Preconditioned) and hasattr(network, "config"):
        return save_denoiser(path, inner, info)
    if isinstance(inner, Preconditioned):
        process = _or_name(inner.process)
        info = {**info, "prediction": inner.prediction, "process": process, "noise_input": inner.noise_input}
    network = getattr(network, "wrapped", network)
    network = network.program if isinstance(network, Exported) else network
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(
        network, str(path), {name: value if isinstance(value, str) else json.dumps(value) for name, value in info.items()}
    )
    return path


def _save_experts(path: Path, experts: list[tuple[float, float, Any]], info: Mapping[str, Any]) -> Path:
    listed = []
    for i, (low, high, denoiser) in enumerate(experts):
        file = save_student(path.with_name(f"{path.stem}-{i}"), denoiser, info)
        listed.append({"low": low, "high": high, "file": file.name})
    path.write_text(json.dumps({"format": FORMAT, "experts": listed, "info": dict(info)}, indent=2) + "\n")
    return path


def _or_name(process: Process) -> Any:
    try:
        return process_config(process)
    except LimbeckError:  # a process of the person's own
        return type(process).__name__


def load_denoiser(path: Path | str) -> tuple[Preconditioned, dict[str, Any]]:
    """(denoiser in eval mode, info) from PATH.safetensors and PATH.json. Raises LimbeckError where they are damaged."""
    path = Path(path).with_suffix(".safetensors")
    described = path.with_suffix(".json")
    for file in (path, described):
        if not file.is_file():
            raise LimbeckError(f"{file} does not exist; a denoiser is a pair of files NAME.safetensors and NAME.json")
    try:
        config = json.loads(described.read_text())
        if config["format"] != FORMAT:
            raise LimbeckError(f"{described} has format {config['format']}, this version reads {FORMAT}; update limbeck")
        if config["sha256"] != _sha256(path):
            raise LimbeckError(f"{path} is damaged: its sha256 is not the one in {described.name}; copy or make it again")
        denoiser = build_denoiser(config)
        denoiser.network.load_state_dict(load_file(path))
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError, OverflowError, SafetensorError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise LimbeckError(f"{described} does not describe a denoiser ({said}); make it with save_denoiser") from error
    return denoiser.eval(), dict(config.get("info", {}))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
