"""What the loop drives: a method is its paper's algorithm box written as a generator, and the roles it trains."""

import copy
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.networks import checkpoint_blocks
from limbeck.training.keyed import Keyed, sample_order
from limbeck.training.role_options import EmaOptions, OptimizerOptions


class Role:
    """A module with a part to play: trained (``optimizer`` given) or frozen, with or without an average of its weights.

    ``rates``: what the learning rate of a parameter is multiplied with, by the last part of its name (none: 1).
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerOptions | None = None,
        ema: EmaOptions | None = None,
        rates: Mapping[str, float] | None = None,
    ):
        self.module, self.optimizer = module, optimizer
        self.rates = dict(rates or {})
        self.ema_options = ema
        self.ema: nn.Module | None = None
        if optimizer is None:
            module.requires_grad_(False).eval()
        if ema is not None:  # what is not trained is shared: adapters are averaged on one base
            held = {id(p): p for p in module.parameters() if not p.requires_grad}
            self.ema = copy.deepcopy(module, held).requires_grad_(False).eval()

    @property
    def trained(self) -> bool:
        return self.optimizer is not None

    @property
    def best(self) -> nn.Module:
        """The averaged module where there is one, else the module."""
        return self.module if self.ema is None else self.ema

    @torch.no_grad()
    def update_ema(self, k: int) -> None:
        """Average the weights after iteration k = 1, 2, ...; buffers are copied."""
        if self.ema is None or self.ema_options is None:
            return
        weight = 1 - self.ema_options.decay(k)
        pairs = [(e, w) for e, w in zip(self.ema.parameters(), self.module.parameters(), strict=True) if e is not w]
        torch._foreach_lerp_([e for e, _ in pairs], [w for _, w in pairs], weight)
        for average, buffer in zip(self.ema.buffers(), self.module.buffers(), strict=True):
            average.copy_(buffer)


@dataclass(frozen=True)
class Update:
    """Yielded by a method: train these roles on this loss (backward, clipping, optimizer step), then come back."""

    roles: str | tuple[str, ...]
    loss: Tensor
    logs: Mapping[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Total:
    """Yielded by a method: a sum over the whole batch, all micro-batches and ranks; the sum is sent back."""

    value: Tensor


@runtime_checkable
class Source(Protocol):
    """Training data: ``size`` rows; fetch(rows) -> (x (B, ...) or None, conditions)."""

    size: int

    def fetch(self, rows: Tensor) -> tuple[Tensor | None, Cond | None]: ...


class TensorSource:
    """Data in memory: x (N, ...) or None (conditions alone), cond name -> (N, ...). Neither: ``size`` rows of nothing but noise."""

    def __init__(self, x: Tensor | None, cond: Cond | None = None, size: int | None = None):
        sizes = {len(v) for v in [x, *(cond or {}).values()] if v is not None}
        if size is not None:
            sizes.add(size)
        if len(sizes) != 1 or 0 in sizes:
            raise LimbeckError(f"data and conditions must have one common, positive length, not {sorted(sizes)}")
        self.x, self.cond, self.size = x, cond, sizes.pop()

    def fetch(self, rows: Tensor) -> tuple[Tensor | None, Cond | None]:
        x = None if self.x is None else self.x[rows]
        return x, None if self.cond is None else {name: value[rows] for name, value in self.cond.items()}


class Batch:
    """One draw of samples: data x (or None), cond, and noise keyed by sample.

    ``index`` (B,) are the samples' global numbers in the order of the run; sample n is row permutation(n // size)[n % size] of
    the data (``rows``).
    """

    def __init__(self, source: Source, seed: int, step: int, index: Tensor, device: torch.device, stride: int = 0):
        self.source, self.seed, self.step, self.index, self.device, self.stride = source, seed, step, index, device, stride
        self.rows = sample_order(seed, int(index[0]), len(index), source.size)
        x, cond = source.fetch(self.rows)
        self.x = None if x is None else x.to(device)
        self.cond = None if cond is None else {name: value.to(device) for name, value in cond.items()}
        self.noise = Keyed(seed, step, index, device)

    @property
    def size(self) -> int:
        return len(self.index)

    def draw(self, i: int) -> "Batch":
        """The i-th draw of this iteration, i < method.draws: other data, conditions and noise; draw 0 is this one."""
        if i == 0:
            return self
        return Batch(self.source, self.seed, self.step, self.index + i * self.stride, self.device, self.stride)


Step = Generator[Update | Total, Tensor | None, None]


class Method:
    """A distillation method: ``roles`` by name, and ``step``, one iteration. It owns nothing of the loop's."""

    roles: dict[str, Role]
    draws: int = 1
    """How many batches of data one iteration uses (:meth:`Batch.draw`)."""
    batch: int = 1
    """Rows of an iteration where its options leave that open (None)."""
    whole: str | None = None
    """Why its weights cannot be split over processes (None: they can)."""
    writes: bool = True
    """Is this the process that writes files, if the method has some of its own?"""

    @classmethod
    def on(cls, task: Any, options: Any, seed: int) -> "Method":
        """The method on a task of its wing; new weights come from the seed. Raises LimbeckError where its wing has no tasks."""
        raise LimbeckError(f"{cls.__name__} has no tasks to distil: it is trained by limbeck.training.Loop, from Python")

    def step(self, batch: Batch) -> Step:
        """One iteration, yielding updates and totals."""
        raise NotImplementedError

    def source(self, given: Any = None) -> Any:
        """What the loop feeds it: the task's data as they are, or rows that the method makes of them (the edges of a graph)."""
        return given

    def sampler(self, ema: bool = True) -> Callable[[Tensor, Cond | None, Callable[[int], Tensor]], Tensor]:
        """The student as a function (z standard normal (B, ...), cond, fresh noise of step i) -> x."""
        raise NotImplementedError

    def finish(self, step: int) -> None:
        """Called once after iteration ``step`` (however many micro-batches it had): what follows the updates."""

    def state(self) -> dict[str, Tensor]:
        """Tensors beside the roles' own that the next iteration depends on (running statistics)."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` gave."""


def set_precision(roles: Mapping[str, Role], dtype: torch.dtype | None) -> None:
    """Run the networks of all roles in ``dtype`` under autocast; weights, losses and averages stay as they are (None: off).

    Raises LimbeckError for a role without a network that can be told so.
    """
    for name, role in roles.items():
        copies = [role.module] if role.ema is None else [role.module, role.ema]
        told = [m for copy_ in copies for m in copy_.modules() if hasattr(m, "compute_dtype")]
        if not told and dtype is not None and name != "discriminator":
            raise LimbeckError(
                f"the role {name!r} is a {type(role.module).__name__}, which cannot be run in {dtype}; wrap its network in "
                "limbeck.denoisers.Preconditioned, or use float32"
            )
        for module in told:
            setattr(module, "compute_dtype", dtype)  # noqa: B010


def checkpoint_roles(roles: Mapping[str, Role]) -> None:
    """Checkpoint the blocks of all roles' networks (:func:`limbeck.networks.checkpoint_blocks`), frozen ones too: gradients may
    go through them. Averages and discriminators stay as they are.

    Raises LimbeckError for a role without blocks.
    """
    for name, role in roles.items():
        if name != "discriminator" and any(True for _ in role.module.parameters()):
            try:
                checkpoint_blocks(role.module)
            except LimbeckError as error:
                raise LimbeckError(f"the role {name!r}: {error}") from None
