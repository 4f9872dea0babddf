"""Two forwards under one random state, so that they share their dropout masks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from limbeck.errors import LimbeckError


class RngCapture:
    """The state of torch's generators at this moment, to run a second forward with the same dropout masks.

    >>> capture = RngCapture()
    >>> first = torch.rand(3)
    >>> with capture.replay():
    ...     second = torch.rand(3)
    >>> bool((first == second).all())
    True

    After the replay the generators continue from where they were before it: the two forwards together consume
    the random numbers of one.

    Args:
        device: where the forwards run; the CPU's generator is always captured too.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        if device.type not in ("cpu", "cuda", "mps"):
            raise LimbeckError(f"random states of {device} cannot be replayed: use cpu, cuda or mps")
        self._cpu = torch.get_rng_state()
        self._cuda: dict[int, Tensor] = {}
        if device.type == "cuda":
            i = torch.cuda.current_device() if device.index is None else device.index
            self._cuda[i] = torch.cuda.get_rng_state(i)
        self._mps = torch.mps.get_rng_state() if device.type == "mps" else None

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Run the body with the captured states; it may be used several times and nested."""
        with torch.random.fork_rng(devices=list(self._cuda)):
            torch.set_rng_state(self._cpu)
            for i, state in self._cuda.items():
                torch.cuda.set_rng_state(state, i)
            if self._mps is None:
                yield
                return
            before = torch.mps.get_rng_state()  # fork_rng does not know Apple's generator, which has no device index
            torch.mps.set_rng_state(self._mps)
            try:
                yield
            finally:
                torch.mps.set_rng_state(before)
