"""How much memory a run will need, before it begins: weights from their counts, the rest from small rehearsals of the run itself."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.methods import find
from limbeck.runs.config import Execution, RunConfig
from limbeck.runs.distillation import prepare
from limbeck.tasks import AnyTask
from limbeck.training import Loop, LoopOptions, checkpoint_roles
from limbeck.training.live import LiveBytes, held
from limbeck.training.offload import Offload
from limbeck.training.optimizers import Trained
from limbeck.training.options import options_from_dict
from limbeck.training.role_options import EIGHT_BIT

FEW, MORE = (2, 4), (8, 16)  # samples per micro-batch of the two rehearsals; one alone would take other paths through torch
ROOM = 2**30  # bytes that activations may take for a rehearsal with more: convolutions choose their algorithm by the batch

AWAY = torch.device("meta")  # a name for where idle roles are, on whatever device the rehearsal takes place


@dataclass(frozen=True)
class RoleBytes:
    """Bytes of a role. What it shares with a role above it (a frozen base) is counted there."""

    name: str
    weights: int
    gradients: int
    optimizer: int
    average: int


@dataclass(frozen=True)
class Plan:
    """``peak``: the most bytes of tensors at one time. ``resident``: weights, averages and optimizer states on the device at that
    moment; the rest, ``working``, are activations, gradients and temporary tensors. ``other``: modules that are no role.
    """

    roles: tuple[RoleBytes, ...]
    other: int
    resident: int
    peak: int
    batch: int
    micro_batches: int

    @property
    def working(self) -> int:
        """Bytes beside the resident ones at the peak."""
        return self.peak - self.resident

    @property
    def owned(self) -> int:
        """All weights, averages and optimizer states."""
        return self.other + sum(r.weights + r.optimizer + r.average for r in self.roles)


def plan_run(
    config: RunConfig,
    task: AnyTask,
    how: Execution = Execution(),  # noqa: B008
    *,
    eight_bit: bool = False,
) -> Plan:
    """The memory of a run with these options, by rehearsing its first, middle and last iteration with few samples.

    The bytes alive after each operation are linear in the batch: those of 8 and of 16 samples per micro-batch give those of
    the whole batch (2 and 4 where 16 would need more than about 1 GB). In a rehearsal no optimizer steps, and all copies of
    the teacher share its memory: beside the task itself it needs the activations of those samples and the gradients of one
    update. Tensors alone are counted, not what an operation frees before it returns, nor the allocator's gaps and CUDA's own
    context (about half a GB). ``eight_bit``: as if Adam's moments were in 8 bits.
    """
    pieces, batch = config.micro_batches, config.options["batch"] or prepare(config, task)[0].batch
    total = options_from_dict(find(config.method).load()[1], config.options).iterations
    rehearse = lambda size: Rehearsal(config, task, how, size, eight_bit)  # noqa: E731
    trial = rehearse(min(FEW[1] * pieces, batch))
    working = max(w for w, _ in trial.at(0))
    small = MORE if working * MORE[1] * pieces <= ROOM * trial.batch else FEW
    sizes = [pieces * n for n in small] if batch > pieces * small[1] else [batch]
    rehearsals = [trial if size == trial.batch else rehearse(size) for size in sizes]
    peak, resident = 0, 0
    for step in sorted({0, total // 2, total - 1}):
        peak, resident = max((peak, resident), _peak([r.at(step) for r in rehearsals], sizes, batch))
    roles, other = rehearsals[0].owned()
    return Plan(roles, other, resident, peak, batch, pieces)


class Rehearsal:
    """The loop of a run at another batch, whose optimizers stand still."""

    def __init__(self, config: RunConfig, task: Any, how: Execution, batch: int, eight_bit: bool = False):
        self.batch = batch
        held_by_task = {name: getattr(task, name) for name in ("teacher", "start") if hasattr(task, name)}
        lazy = dict(zip(held_by_task, _lazy(tuple(held_by_task.values())), strict=True))
        small = replace(config, options={**config.options, "batch": batch})
        self.method, options = prepare(small, replace(task, **lazy))
        if how.gradient_checkpointing:
            checkpoint_roles(self.method.roles)
        counts = LoopOptions(options.iterations, batch, config.micro_batches, config.seed)
        self.loop = Loop(self.method, self.method.source(task.source), counts, device=config.device, quiet=True)
        for name, trained in self.loop.trained.items():
            kind = trained.options.kind
            trained.optimizer = Still(trained, f"{kind}8bit" if eight_bit and f"{kind}8bit" in EIGHT_BIT else kind)
            self.method.roles[name].ema_options = None  # averages stand still too
        self.resident = _bytes(held(self.method.roles, self.loop.trained)) + _bytes(self._others())
        if how.offload:
            self.loop.residence = Offload(self.method.roles, self.loop.trained, config.device, self._move, AWAY)

    def _move(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.resident += tensor.nbytes * (-1 if device == AWAY else 1)
        return tensor

    def at(self, step: int) -> list[tuple[int, int]]:
        """(working, resident) bytes after each operation of an iteration."""
        self.loop.step, trace = step, list[tuple[int, int]]()
        with LiveBytes(each=lambda now: trace.append((now, self.resident))):
            self.loop.iterate()
        return trace

    def _others(self) -> list[Tensor]:
        """Tensors of modules that the method holds beside its roles."""
        known = {id(m) for role in self.method.roles.values() for tree in {role.module, role.best} for m in tree.modules()}
        values = [v for value in vars(self.method).values() for v in (value if isinstance(value, list | tuple) else [value])]
        modules = [m for m in values if isinstance(m, nn.Module) and id(m) not in known]
        counted = {id(t) for t in held(self.method.roles, self.loop.trained)}
        return [t for m in modules for t in [*m.parameters(), *m.buffers()] if id(t) not in counted]

    def owned(self) -> tuple[tuple[RoleBytes, ...], int]:
        """The bytes of each role, and of other modules."""
        counted: set[int] = set()
        found = []
        for name, role in self.method.roles.items():
            weights, average = (
                _bytes([*m.parameters(), *m.buffers()], counted) if m is not None else 0 for m in (role.module, role.ema)
            )
            trained = self.loop.trained.get(name)
            state = [] if trained is None else [v for s in trained.optimizer.state.values() for v in s.values()]
            gradients = 0 if trained is None else _bytes(trained.params)
            found.append(RoleBytes(name, weights, gradients, _bytes(state), average))
        return tuple(found), _bytes(self._others())


class Still(torch.optim.Optimizer):
    """An optimizer that never moves, with the state that the role's own would have, but for its memory."""

    def __init__(self, trained: Trained, kind: str):
        super().__init__(trained.params, {"fused": True})
        self.params, self.kind = trained.params, kind
        self.step()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing, but for the state where it was forgotten."""
        for p in self.params:
            if p not in self.state:
                self.state[p] = _state(self.kind, p)


def _state(kind: str, p: Tensor) -> dict[str, Tensor]:
    if kind == "sgd":
        return {}
    bytes_each = kind in EIGHT_BIT and p.numel() >= 4096  # bitsandbytes keeps small tensors in float32
    moment = p.new_zeros((), dtype=torch.uint8 if bytes_each else torch.float32 if kind in EIGHT_BIT else p.dtype)
    state = {"step": p.new_zeros((), dtype=torch.float32)} | {k: moment.expand(p.shape) for k in ("exp_avg", "exp_avg_sq")}
    if bytes_each:  # a scale per block of 256
        state |= {k: p.new_zeros((), dtype=torch.float32).expand(-(-p.numel() // 256)) for k in ("absmax1", "absmax2")}
    return state


class Lazy(nn.Parameter):
    """A parameter whose copies share its memory until one of them is written to."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Lazy":
        return Lazy(_lazy_clone(self.data), self.requires_grad)


def _lazy_clone(tensor: Tensor) -> Tensor:
    try:
        return tensor._lazy_clone()
    except RuntimeError:  # memory that is not torch's own (mapped from a file, numpy's) has to be copied once
        return tensor.clone()


def _lazy(modules: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the modules that are modules; what they share stays shared, and their parameters are lazy."""
    memo: dict[int, Any] = {}
    for p in (p for m in modules if isinstance(m, nn.Module) for p in m.parameters()):
        memo.setdefault(id(p), Lazy(_lazy_clone(p.data), p.requires_grad))
    return tuple(copy.deepcopy(m, memo) if isinstance(m, nn.Module) else m for m in modules)


def _peak(traces: Sequence[list[tuple[int, int]]], sizes: Sequence[int], batch: int) -> tuple[int, int]:
    """(the most bytes, those of them that are resident) at a batch, from traces at one size or two."""
    if len(traces) == 1:
        return max((working + resident, resident) for working, resident in traces[0])
    (low, high), share = traces, (batch - sizes[0]) / (sizes[1] - sizes[0])
    if len(low) != len(high):  # draws took other paths
        low, high = [max(low, key=sum)], [max(high, key=sum)]
    pairs = ((a + share * (b - a), resident) for (a, _), (b, resident) in zip(low, high, strict=True))
    return max((round(working) + resident, resident) for working, resident in pairs)


def _bytes(tensors: Iterable[Tensor], counted: set[int] | None = None) -> int:
    """Of all tensors, or of those not counted yet, which then are."""
    seen = set[int]() if counted is None else counted
    new = {id(t): t.nbytes for t in tensors if id(t) not in seen}
    seen.update(new)
    return sum(new.values())
