"""The world of several processes: sums of gradients, totals and figures, and how it ends where one of them does."""

import atexit
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.training.heartbeat import BEAT, STALE, Heartbeat
from limbeck.training.keyed import Keyed
from limbeck.training.method import Method
from limbeck.training.parallel import Figures, Made, World, copies, local
from limbeck.training.signals import SIGNALS, noted_signals
from limbeck.training.tensorfile import is_split

BUCKET = 25 * 2**20  # bytes of gradients that are summed at once
PATIENCE = timedelta(hours=6)  # how long a rank waits, e.g. for rank 0 to train a teacher; a dead one is noticed much sooner
ANSWER = timedelta(seconds=10)  # how long the store of the heartbeats may take


class RankLost(LimbeckError):
    """Another rank died or failed: the message says which one, and when."""

    exit_code = 1


class Ranks(World):
    """One of several processes, in the default group of torch.distributed."""

    def __init__(self, device: str, sharded: bool, heart: Heartbeat):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device, self.sharded, self.heart = device, sharded, heart
        self._signum: int | None = None

    def adopt(self, method: Method) -> None:
        method.writes = self.writes
        held = {id(t): t.detach() for m in copies(method).values() for t in [*m.parameters(), *m.buffers()]}
        for tensor in (t for t in held.values() if not is_split(t)):
            whole = tensor.contiguous()
            dist.broadcast(whole, 0)
            tensor.copy_(whole)
        if self.sharded:
            from limbeck.training import shards

            shards.shard(method, self.device, self.size)

    def begin(self, seed: int, step: int) -> None:
        self.heart.mine.step = step
        if self.rank > 0:  # dropout: a function of (seed, step, rank), so that rank 0's state is all that a checkpoint holds
            torch.manual_seed(Keyed(seed, step, torch.arange(1)).shared_randint(f"rank {self.rank}", 0, 2**63))

    def share(self, index: Tensor, pieces: int) -> Tensor:
        least = len(index) // self.size
        if least < pieces:
            raise LimbeckError(
                f"a batch of {len(index)} over {self.size} processes leaves {least} samples to one of them, which cannot be cut into "
                f"micro_batches={pieces}; use a batch of at least {self.size * pieces}, or fewer processes or micro-batches"
            )
        return torch.tensor_split(index, self.size)[self.rank]

    def backward(self, loss: Tensor, params: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> None:
        if not self.sharded:
            super().backward(loss, params, others)
            return
        (loss * self.size).backward()  # FSDP2 takes the mean over ranks, and knows no inputs=
        for p in others:
            p.grad = None

    def gradients(self, params: Sequence[nn.Parameter], loss: float) -> tuple[list[Tensor], Tensor, float]:
        if self.sharded:
            grads = [local(p.grad) for p in params if p.grad is not None]
            square = sum((g.double().square().sum() for g in grads), torch.zeros((), dtype=torch.float64, device=self.device))
            both = self.total(torch.stack([square.cpu(), torch.tensor(loss, dtype=torch.float64)]))
            return grads, both[0].sqrt().to(grads[0] if grads else both), float(both[1])
        told = self.total(torch.tensor([loss, *(p.grad is not None for p in params)], dtype=torch.float64))
        used = [p for p, n in zip(params, told[1:].tolist(), strict=True) if n > 0]
        for p in used:
            if p.grad is None:  # another rank's samples needed it, this one's did not
                p.grad = torch.zeros_like(p)
        self._sum([p.grad for p in used if p.grad is not None])
        return *super().gradients(params, 0.0)[:2], float(told[0])

    def _sum(self, grads: Sequence[Tensor]) -> None:
        flat = [(bucket, torch.cat([g.reshape(-1) for g in bucket])) for bucket in _buckets(grads)]
        works = [dist.all_reduce(whole, async_op=True) for _, whole in flat]
        for (bucket, whole), work in zip(flat, works, strict=True):
            work.wait()
            for g, part in zip(bucket, whole.split([g.numel() for g in bucket]), strict=True):
                g.copy_(part.view_as(g))

    def total(self, value: Tensor) -> Tensor:
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def agree(self, figures: Figures, signum: int | None) -> Figures:
        sums = self.total(torch.tensor([*figures.values(), *(s == signum for s in SIGNALS)], dtype=torch.float64)).tolist()
        self._signum = next((s for s, n in zip(SIGNALS, sums[len(figures) :], strict=True) if n), None)
        return dict(zip(figures, sums, strict=False))

    def stopping(self, signum: int | None) -> int | None:
        return self._signum

    def any(self, flag: bool) -> bool:
        return bool(self.total(torch.tensor([int(flag)])))

    def wait(self) -> None:
        self.any(False)

    def first(self, make: Callable[[], Made]) -> Made:
        told: list[Any] = [None, None]  # what was made, or the error's message
        if self.writes:
            try:
                told[0] = make()
            except LimbeckError as error:
                dist.broadcast_object_list([None, str(error)], 0, device=torch.device("cpu"))
                raise
        dist.broadcast_object_list(told, 0, device=torch.device("cpu"))
        if told[1] is not None:
            raise LimbeckError(told[1])
        return told[0]

    def in_turn(self, make: Callable[[], Made]) -> Made:
        made: list[Made] = []
        self.first(lambda: made.append(make()))  # nothing is told but that it is there
        return made[0] if made else make()

    def check_equal(self, method: Method, step: int) -> None:
        if self.sharded:
            return
        for name, module in copies(method).items():
            sums = [p.detach().sum(dtype=torch.float64).cpu() for p in module.parameters()]
            mine = torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)
            theirs = mine.clone()
            dist.broadcast(theirs, 0)
            if self.any(not torch.equal(mine, theirs)):
                raise LimbeckError(
                    f"the weights of the role {name!r} differ between processes at step {step}; draw noise from batch.noise alone, and "
                    "nothing in finish() from torch's own generator"
                )

    def gathered(self, module: nn.Module) -> AbstractContextManager[None]:
        if not self.sharded:
            return super().gathered(module)
        from limbeck.training import shards

        return shards.gathered(module)


def _buckets(grads: Sequence[Tensor]) -> list[list[Tensor]]:
    """Gradients of one dtype and device together, up to a bucket's size."""
    buckets: list[list[Tensor]] = []
    opened: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], int]] = {}
    for g in grads:
        kind, size = (g.dtype, g.device), g.numel() * g.element_size()
        bucket, filled = opened.get(kind, ([], BUCKET))
        if filled + size > BUCKET:
            bucket, filled = [], 0
            buckets.append(bucket)
        bucket.append(g)
        opened[kind] = (bucket, filled + size)
    return buckets


@contextmanager
def joined(device: str, sharded: bool) -> Iterator[Ranks]:
    """The process group that the environment describes, with a heartbeat. The group stays for later runs, until the process ends."""
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    # a connection of its own: the group's is busy while a rank waits in it
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=ANSWER)
    heart = Heartbeat(store, dist.get_rank(), dist.get_world_size())
    world = Ranks(device, sharded, heart)
    world.wait()
    heart.start()
    try:
        yield world
        heart.leave()
        if sharded:
            world.wait()  # rank 0 may hold the store
    except BaseException as error:
        with noted_signals(lambda *_: None):  # a launcher ends those that are left; they are to say why first
            lost = heart.lost(STALE + 2 * BEAT) if _of_a_collective(error) else None
        heart.leave((str(error) or type(error).__name__).splitlines()[0])
        if lost is None:
            if not isinstance(error, LimbeckError):
                time.sleep(2 * BEAT)  # the others may read the reason in a store that this process holds
            raise
        atexit.unregister(dist.destroy_process_group)  # what another rank has left cannot be ended in an orderly way
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RankLost(lost) from error


def _of_a_collective(error: BaseException) -> bool:
    known = ("gloo", "NCCL", "Connection", "connection")
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or any(word in str(error) for word in known))
