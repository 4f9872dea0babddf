"""Networks written elsewhere, as raw networks F(x, c_noise, cond)."""

import copy
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers.protocol import Cond
from limbeck.errors import LimbeckError
from limbeck.networks.taps import first_tensor

LABELS = ("y", "c", "label", "labels", "class_label", "class_labels", "classes")
CONDITIONS = ("cond", "condition", "conditions")


class ForeignNetwork(nn.Module):
    """A network called as (x, t), (x, t, label) or (x, t, cond), made a network F(x, c_noise, cond).

    Which, its signature says: a third parameter named cond, condition or conditions is given the mapping, one without a
    default or named y, c, label(s), class_label(s) or classes the labels (B,); others keep their defaults. ``null_label``:
    the label that means no class. ``time``: the dtype in which it wants the noise (None: as it comes; integers are rounded).
    The answer may be a tensor, or a tuple or mapping whose first tensor it is. Raises LimbeckError for other signatures,
    missing labels, and an answer that is not in the shape of x.
    """

    def __init__(self, network: nn.Module, null_label: int | None = None, time: torch.dtype | None = None):
        super().__init__()
        self.network, self.null_label, self.time = network, null_label, time
        self.third, self.required = third_parameter(network)
        if null_label is not None and self.third != "label":
            raise LimbeckError(f"a null label ({null_label}) is for networks that take labels, (x, t, label); leave it out")

    @property
    def wrapped(self) -> nn.Module:
        """The network itself, whose names its weights have on disk."""
        return self.network

    @property
    def null(self) -> Mapping[str, Tensor] | None:
        """What stands for "no condition": the null label, or what the network itself declares as ``null``."""
        if self.null_label is None:
            return getattr(self.network, "null", None)
        return {"label": torch.tensor(self.null_label, device=next(self.parameters()).device)}

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        if self.time is not None:
            c_noise = c_noise.to(self.time) if self.time.is_floating_point else c_noise.round().to(self.time)
        if self.third == "cond":
            answer = self.network(x, c_noise, cond)
        elif self.third == "label" and (cond or self.null_label is not None or self.required):
            answer = self.network(x, c_noise, self._label(cond, len(x)))
        else:
            answer = self.network(x, c_noise)
        found = first_tensor(answer)
        if found is None or found.shape != x.shape:
            shape = type(answer).__name__ if found is None else tuple(found.shape)
            raise LimbeckError(
                f"the network {self._name} answered {shape} for images {tuple(x.shape)}; it must answer in the shape of its "
                "input (one that also gives variances: wrap it and return the first half of its channels)"
            )
        return found

    @property
    def _name(self) -> str:
        return type(self.network).__name__

    def _label(self, cond: Cond | None, batch: int) -> Tensor:
        if cond and "label" in cond:
            return cond["label"]
        if self.null_label is None:
            raise LimbeckError(
                f"the network {self._name} takes labels, but there are none: give one subfolder of pictures per class, or "
                "labels=; or say which label means no class (--null-label, null_label=)"
            )
        return torch.full((batch,), self.null_label, device=next(self.parameters()).device)


def third_parameter(network: nn.Module) -> tuple[str | None, bool]:
    """("label", "cond" or None, must it be given?): what a network takes after x and t."""
    if isinstance(network, Exported):
        return ("label", True) if network.inputs == 3 else (None, False)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [p for p in inspect.signature(network.forward).parameters.values() if p.kind in kinds]
    needed = [p for p in taken if p.default is p.empty]
    if len(taken) < 2 or len(needed) > 3:
        raise LimbeckError(
            f"the forward of {type(network).__name__} takes ({', '.join(p.name for p in taken)}); a network is called with "
            "(x, t), (x, t, label) or (x, t, cond): wrap yours in a module that is"
        )
    third = taken[2] if len(taken) > 2 else None
    if third is None or (third not in needed and third.name not in (*LABELS, *CONDITIONS)):
        return None, False
    return "cond" if third.name in CONDITIONS else "label", third in needed


class Exported(nn.Module):
    """The module of a program saved by torch.export; it can be copied and trained. ``inputs`` counts its inputs."""

    def __init__(self, program: nn.Module, inputs: int):
        super().__init__()
        self.program, self.inputs = program, inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.program(*inputs)

    def train(self, mode: bool = True) -> "Exported":
        self.training = mode  # an exported program has but the mode it was exported in, and refuses the call
        return self

    def __deepcopy__(self, memo: dict) -> "Exported":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about how it copies its tree specifications
            return Exported(copy.deepcopy(self.program, memo), self.inputs)


def load_exported(path: Path | str) -> tuple[Exported, torch.dtype]:
    """(module, dtype of its time) of a .pt2 file written by ``torch.export.save``.

    The program takes (x, t) or (x, t, label) with a batch of any size: export it in eval mode with
    ``dynamic_shapes=({0: B}, {0: B}, ...)``, B = torch.export.Dim("batch"). Such files may hold Python objects: open only
    those that you trust. Raises LimbeckError where it is no such file or takes other inputs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
            module = program.module()
    except Exception as error:  # torch raises whatever the damage happens to cause
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LimbeckError(
            f"{path} is no program that torch.export.load can read ({reason}); write it with torch.export.save"
        ) from None
    inputs = [spec for spec in program.graph_signature.user_inputs]
    shapes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    tensors: list[Any] = [shapes.get(name) for name in inputs]
    if len(tensors) not in (2, 3) or not all(isinstance(value, Tensor) for value in tensors):
        raise LimbeckError(
            f"the program in {path} takes {len(tensors)} inputs ({', '.join(map(str, inputs))}); export one of (x, t) or (x, t, label)"
        )
    if isinstance(tensors[0].shape[0], int):
        raise LimbeckError(
            f"the program in {path} is fixed to a batch of {tensors[0].shape[0]}; export it with a batch of any size: "
            'dynamic_shapes=({0: B}, {0: B}, ...) with B = torch.export.Dim("batch")'
        )
    return Exported(module, len(tensors)), tensors[1].dtype
