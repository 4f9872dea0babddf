"""The processes that `torchrun` started, or this one alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from limbeck.errors import LimbeckError, unknown
from limbeck.training.parallel import ALONE, World
from limbeck.training.ranks import joined

WAYS = ("replicate", "shard")


@contextmanager
def launched(device: str = "cpu", parallel: str = "replicate") -> Iterator[World]:
    """The world of this process: that of `torchrun` where it was started so (RANK and WORLD_SIZE are set), else alone.

    Raises LimbeckError where a rank has no GPU of its own, and :class:`limbeck.training.ranks.RankLost` where another rank dies.
    """
    if parallel not in WAYS:
        raise unknown("way to be parallel", parallel, WAYS)
    if not {"RANK", "MASTER_ADDR"} <= os.environ.keys() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ALONE
        return
    kind = torch.device(device)
    if kind.type == "cuda":
        _own_gpu(kind)
    with joined(kind.type, parallel == "shard") as world:
        yield world


def _own_gpu(device: torch.device) -> None:
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device.index is not None:
        raise LimbeckError(f"--device {device}: every process takes a GPU of its own; give --device cuda")
    if local >= gpus:
        raise LimbeckError(
            f"process {local} of this machine has no GPU, there are {gpus}; start --nproc-per-node {max(gpus, 1)}"
        )
    torch.cuda.set_device(local)
