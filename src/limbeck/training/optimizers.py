"""A trained role with its parameters and its optimizer, and what of it goes into a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, unknown
from limbeck.training.method import Role
from limbeck.training.parallel import placed
from limbeck.training.role_options import EIGHT_BIT, OptimizerOptions


@dataclass
class Trained:
    """A trained role with its parameters, captured once, and its optimizer."""

    role: Role
    names: list[str]
    params: list[nn.Parameter]
    held: frozenset[str]
    """Names of the module's parameters that are not trained."""
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self):
        options, params = self.options, self._groups()
        common: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
        if options.kind == "sgd":
            self.optimizer = torch.optim.SGD(params, **common)
            return
        common |= {"betas": options.betas, "eps": options.eps}
        if options.kind in EIGHT_BIT:
            self.optimizer = _eight_bit(options.kind)(params, **common)
            return
        adams = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}
        if options.kind not in adams:
            raise unknown("optimizer", options.kind, [*adams, "sgd", *EIGHT_BIT])
        if options.kind != "radam":
            common["fused"] = True
        self.optimizer = adams[options.kind](params, **common)

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters by the factors of their learning rates."""
        rates = [self.role.rates.get(name.rpartition(".")[2], 1.0) for name in self.names]
        return [
            {"params": [p for p, r in zip(self.params, rates, strict=True) if r == rate], "rate": rate}
            for rate in dict.fromkeys(rates)
        ]

    @property
    def options(self) -> OptimizerOptions:
        """How the role is trained."""
        assert self.role.optimizer is not None
        return self.role.optimizer

    @classmethod
    def of(cls, name: str, role: Role) -> "Trained":
        """Raises LimbeckError where none of the role's parameters requires a gradient."""
        named = [(n, p) for n, p in role.module.named_parameters() if p.requires_grad]
        if not named:
            raise LimbeckError(f"the role {name!r} is to be trained but none of its parameters requires a gradient")
        role.module.train()
        held = frozenset(n for n, p in role.module.named_parameters(remove_duplicate=False) if not p.requires_grad)
        return cls(role, [n for n, _ in named], [p for _, p in named], held)

    def tensors(self, name: str) -> dict[str, dict[str, Tensor]]:
        """Weights, averages and optimizer state by group; what the role does not train (a shared base) is left out."""
        groups = {name: self._own(self.role.module)}
        if self.role.ema is not None:
            groups[f"{name}.ema"] = self._own(self.role.ema)
        groups[f"{name}.optimizer"] = {
            f"{param}/{key}": torch.as_tensor(value)
            for param, p in zip(self.names, self.params, strict=True)
            for key, value in self.optimizer.state[p].items()
        }
        return groups

    def load(self, name: str, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what :meth:`tensors` gave. Raises RuntimeError (of load_state_dict) where names or shapes differ."""
        self._restore(self.role.module, groups[name])
        if self.role.ema is not None:
            self._restore(self.role.ema, groups[f"{name}.ema"])
        state = groups[f"{name}.optimizer"]
        for param, p in zip(self.names, self.params, strict=True):
            mine = {k.removeprefix(f"{param}/"): v for k, v in state.items() if k.rpartition("/")[0] == param}
            # optimizers keep their step counter on the CPU unless they are fused
            near = p.device if self.optimizer.defaults.get("fused") else "cpu"
            self.optimizer.state[p] = {k: v.to(near) if k == "step" else placed(v, p).to(p.device) for k, v in mine.items()}
            if self.options.kind in EIGHT_BIT and mine:
                self.optimizer.state[p]["step"] = int(mine["step"])  # bitsandbytes counts with a Python integer
            if not mine:
                del self.optimizer.state[p]

    def _own(self, module: nn.Module) -> dict[str, Tensor]:
        return {n: v for n, v in module.state_dict().items() if n not in self.held}

    def _restore(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        present = module.state_dict()
        whole = {n: placed(v, present.get(n)) for n, v in tensors.items()}
        module.load_state_dict({**{n: present[n] for n in self.held}, **whole})


def _eight_bit(kind: str) -> Any:
    try:
        from bitsandbytes import optim
    except ImportError:
        raise LimbeckError(f"the optimizer {kind!r} needs bitsandbytes; pip install bitsandbytes, or use kind=adam") from None
    return getattr(optim, EIGHT_BIT[kind])
