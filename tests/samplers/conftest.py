import pytest
import torch

from limbeck.denoisers import GaussianDenoiser
from limbeck.noise import DDPM, VE, VP, CosineVP, Process, RectifiedFlow, TrigFlow, spread

PROCESSES = {
    "ve": VE(),
    "vp": VP(),
    "cosine": CosineVP(),
    "ddpm": DDPM(),
    "flow": RectifiedFlow(),
    "shifted": RectifiedFlow(shift=3.0),
    "trigflow": TrigFlow(sigma_data=0.5),
}


class Wobbly:
    """A smooth nonlinear denoiser of no distribution at all; counts its calls and keeps the dtypes it saw."""

    null = None

    def __init__(self, process: Process, d: int = 6):
        g = torch.Generator().manual_seed(3)
        self.process, self.calls = process, 0
        self.weight = torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5

    def __call__(self, x_t, t, cond=None):
        assert t.dtype == torch.float64 and t.shape == x_t.shape[:1]
        self.calls += 1
        a, s = self.process.a(t), self.process.s(t)
        size, angle = torch.sqrt(a**2 + s**2), torch.atan2(s, a)
        shift = 0.0 if cond is None else cond["shift"].to(x_t)
        return torch.tanh(x_t / spread(size, x_t) @ self.weight.to(x_t) + spread(angle, x_t) + shift)


@pytest.fixture
def exact_gaussian():
    """Independent coordinates N(mean, eigenvalues) in a process."""
    mean, var = torch.linspace(-1, 1, 4, dtype=torch.float64), torch.logspace(-1, 0, 4, dtype=torch.float64)
    return lambda process: GaussianDenoiser(mean, torch.eye(4), var, 0.0, process)


@pytest.fixture
def wobbly():
    return Wobbly


@pytest.fixture(params=list(PROCESSES))
def process(request):
    return PROCESSES[request.param]


@pytest.fixture
def normal():
    return lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
