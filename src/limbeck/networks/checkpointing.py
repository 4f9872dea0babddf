"""Gradient checkpointing: a block forgets what it computed and computes it again when its gradient is asked for."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from limbeck.errors import LimbeckError


class Checkpointed:
    """Mixed into the class of a block: its forward keeps its inputs alone (arXiv 1604.06174). Without gradients it is as ever."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inner: Any = super().forward  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        return checkpoint(inner, *args, use_reentrant=False, **kwargs)


def checkpoint_blocks(module: Any) -> Any:
    """The module itself, whose blocks are computed twice and held once; gradients stay the same bit for bit, dropout included.

    Models with an ``enable_gradient_checkpointing`` of their own (diffusers) are told so. Elsewhere the blocks are the members
    of ModuleLists that have parameters. Names, hooks and feature taps stay, and copies of the module are checkpointed too.
    A module that is checkpointed already stays as it is. Raises LimbeckError where there is nothing to checkpoint.
    """
    found = 0
    for part in list(_parts(module)):
        found += 1
        if getattr(part, "_supports_gradient_checkpointing", False):
            part.enable_gradient_checkpointing()
        elif not isinstance(part, Checkpointed):
            kind: Any = type(part)
            part.__class__ = _checkpointed(kind)  # an attribute `forward` would stay bound to the original in a copy
    if not found:
        raise LimbeckError(
            f"a {type(module).__name__} has no blocks to checkpoint: gradient checkpointing needs a torch.nn.ModuleList of blocks "
            "with parameters, or a diffusers model; leave it off, or use micro-batches to save memory"
        )
    return module


def _parts(module: Any) -> Iterator[Any]:
    """The outermost models and blocks that can be checkpointed."""
    if getattr(module, "_supports_gradient_checkpointing", False):
        yield module
        return
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from _parts(child)


@cache
def _checkpointed(kind: Any) -> Any:
    return type(kind.__name__, (Checkpointed, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
