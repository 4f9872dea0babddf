"""Offload: what a role owns waits on the CPU while the role is idle, and is on the device while it is at work."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.training.method import Role
from limbeck.training.optimizers import Trained

CPU = torch.device("cpu")
Move = Callable[[Tensor, torch.device], Tensor]


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor's numbers on a device."""
    return tensor.detach().to(device)


class Resident:
    """Everything is on the device all the time."""

    def release(self, updated: Iterable[str] | None = None) -> None:
        """Called after every update with the roles updated, and with None where the iteration is over."""

    def applying(self, name: str) -> AbstractContextManager[None]:
        """Around the optimizer's step of a role."""
        return nullcontext()

    def averaging(self, name: str) -> AbstractContextManager[None]:
        """Around the update of a role's average, after the iteration."""
        return nullcontext()


class Offload(Resident):
    """Keeps the weights, averages and optimizer states of all roles on the CPU until they are needed; results stay the same.

    A role's module and its average come to the device at their first call, optimizer state inside :meth:`applying`. After an
    update :meth:`release` sends away what it is done with. A role that was called with gradients and is not updated yet may be
    part of a graph that still waits for its backward: it stays until its own update, or until the iteration is over. Tensors
    that several roles share (one frozen base) leave with the last of them. What a method does with weights when an iteration is
    over (:meth:`Method.finish`) happens on the CPU. ``move`` (tensor, device) -> tensor does the moving, ``away`` is where to.
    """

    def __init__(
        self,
        roles: Mapping[str, Role],
        trained: Mapping[str, Trained],
        device: torch.device | str,
        move: Move = moved,
        away: torch.device = CPU,
    ):
        self.trained, self.device, self.move, self.away = trained, torch.device(device), move, away
        modules = {name: role.module for name, role in roles.items()}
        self.modules: dict[str, nn.Module] = {**modules, **{f"{n}.ema": r.ema for n, r in roles.items() if r.ema is not None}}
        self.resident, self.waiting = set(self.modules), set[str]()
        for name, module in self.modules.items():
            for entrance in (module, getattr(module, "network", None)):
                if isinstance(entrance, nn.Module):
                    entrance.register_forward_pre_hook(self._hook(name))
        self.release()
        for name in trained:
            self._move_state(name, self.away)

    def _hook(self, name: str) -> Callable[[nn.Module, Any], Any]:
        owner = self.modules[name]

        def enter(module: nn.Module, args: Any) -> Any:
            if module is not owner and module is not getattr(owner, "network", None):
                return None  # a copy that was made of it
            self.fetch(name)
            if torch.is_grad_enabled():
                self.waiting.add(name)
            return tuple(self._placed(a) if isinstance(a, Mapping) else a for a in args)

        return enter

    def _placed(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Conditions on the device: a null condition may come from an idle network."""
        return {n: v.to(self.device) for n, v in cond.items()}

    def fetch(self, *names: str) -> None:
        """Bring modules to the device, by the name of their role ("student", "student.ema")."""
        there = {id(t) for t in self._tensors(self.resident)}
        for name in [n for n in names if n not in self.resident]:
            for t in self._tensors([name]):
                if id(t) not in there:
                    there.add(id(t))
                    t.data = self.move(t, self.device)
            self.resident.add(name)

    def release(self, updated: Iterable[str] | None = None) -> None:
        """Send away what no graph can need once these roles were updated (None: the iteration is over, everything)."""
        self.waiting -= self.waiting if updated is None else set(updated)
        leaving = self.resident - self.waiting
        self.resident -= leaving
        stay = {id(t) for t in self._tensors(self.resident)}
        for t in self._tensors(leaving):
            if id(t) not in stay:
                stay.add(id(t))
                t.data = self.move(t, self.away)

    @contextmanager
    def applying(self, name: str) -> Iterator[None]:
        """Inside, a trained role's weights and its optimizer's state are on the device."""
        self.fetch(name)
        self._move_state(name, self.device)
        yield
        self._move_state(name, self.away)

    @contextmanager
    def averaging(self, name: str) -> Iterator[None]:
        """Inside, a role's weights and their average are on the device; after it nothing is."""
        self.fetch(*(n for n in (name, f"{name}.ema") if n in self.modules))
        yield
        self.release()

    def _tensors(self, names: Iterable[str]) -> Iterator[Tensor]:
        for name in names:
            yield from self.modules[name].parameters()
            yield from self.modules[name].buffers()

    def _move_state(self, name: str, device: torch.device) -> None:
        optimizer = self.trained[name].optimizer
        for state in optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor) and (key != "step" or optimizer.defaults.get("fused")):
                    state[key] = self.move(value, device)
