"""How many bytes of tensors are alive, and how many were at most."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.training.method import Role
from limbeck.training.optimizers import Trained


class LiveBytes(TorchDispatchMode):
    """Bytes of tensors that are alive, and their peak, from what operations return inside this context.

    ``known``: tensors that exist already and are counted from the start; others that do are not, nor are views of them.
    ``each`` is told the bytes alive after each operation. What an operation frees before it returns is not seen.
    """

    def __init__(self, known: Iterable[Tensor] = (), each: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.each = each
        self.seen: set[int] = set()
        for tensor in known:
            self._count(tensor)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        new = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.untyped_storage()._cdata not in self.seen]
        if new:
            given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            for t in new:
                if t.untyped_storage()._cdata not in given:
                    self._count(t)
        if self.each is not None:
            self.each(self.now)
        return out


def held(roles: Mapping[str, Role], trained: Mapping[str, Trained]) -> Iterator[Tensor]:
    """What is alive between two iterations: weights and buffers, averages and optimizer states; some may come twice."""
    for role in roles.values():
        for module in {role.module, role.best}:
            yield from module.parameters()
            yield from module.buffers()
    for each in trained.values():
        for state in each.optimizer.state.values():
            yield from (v for v in state.values() if isinstance(v, Tensor))


def peak_bytes(work: Callable[[], Any], known: Iterable[Tensor], device: torch.device | str = "cpu") -> int:
    """The most bytes that were alive in ``work()``, those of ``known`` included; on a GPU, what torch's allocator had given out."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with LiveBytes(known) as live:
        work()
    return live.peak
