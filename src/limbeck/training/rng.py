"""States of the global random generators (torch, Python, numpy) as tensors, replayed for a forward."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import LimbeckError


def rng_state() -> dict[str, Tensor]:
    """The state of every global generator that this process uses, for `restore_rng`.

    Returns:
        `torch`, `cuda/<i>`: uint8; the latter once torch has started CUDA.
        `python`, `numpy`: int64, 624 words and a position.
        `python_gauss`, `numpy_gauss`: float64, the normal number in store, or empty.
    """
    _, words, gauss = random.getstate()
    generator = np.random.get_state(legacy=False)
    if generator["bit_generator"] != "MT19937":
        raise LimbeckError(
            f"numpy's global generator is {generator['bit_generator']}, and only MT19937 can be stored: "
            "do not call numpy.random.set_bit_generator"
        )
    mt = generator["state"]
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": _optional(gauss),
        "numpy": torch.tensor([*mt["key"].tolist(), mt["pos"]], dtype=torch.int64),
        "numpy_gauss": _optional(generator["gauss"] if generator["has_gauss"] else None),
    }
    if torch.cuda.is_initialized():
        state |= {f"cuda/{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    return state


def restore_rng(state: dict[str, Tensor]) -> None:
    """Put back what `rng_state` returned; warn about generators of CUDA devices that are not here."""
    required = ["torch", "python", "python_gauss", "numpy", "numpy_gauss"]
    if missing := [name for name in required if name not in state]:
        raise LimbeckError(f"random states lack {', '.join(missing)}: pass what rng_state() returned")
    torch.set_rng_state(state["torch"].cpu())
    random.setstate((3, tuple(state["python"].tolist()), next(iter(state["python_gauss"].tolist()), None)))
    *key, position = state["numpy"].tolist()
    gauss = state["numpy_gauss"].tolist()
    np.random.set_state(("MT19937", np.array(key, np.uint32), position, len(gauss), *(gauss or [0.0])))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for name in (name for name in state if name.startswith("cuda/")):
        if (i := int(name.removeprefix("cuda/"))) < devices:
            torch.cuda.set_rng_state(state[name].cpu(), i)
        else:
            warnings.warn(f"the random state of {name} was not restored: no such device here", stacklevel=2)


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
        if device.type not in ("cpu", "cuda"):
            raise LimbeckError(f"random states of {device} cannot be replayed: use cpu or cuda")
        self._cpu = torch.get_rng_state()
        self._cuda: dict[int, Tensor] = {}
        if device.type == "cuda":
            i = torch.cuda.current_device() if device.index is None else device.index
            self._cuda[i] = torch.cuda.get_rng_state(i)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Run the body with the captured states; it may be used several times and nested."""
        with torch.random.fork_rng(devices=list(self._cuda)):
            torch.set_rng_state(self._cpu)
            for i, state in self._cuda.items():
                torch.cuda.set_rng_state(state, i)
            yield


def _optional(value: float | None) -> Tensor:
    return torch.tensor([] if value is None else [value], dtype=torch.float64)
