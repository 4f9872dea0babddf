"""Integers as further conditions of a network: how many steps a sampler has, which of them this is."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.networks.contract import Condition


class Counted(nn.Module):
    """A network's conditioning and one more learned vector per named integer: e + sum_name W_name[cond[name]].

    ``values``: the integers that each name may take. The vectors start at zero. Called as the conditioning is; raises
    LimbeckError where an integer is missing or is none of its values.
    """

    def __init__(self, conditioning: Any, width: int, values: Mapping[str, Sequence[int]]):
        super().__init__()
        self.inner = conditioning
        self.values = {name: tuple(allowed) for name, allowed in values.items()}
        self.tables = nn.ModuleDict({name: nn.Embedding(len(allowed), width) for name, allowed in self.values.items()})
        for table in self.tables.values():
            nn.init.zeros_(table.weight)  # type: ignore[arg-type]

    @property
    def null(self) -> dict[str, Tensor] | None:
        """What stands for "no condition", as the conditioning inside declares it: there is no null integer."""
        return self.inner.null

    def forward(self, c_noise: Tensor, cond: Condition | None, allowed: Sequence[str] = ()) -> Tensor:
        rest = {name: value for name, value in (cond or {}).items() if name not in self.values}
        e = self.inner(c_noise, rest or None, allowed)
        for name, table in self.tables.items():
            v = table(self._index(name, cond))
            e = e + (v if c_noise.ndim == 1 else v[:, None])
        return e

    def _index(self, name: str, cond: Condition | None) -> Tensor:
        values = self.values[name]
        if cond is None or name not in cond:
            raise LimbeckError(f"the network needs the condition {name!r}, one of {_listed(values)} per sample")
        given = cond[name]
        found = given[:, None] == torch.tensor(values, device=given.device)
        if not bool(found.any(1).all()):
            other = sorted(set(given[~found.any(1)].tolist()))
            raise LimbeckError(f"{name}={_listed(other)} was not trained; the network knows {name} {_listed(values)}")
        return found.long().argmax(1)


def counted(network: Any, values: Mapping[str, Sequence[int]]) -> Any:
    """The network itself, its conditioning replaced by :class:`Counted` around it; its ``config`` tells so.

    Raises LimbeckError for a network that is not one of the library's, or is counted already.
    """
    conditioning = getattr(network, "conditioning", None)
    if conditioning is None or isinstance(conditioning, Counted):
        raise LimbeckError(
            f"a {type(network).__name__} cannot be told {', '.join(values)}: that needs one of the library's networks, once"
        )
    width = conditioning.second.out_features
    network.conditioning = Counted(conditioning, width, values).to(conditioning.second.weight)
    network.config = {**network.config, "counted": {name: list(allowed) for name, allowed in values.items()}}
    return network


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
