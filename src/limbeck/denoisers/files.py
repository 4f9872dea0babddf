"""Denoisers on disk: NAME.safetensors holds the weights, NAME.json what rebuilds the network, process and preconditioning."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from limbeck.denoisers.preconditioned import Preconditioned
from limbeck.errors import LimbeckError
from limbeck.networks import build_network
from limbeck.noise import build_process, process_config

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
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise LimbeckError(f"{described} does not describe a denoiser ({error}); make it with save_denoiser") from error
    return denoiser.eval(), dict(config.get("info", {}))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
