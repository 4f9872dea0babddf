"""How a student samples, said without its method: a process, times, and what happens between them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.noise import Process
from limbeck.samplers import Chain, Rollout, tcd
from limbeck.samplers.steps import Noise


@dataclass(frozen=True)
class Steps:
    """K calls of a denoiser at the times t_0 > ... > t_(K-1), and the noise between them.

    ``kind``: "fresh", "ode" and "fixed" are those of :class:`limbeck.samplers.Rollout`; "ddim", "ancestral" and "tcd" with
    ``eta`` those of :class:`limbeck.samplers.Chain`. ``start``: input_0 = s(t_0) z ("noise") or z ("unit").
    """

    process: Process
    times: tuple[float, ...]
    kind: str = "fresh"
    start: str = "noise"
    eta: float = 0.0
    noise_scale: float = 1.0

    @property
    def K(self) -> int:
        """The number of steps."""
        return len(self.times)

    @property
    def begins_with_z(self) -> bool:
        """Is the first input z itself, to float32?"""
        return self.start == "unit" or abs(self._at(self.process.s, 0) - 1) < 1e-7

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels s / a of the steps."""
        return tuple(self.process.sigma(torch.tensor(self.times, dtype=torch.float64)).tolist())

    def __call__(self, denoiser: Any, z: Tensor, cond: Cond | None = None, noise: Noise | None = None) -> Tensor:
        """x from z (B, ...), both standard normal and drawn as ``noise(i)`` for the step that it enters."""
        if self.kind in ("fresh", "ode", "fixed"):
            rollout = Rollout(self.process, self.times, self.kind, self.noise_scale, self.start)
            return rollout(denoiser, z, cond, noise=noise).x
        x = z if self.start == "unit" else self._at(self.process.s, 0) * z
        if self.kind == "tcd":
            return tcd(denoiser, x, self.times, cond, eta=self.eta, noise=noise)
        if self.start == "unit":
            raise LimbeckError(f"a chain of the kind {self.kind!r} begins with s z, not with z")
        return Chain(self.process, self.times, self.kind, self.eta)(denoiser, z, cond, noise=noise).x

    def _at(self, of: Callable[[Tensor], Tensor], i: int) -> float:
        return float(of(torch.tensor(self.times[i], dtype=torch.float64)))


def steps_of(sampler: Rollout | Chain, start: str = "noise") -> Steps:
    """The steps of a rollout or of a chain; one step is deterministic, whatever would have followed."""
    times = tuple(float(t) for t in sampler.times)
    if isinstance(sampler, Rollout):
        kind, eta, start, scale = sampler.renoise, 0.0, sampler.start, sampler.noise_scale
    else:
        kind, eta, scale = ("fresh" if sampler.kind == "renoise" else sampler.kind), sampler.eta, 1.0
    if kind in ("ddim", "tcd") and eta == 0:
        kind = "ode"
    return Steps(sampler.process, times, "ode" if len(times) == 1 else kind, start, eta, scale)


__all__ = ["Steps", "steps_of"]
