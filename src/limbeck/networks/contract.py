"""What the networks share: their contract, and the checks of what is given to them."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from limbeck.errors import LimbeckError

Condition = Mapping[str, Tensor]


class Network(Protocol):
    """A raw network F: x (B, ...), c_noise (B,) -> a tensor like x.

    `null` is what stands for "no condition" per sample, or None if the network takes no condition;
    `build_network(config)` builds the network again, with other weights.
    """

    config: dict[str, Any]

    @property
    def null(self) -> dict[str, Tensor] | None: ...

    def __call__(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor: ...


def configuration(kind: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a network from `locals()` on the first line of its constructor; sequences become lists.

    Integers are sizes. Raises LimbeckError for one below 1 (`classes`: below 0) or a dropout outside [0, 1).
    """
    config: dict[str, Any] = {"kind": kind}
    for name, value in arguments.items():
        if name in ("self", "__class__"):
            continue
        several = isinstance(value, tuple | list)
        config[name] = list(value) if several else value
        least = 0 if name == "classes" else 1
        if any(isinstance(n, int) and n < least for n in (value if several else [value])):
            raise LimbeckError(f"{name} of the network {kind!r} is {value}: it must be at least {least}")
        if name == "dropout" and not 0 <= value < 1:
            raise LimbeckError(f"dropout of the network {kind!r} is {value}: choose a probability in [0, 1)")
    return config


def check_input(x: Tensor, c_noise: Tensor, shape: tuple[int | None, ...], tokens: int | None = None) -> None:
    """Raise LimbeckError unless x is (B, *shape), None being any size, and c_noise is (B,) or (B, tokens)."""
    if x.ndim != len(shape) + 1 or any(n not in (None, m) for n, m in zip(shape, x.shape[1:], strict=True)):
        sizes = ", ".join("any" if n is None else str(n) for n in shape)
        raise LimbeckError(f"the network was built for x of shape (B, {sizes}), not {tuple(x.shape)}")
    allowed = [(x.shape[0],), *([(x.shape[0], tokens)] if tokens else [])]
    if tuple(c_noise.shape) not in allowed:
        raise LimbeckError(f"c_noise has shape {tuple(c_noise.shape)}: expected {' or '.join(map(str, allowed))}")
