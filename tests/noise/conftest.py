"""Every process, as the parametrised fixtures ``process`` and ``other``."""

import math
from functools import cache

import pytest
import torch

from limbeck.noise import DDPM, VE, VP, CosineVP, RectifiedFlow, ResShift, TrigFlow

ALL = {
    "ve": VE(),
    "vp": VP(),
    "cosine": CosineVP(),
    "ddpm-linear": DDPM("linear"),
    "ddpm-scaled": DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012),
    "ddpm-cosine": DDPM("cosine"),
    "ddpm-table": DDPM(alphas_cumprod=(0.99, 0.9, 0.6, 0.3, 0.05, 0.001)),
    "flow": RectifiedFlow(),
    "flow-shift": RectifiedFlow(shift=3.0),
    "trigflow": TrigFlow(),
    "trigflow-half": TrigFlow(sigma_data=0.5),
    "resshift": ResShift(),
}


@pytest.fixture(scope="session", params=list(ALL.values()), ids=list(ALL))
def process(request):
    return request.param


@pytest.fixture(scope="session", params=list(ALL.values()), ids=list(ALL))
def other(request):
    return request.param


@cache
def span(process) -> tuple[float, float]:
    """The first and last time between 0 and t_max with a, s >= 1e-4 and a finite velocity."""

    def usable(t: float) -> bool:
        at = torch.tensor(t, dtype=torch.float64)
        a, s, speed = (f(at).item() for f in (process.a, process.s, process.ds))
        return a >= 1e-4 and s >= 1e-4 and math.isfinite(speed)

    def end(outside: float) -> float:
        inside = 0.5 * process.t_max
        if usable(outside):
            return outside
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if usable(middle) else (inside, middle)
        return inside

    return end(0.0), end(process.t_max)


@pytest.fixture(scope="session")
def times():
    """Places in [0, 1] as times of a process within its :func:`span`."""

    def place(process, where) -> torch.Tensor:
        low, high = span(process)
        return (low + (high - low) * torch.tensor(where, dtype=torch.float64)).clamp(low, high)

    return place
