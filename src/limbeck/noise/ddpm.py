"""Discrete DDPM schedules as a process whose time is the index into the table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, unknown
from limbeck.noise.process import Process


@dataclass(frozen=True)
class DDPM(Process):
    """Discrete DDPM tables: variance preserving, t = index 0..steps-1.

    Between indices ln(s/a) is interpolated linearly, beyond the ends it goes on with the end's slope.
    ``betas``: "linear", "scaled_linear" (Stable Diffusion), "cosine"; or give ``alphas_cumprod`` itself, a sequence or
    tensor that then sets ``steps`` (a last entry of 0 is a zero terminal signal: no time lies just before it).
    """

    betas: str = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    alphas_cumprod: Sequence[float] | Tensor | None = None  # kept as a tuple

    def __post_init__(self):
        if self.betas not in (names := ("linear", "scaled_linear", "cosine")):
            raise unknown("beta schedule", self.betas, names)
        if self.alphas_cumprod is not None:
            given = tuple(float(value) for value in self.alphas_cumprod)
            object.__setattr__(self, "alphas_cumprod", given)
            object.__setattr__(self, "steps", len(given))
        table = self.table
        if len(table) < 2 or not bool((table[1:] < table[:-1]).all()) or table[0] >= 1 or table[-1] < 0:
            raise LimbeckError("alphas_cumprod must decrease strictly within [0, 1); check the order of the table")

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return 0.0

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return float(len(self.table) - 1)

    @cached_property
    def table(self) -> Tensor:
        """alphas_cumprod = a^2 at every index, float64."""
        if self.alphas_cumprod is not None:
            return torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        if self.betas == "cosine":
            f = [math.cos((i / self.steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(self.steps + 1)]
            betas = torch.tensor([min(1 - f[i + 1] / f[i], 0.999) for i in range(self.steps)], dtype=torch.float64)
        elif self.betas == "linear":
            betas = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        else:
            betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float64) ** 2
        return torch.cumprod(1 - betas, 0)

    @cached_property
    def _log_sigma(self) -> Tensor:
        return torch.log1p(-self.table) / 2 - torch.log(self.table) / 2

    @cached_property
    def _finite(self) -> bool:
        return bool(self.table[-1] > 0)

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        knots, t = self._log_sigma.to(t.device), t.double()
        i = t.floor().long().clamp(0, len(knots) - 2)
        return t - i, knots[i], knots[i + 1]

    def _log_sigma_at(self, t: Tensor) -> Tensor:
        w, low, high = self._segment(t)
        value = low + w * (high - low)
        return value if self._finite else torch.where((w == 0) & torch.isinf(high), low, value)  # 0 inf is nan

    def _slope(self, t: Tensor) -> Tensor:
        _, low, high = self._segment(t)
        return high - low

    def a(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(-2 * self._log_sigma_at(t)))

    def s(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(2 * self._log_sigma_at(t)))

    def da(self, t: Tensor) -> Tensor:
        return -self.a(t) * self.s(t) ** 2 * self._slope(t)

    def ds(self, t: Tensor) -> Tensor:
        return self.s(t) * self.a(t) ** 2 * self._slope(t)

    def time_of(self, sigma: Tensor) -> Tensor:
        knots, value = self._log_sigma.to(sigma.device), torch.log(sigma.double())
        i = (torch.searchsorted(knots, value.contiguous()) - 1).clamp(0, len(knots) - 2)
        share = (value - knots[i]) / (knots[i + 1] - knots[i])
        return i + torch.where(value == knots[i + 1], 1.0, share)  # a zero terminal signal has an infinite knot
