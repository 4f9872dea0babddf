"""Several processes that train one run: what they add up, agree on and leave to rank 0. One process is the trivial case.

Every rank holds its share of a batch. Either every rank holds all weights, and gradients are summed (replicate), or weights,
averages and optimizer states are split over the ranks (shard). See docs/architecture.md, "Several processes".
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limbeck.training.method import Method

Figures = dict[str, float]
Made = TypeVar("Made")


class World:
    """All processes of a run as one of them sees them. This one is alone: its sums are its own, and it writes."""

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def writes(self) -> bool:
        """Does this process write the run's folder, and show how far it is?"""
        return self.rank == 0

    @property
    def evaluates(self) -> bool:
        """Does this process judge the student? Where weights are split, a forward takes all ranks."""
        return self.writes or self.sharded

    # -- one iteration ------------------------------------------------------------------------------------------------

    def adopt(self, method: Method) -> None:
        """Take a method's roles over: equal on all ranks, and split where they are to be. Called once, before training."""

    def begin(self, seed: int, step: int) -> None:
        """Called before every iteration."""

    def share(self, index: Tensor, pieces: int) -> Tensor:
        """The samples of a batch that are this rank's, to be cut into ``pieces``. Raises LimbeckError where they are too few."""
        return index

    def backward(self, loss: Tensor, params: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> None:
        """Add this rank's gradient of a loss to ``params``, and to none of the ``others``."""
        loss.backward(inputs=list(params))

    def gradients(self, params: Sequence[nn.Parameter], loss: float) -> tuple[list[Tensor], Tensor, float]:
        """(gradients as this rank holds them, to be changed in place; norm of the whole; loss), summed over ranks."""
        grads = [p.grad for p in params if p.grad is not None]
        return grads, torch.nn.utils.get_total_norm(grads), loss

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks."""
        return value

    def agree(self, figures: Figures, signum: int | None) -> Figures:
        """The sums of figures over all ranks; a signal that any rank has noted is noted by all."""
        return figures

    def stopping(self, signum: int | None) -> int | None:
        """The signal that all ranks know of, given this one's own."""
        return signum

    # -- beside the iterations ----------------------------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Does any rank say so?"""
        return flag

    def wait(self) -> None:
        """Until all ranks are here."""

    def first(self, make: Callable[[], Made]) -> Made:
        """What rank 0 makes, on every rank; so is its LimbeckError."""
        return make()

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """What this rank makes, after rank 0 has made its own (and left it in a cache)."""
        return make()

    def check_equal(self, method: Method, step: int) -> None:
        """Raise LimbeckError where the ranks' weights have come apart."""

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        """The module has whole weights inside, to be read and not to run. All ranks go in and out together."""
        return nullcontext()


ALONE = World()


def placed(value: Tensor, like: Any) -> Tensor:
    """A whole tensor as ``like`` is held: the parts of it that this rank has, where ``like`` is split over the ranks."""
    if not hasattr(like, "placements") or hasattr(value, "placements") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def local(value: Any) -> Any:
    """This rank's part of a split tensor, in the same memory; another tensor as it is."""
    return value.to_local() if hasattr(value, "placements") else value


def copies(method: Method) -> dict[str, nn.Module]:
    """Every module of the roles by name, averages as NAME.ema; a module of two roles once."""
    found: dict[str, nn.Module] = {}
    for name, role in method.roles.items():
        for label, module in ((name, role.module), (f"{name}.ema", role.ema)):
            if isinstance(module, nn.Module) and not any(module is other for other in found.values()):
                found[label] = module
    return found
