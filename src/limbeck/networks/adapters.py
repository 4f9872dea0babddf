"""Low-rank adapters: a module tree of its own that shares the base's parameters by reference and adds what is trained."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks.taps import unknown_layer


class LowRank(nn.Module):
    """W x + b + (alpha / r) B A x around a linear layer or a convolution (LoRA, arXiv 2106.09685, Eq. 3); B starts at zero.

    A (r, inputs) is drawn from torch's generator with variance 1 / (3 inputs). Of a convolution, A has its kernel and B is 1 x 1.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float):
        super().__init__()
        self.base, self.rank, self.scale = base, rank, alpha / rank
        outputs, inputs = base.weight.shape[:2]
        kernel = tuple(base.weight.shape[2:])
        self.A = nn.Parameter(base.weight.new_empty(rank, inputs, *kernel))
        self.B = nn.Parameter(base.weight.new_zeros(outputs, rank, *(1 for _ in kernel)))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        """The base's weight, for code that asks a layer for its dtype or device."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        if isinstance(base, nn.Linear):
            return base(x) + self.scale * F.linear(F.linear(x, self.A), self.B)
        low = F.conv2d(x, self.A, None, base.stride, base.padding, base.dilation)
        return base(x) + self.scale * F.conv2d(low, self.B)

    def merged(self) -> nn.Linear | nn.Conv2d:
        """A layer of the base's kind with the adapter added to a copy of its weight."""
        layer = copy.deepcopy(self.base)
        with torch.no_grad():
            layer.weight += self.scale * (self.B.flatten(1) @ self.A.flatten(1)).view_as(layer.weight)
        return layer


def adapted(module: Any, rank: int, alpha: float | None = None, layers: Sequence[str] = ()) -> Any:
    """A tree like ``module`` whose layers are adapted; only the new factors A and B require a gradient.

    Parameters and buffers of the base are shared by reference, and frozen: ``module`` itself is the tree without adapters.
    ``alpha`` defaults to the rank. ``layers`` are names, or last parts of names, of linear layers and convolutions (none
    given: all of them). Raises LimbeckError for a rank below 1, a name that is no such layer, or an adapted module.
    """
    if rank < 1:
        raise LimbeckError(f"the rank of an adapter must be at least 1, not {rank}")
    if any(isinstance(m, LowRank) for m in module.modules()):
        raise LimbeckError("this module has adapters already; merge them first with limbeck.networks.merged(module)")
    module.requires_grad_(False)
    tree = copy.deepcopy(module, {id(t): t for t in [*module.parameters(), *module.buffers()]})
    found = {name: m for name, m in tree.named_modules() if _adaptable(m)}
    for wanted in layers:
        if not any(_named(name, wanted) for name in found):
            raise unknown_layer("layer to adapt", wanted, found)
    for name, layer in found.items():
        if not layers or any(_named(name, wanted) for wanted in layers):
            _put(tree, name, LowRank(layer, rank, float(rank if alpha is None else alpha)))
    return tree


def merged(module: Any) -> Any:
    """The module with every adapter folded into a weight of its own (itself where there is none)."""
    names = [name for name, m in module.named_modules() if isinstance(m, LowRank)]
    if not names:
        return module
    tree = copy.deepcopy(module)
    for name in names:
        _put(tree, name, tree.get_submodule(name).merged())
    return tree


def fused(first: Any, second: Any, share: float = 0.5) -> Any:
    """A new module with the weights share W_1 + (1 - share) W_2, adapters merged first (SwiftBrush v2, arXiv 2408.14176).

    Buffers are those of ``first``. Raises LimbeckError for modules that differ in their parameters.
    """
    tree, other = copy.deepcopy(merged(first)), dict(merged(second).named_parameters())
    mine, theirs = ({name: tuple(p.shape) for name, p in named} for named in (tree.named_parameters(), other.items()))
    if wrong := sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)):
        raise LimbeckError(f"the two modules differ in {', '.join(wrong[:5])}: weights are averaged of one architecture")
    with torch.no_grad():
        for name, p in tree.named_parameters():
            p.lerp_(other[name].to(p), 1 - share)
    return tree


def adapters(module: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """The adapters inside a module, by dotted name."""
    return ((name, m) for name, m in module.named_modules() if isinstance(m, LowRank))


def _adaptable(m: nn.Module) -> bool:
    return isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1 and m.padding_mode == "zeros")


def _named(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _put(tree: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    owner = tree.get_submodule(parent)
    if last.isdigit() and isinstance(owner, (nn.ModuleList, nn.Sequential)):
        owner[int(last)] = layer
    else:
        setattr(owner, last, layer)
