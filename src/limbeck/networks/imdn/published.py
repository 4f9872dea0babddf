"""Checkpoints of IMDN, the published ones and our own: which network a file holds is read from its names and shapes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.networks.imdn.blocks import Statistic
from limbeck.networks.imdn.networks import IMDN, IMDNAS, SCALES, SuperResolver


def load_imdn(path: Path | str, scale: int | None = None) -> SuperResolver:
    """The network of a checkpoint (.safetensors, or .pth and .pt of tensors alone), in evaluation mode, on the CPU.

    Names may begin with "module.", as DataParallel writes them. ``scale``: what the checkpoint must enlarge by (1 for IMDN_AS).
    Raises LimbeckError for files that cannot be read, hold no IMDN, or one for another scale.
    """
    path = Path(path)
    named, facts = _read(path)
    state = {name.removeprefix("module."): value for name, value in named.items()}
    network = _network(path, state, scale, "mean" if facts.get("statistic") == "mean" else "std+mean")
    if scale is not None and scale != network.factor:
        raise LimbeckError(f"{path} holds {type(network).__name__}, which enlarges by {network.factor}, not by scale={scale}")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise LimbeckError(f"{path} is no whole {type(network).__name__}: {reason}") from None
    return network.eval()


def save_imdn(path: Path | str, network: SuperResolver) -> Path:
    """Write the weights to PATH.safetensors under the published names; returns that path."""
    path = Path(path).with_suffix(".safetensors")
    facts = {name: str(value) for name, value in network.config.items()}
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path, facts)
    return path


def copy_body(student: IMDN, trained: IMDN) -> IMDN:
    """Give ``student`` all weights of ``trained`` but those of its last convolution: how x3 and x4 begin with x2.

    Returns the student. Raises LimbeckError where width or blocks differ.
    """
    mine = {name: p.shape for name, p in student.state_dict().items() if not name.startswith("upsampler.")}
    given = {name: p for name, p in trained.state_dict().items() if not name.startswith("upsampler.")}
    if mine != {name: p.shape for name, p in given.items()}:
        raise LimbeckError(f"weights of {trained.config} do not fit {student.config}: only the scale may differ")
    student.load_state_dict(given, strict=False)
    return student


def _read(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """The tensors, and what a safetensors file says beside them."""
    if not path.is_file():
        raise LimbeckError(f"{path} does not exist; give a checkpoint of IMDN, .safetensors or .pth")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise LimbeckError(f"{path} is damaged: {error}; get it again") from None
    except Exception as error:  # torch has many for files that are damaged, or hold more than tensors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LimbeckError(f"{path} cannot be read ({reason[:200]}); give a file of tensors alone") from None
    if not isinstance(state, Mapping) or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items()):
        raise LimbeckError(f"{path} holds no state dict: give a file of names and tensors")
    return state, {}


def _network(path: Path, state: Mapping[str, Tensor], scale: int | None, statistic: Statistic) -> SuperResolver:
    def blocks(name: str) -> int:
        return sum(1 for key in state if key.startswith(name) and key.endswith(".c1.weight"))

    def enlarged(last: str) -> int:
        rows = state[last].shape[0]
        found = round((rows / 3) ** 0.5)
        if rows != 3 * found**2 or found not in SCALES:
            raise LimbeckError(f"{path}: {last} has {rows} rows, which is 3 s^2 for no scale of 2, 3 and 4")
        if scale is not None and scale != found:
            raise LimbeckError(
                f"{path}: {last} has {rows} rows = 3 x {found}^2, so the checkpoint is for scale {found}, and scale={scale} was asked "
                f"for: give scale={found}, or the checkpoint for {scale}"
            )
        return found

    if "fea_conv.weight" in state and "upsampler.0.weight" in state:
        return IMDN(enlarged("upsampler.0.weight"), len(state["fea_conv.weight"]), blocks("IMDB"), statistic)
    if "fea_conv.0.weight" in state and blocks("IMDB"):
        return IMDNAS(len(state["fea_conv.0.weight"]), blocks("IMDB"), statistic)
    names = ", ".join(list(state)[:3])
    raise LimbeckError(f"{path} holds no IMDN (its first names are {names}); expected fea_conv, IMDB1.c1, ..., upsampler.0")
