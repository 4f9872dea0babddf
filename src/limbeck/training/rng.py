"""States of the global random generators (torch, Python, numpy) as tensors."""

import random
import warnings

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


def _optional(value: float | None) -> Tensor:
    return torch.tensor([] if value is None else [value], dtype=torch.float64)
