"""The continuous processes (variance exploding and preserving, flows, residual shifting) and the table of them all."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, unknown
from limbeck.noise.ddpm import DDPM
from limbeck.noise.process import Process


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: a = 1, s = t = sigma (EDM, arXiv 2206.00364). Times in [sigma_min, sigma_max]."""

    t_min: float = 0.002
    t_max: float = 80.0

    def a(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def s(self, t: Tensor) -> Tensor:
        return t.double()

    def da(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t, dtype=torch.float64)

    def ds(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def time_of(self, sigma: Tensor) -> Tensor:
        return sigma.double()


@dataclass(frozen=True)
class VP(Process):
    """Variance preserving with linear beta: a = exp(-B/2), B = beta_min t + (beta_max - beta_min) t^2 / 2.

    t in [t_min, 1]; drift -beta x / 2 (Song et al., arXiv 2011.13456).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def _integral(self, t: Tensor) -> Tensor:
        t = t.double()
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t.double()

    def a(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t) / 2)

    def s(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def da(self, t: Tensor) -> Tensor:
        return -self._beta(t) / 2 * self.a(t)

    def ds(self, t: Tensor) -> Tensor:
        return self._beta(t) / 2 * self.a(t) ** 2 / self.s(t)

    def time_of(self, sigma: Tensor) -> Tensor:
        integral = torch.log1p(sigma.double() ** 2)
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


@dataclass(frozen=True)
class CosineVP(Process):
    """Variance preserving, a = cos(theta(t)) / cos(theta(0)), theta = pi/2 (t + offset) / (1 + offset) (2102.09672)."""

    offset: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9999

    @property
    def _theta0(self) -> float:
        return math.pi / 2 * self.offset / (1 + self.offset)

    def _theta(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (t.double() + self.offset) / (1 + self.offset)

    def a(self, t: Tensor) -> Tensor:
        return torch.cos(self._theta(t)) / math.cos(self._theta0)

    def s(self, t: Tensor) -> Tensor:
        theta = self._theta(t)  # 1 - a^2 = sin(theta - theta0) sin(theta + theta0) / cos(theta0)^2
        square = torch.sin(theta - self._theta0) * torch.sin(theta + self._theta0)
        return torch.sqrt(square.clamp(min=0)) / math.cos(self._theta0)

    def da(self, t: Tensor) -> Tensor:
        return -torch.sin(self._theta(t)) / math.cos(self._theta0) * (math.pi / 2 / (1 + self.offset))

    def ds(self, t: Tensor) -> Tensor:
        return -self.a(t) * self.da(t) / self.s(t)

    def time_of(self, sigma: Tensor) -> Tensor:
        sigma = sigma.double()  # tan(theta)^2 = (sigma^2 + sin(theta0)^2) / cos(theta0)^2
        slope = torch.sqrt(sigma**2 + math.sin(self._theta0) ** 2) / math.cos(self._theta0)
        theta = torch.atan(slope)
        return theta * (1 + self.offset) / (math.pi / 2) - self.offset


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """Rectified flow x_t = (1 - u) x0 + u e with u = shift t / (1 + (shift - 1) t), t in [0, 1].

    The velocity is u'(t) (e - x0).
    shift = 1 is the plain process; a shift makes the process spend its time at more noise (SD3, arXiv 2403.03206).
    """

    shift: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        if not self.shift > 0:
            raise LimbeckError(f"the flow shift must be positive, not {self.shift:g}; 1 is the plain process")

    def a(self, t: Tensor) -> Tensor:
        return (1 - t.double()) / (1 + (self.shift - 1) * t.double())

    def s(self, t: Tensor) -> Tensor:
        return self.shift * t.double() / (1 + (self.shift - 1) * t.double())

    def da(self, t: Tensor) -> Tensor:
        return -self.ds(t)

    def ds(self, t: Tensor) -> Tensor:
        return self.shift / (1 + (self.shift - 1) * t.double()) ** 2

    def time_of(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + self.shift / sigma.double())


@dataclass(frozen=True)
class TrigFlow(Process):
    """x_t = cos(t) x0 + sigma_data sin(t) e, t in [0, pi/2] (sCM, arXiv 2410.11081)."""

    sigma_data: float = 1.0
    t_min: float = 1e-3
    t_max: float = math.pi / 2

    def a(self, t: Tensor) -> Tensor:
        return torch.cos(t.double())

    def s(self, t: Tensor) -> Tensor:
        return self.sigma_data * torch.sin(t.double())

    def da(self, t: Tensor) -> Tensor:
        return -torch.sin(t.double())

    def ds(self, t: Tensor) -> Tensor:
        return self.sigma_data * torch.cos(t.double())

    def time_of(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma.double() / self.sigma_data)


@dataclass(frozen=True)
class ResShift(Process):
    """Residual shifting x_t = (1 - eta) x0 + eta y + kappa sqrt(eta) e towards a known y (arXiv 2307.12348).

    sqrt(eta_t) = start (end / start)^((t / (steps - 1))^power), start = min_noise / kappa; t in [0, steps - 1].
    Marginals are the paper's. transition() and posterior() are those of the chain that is Markov given y alone; the
    paper's chain adds (eta_t - eta_s) (y - x0), so its steps need x0.
    """

    steps: int = 15
    kappa: float = 2.0
    min_noise: float = 0.04
    end: float = 0.99
    power: float = 0.3
    t_min: float = 0.0

    def __post_init__(self):
        if self.steps < 2:
            raise LimbeckError(f"residual shifting needs at least 2 steps, not {self.steps}")

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return float(self.steps - 1)

    def _root_eta(self, t: Tensor) -> Tensor:
        start = self.min_noise / self.kappa
        return start * (self.end / start) ** ((t.double() / (self.steps - 1)) ** self.power)

    def _d_root_eta(self, t: Tensor) -> Tensor:
        rate = math.log(self.end * self.kappa / self.min_noise) * self.power / (self.steps - 1)
        return self._root_eta(t) * rate * (t.double() / (self.steps - 1)) ** (self.power - 1)

    def d(self, t: Tensor) -> Tensor:
        return self._root_eta(t) ** 2

    def dd(self, t: Tensor) -> Tensor:
        return 2 * self._root_eta(t) * self._d_root_eta(t)

    def a(self, t: Tensor) -> Tensor:
        return 1 - self.d(t)

    def s(self, t: Tensor) -> Tensor:
        return self.kappa * self._root_eta(t)

    def da(self, t: Tensor) -> Tensor:
        return -self.dd(t)

    def ds(self, t: Tensor) -> Tensor:
        return self.kappa * self._d_root_eta(t)

    def time_of(self, sigma: Tensor) -> Tensor:
        k = self.kappa / sigma.double()  # kappa r / (1 - r^2) = sigma  =>  r = 2 / (k + sqrt(k^2 + 4))
        root_eta = 2 / (k + torch.sqrt(k**2 + 4))
        start = self.min_noise / self.kappa
        exponent = (torch.log(root_eta / start) / math.log(self.end / start)).clamp(min=0)
        return (self.steps - 1) * exponent ** (1 / self.power)


PROCESSES: dict[str, type[Process]] = {
    "ve": VE,
    "vp": VP,
    "cosine": CosineVP,
    "ddpm": DDPM,
    "flow": RectifiedFlow,
    "trigflow": TrigFlow,
    "resshift": ResShift,
}


def process_config(process: Process) -> dict:
    """A process as a JSON-able mapping {"kind": ..., option: value}; the inverse of :func:`build_process`."""
    kind = next((name for name, cls in PROCESSES.items() if cls is type(process)), None)
    if kind is None:
        raise unknown("process", type(process).__name__, [cls.__name__ for cls in PROCESSES.values()])
    return {"kind": kind, **{name: getattr(process, name) for name in type(process).__dataclass_fields__}}  # type: ignore[attr-defined]


def build_process(config: dict) -> Process:
    """The process that a mapping {"kind": ..., option: value} describes."""
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in PROCESSES:
        raise unknown("process", str(kind), PROCESSES)
    fields = PROCESSES[kind].__dataclass_fields__  # type: ignore[attr-defined]
    for name, value in options.items():
        if name not in fields:
            raise unknown(f"option of the process {kind!r}", name, fields)
        if isinstance(value, list):
            options[name] = tuple(value)
    return PROCESSES[kind](**options)
