"""Feature taps: what a layer inside any module puts out."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.errors import LimbeckError


def unknown_layer(kind: str, name: str, layers: Iterable[str]) -> LimbeckError:
    """The error for a layer that a module does not have; those it has follow, the nearest names first."""
    near = sorted((n for n in layers if n), key=lambda n: (-SequenceMatcher(None, name, n).ratio(), n))
    more = f", ... ({len(near) - 20} more)" if len(near) > 20 else ""
    found = f"there are {', '.join(near[:20])}{more}" if near else "the module has none"
    return LimbeckError(f"no {kind} {name!r}: {found}")


def first_tensor(output: Any) -> Tensor | None:
    """The output itself, or the first tensor of a tuple, list or mapping; None if there is none."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    return next((v for v in values if isinstance(v, Tensor)), None) if isinstance(values, Iterable) else None


class FeatureTap:
    """Records the outputs of named layers of `module` while the tap is open.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.SiLU())
    >>> with FeatureTap(net, ["0"]) as tap:
    ...     y = net(torch.zeros(4, 2))
    >>> tap["0"].shape
    torch.Size([4, 3])

    Names are dotted, as in `module.named_modules()`. A feature is what the layer put out in its latest call,
    or the first tensor of a tuple, list or mapping. It stays in the graph: gradients flow through it to the
    input and to the parameters that require them. `features` holds those recorded; they outlive the `with`
    until the tap is opened again or cleared, but not an exception inside it. Raises LimbeckError for an
    unknown name, for a feature that was never computed, and for a layer without a tensor in its output.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        layers = dict(module.named_modules(remove_duplicate=False))
        for name in names:
            if name not in layers or not name:
                raise unknown_layer("layer", name, layers)
            if getattr(layers[name], "_is_fsdp_managed_module", False) and not hasattr(layers[name], "unshard"):
                parts = [n for n, m in layers.items() if n and hasattr(m, "unshard")]
                raise LimbeckError(
                    f"the layer {name!r} is no part whose weights are split over processes by themselves, so no gradient can "
                    f"begin there; tap one of {', '.join(parts)}, or use --parallel replicate"
                )
        self.names = tuple(names)
        self._layers = {name: layers[name] for name in names}
        self._handles: list[RemovableHandle] = []
        self.features: dict[str, Tensor] = {}

    def __enter__(self) -> "FeatureTap":
        if self._handles:
            raise LimbeckError("this tap is open already: use a second FeatureTap for a nested recording")
        self.clear()
        self._handles = [m.register_forward_hook(self._recorder(name)) for name, m in self._layers.items()]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if kind is not None:
            self.clear()

    def _recorder(self, name: str) -> Any:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            feature = first_tensor(output)
            if feature is None:
                raise LimbeckError(f"layer {name!r} puts out a {type(output).__name__} without a tensor: tap another")
            self.features[name] = feature

        return record

    def clear(self) -> None:
        """Drop the recorded features, and with them their graph."""
        self.features = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._layers:
            raise unknown_layer("tapped layer", name, self.names)
        if name not in self.features:
            raise LimbeckError(f"layer {name!r} has not run since the tap was opened: call the module inside `with tap:`")
        return self.features[name]


def candidate_layers(module: nn.Module, *example: Any, **options: Any) -> dict[str, tuple[int, ...]]:
    """The layers of `module` that can be tapped, in order of execution, with the shape of what they put out.

    `module(*example, **options)` is called once, in evaluation mode and without gradients.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def hook(name: str) -> Any:
        def record(layer: nn.Module, args: Any, output: Any) -> None:
            if (feature := first_tensor(output)) is not None:
                shapes[name] = tuple(feature.shape)

        return record

    modes = [(m, m.training) for m in module.modules()]
    layers = module.named_modules(remove_duplicate=False)
    handles = [m.register_forward_hook(hook(name)) for name, m in layers if name]
    try:
        module.eval()
        with torch.no_grad():
            module(*example, **options)
    finally:
        for handle in handles:
            handle.remove()
        for m, training in modes:
            m.training = training
    return shapes
