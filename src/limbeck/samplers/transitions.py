"""Few-step samplers as Markov chains of Gaussian steps, whose densities preference methods compare."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, times_like
from limbeck.errors import LimbeckError, unknown
from limbeck.noise import Process
from limbeck.samplers.rollout import Trajectory
from limbeck.samplers.steps import Noise, check_nodes, drawn, scalar
from limbeck.samplers.tcd import times_below

Kind = Literal["renoise", "ancestral", "ddim", "tcd"]


@dataclass(frozen=True)
class Chain:
    """A sampler at the times t_0 > ... > t_(K-1) whose K - 1 steps t -> u are x_u | x_t ~ N(mean, std^2 I).

    The mean is linear in the state and in the denoiser's x0, mean = keep x_t + clean D(x_t, t), with ``kind``:

    - "renoise": mean a_u D, std s_u (consistency models, LCM, DMD2; the same samples as a :class:`Rollout`);
    - "ancestral": the posterior q(x_u | x_t, x0) (DDPM; as x / a Euler-ancestral: sig_up^2 = sig_u^2 (1 - sig_u^2 / sig_t^2));
    - "ddim": std eta times the posterior's, the mean keeps sqrt(s_u^2 - std^2) of the noise implied by x_t;
    - "tcd": DDIM to the time (1 - eta) u, then noised up to u (:func:`limbeck.samplers.tcd`).

    The last call goes from t_(K-1) to the denoiser's x0: it is deterministic and has no density. ``eta`` in [0, 1] (ddim and
    tcd) is the share of fresh noise; with 0 no step has a density.
    """

    process: Process
    times: Sequence[float] | Tensor  # kept as a tuple of numbers
    kind: str = "renoise"
    eta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(check_nodes(self.process, self.times).tolist()))
        if self.kind not in get_args(Kind):
            raise unknown("kind of sampler", self.kind, get_args(Kind))
        if not 0 <= self.eta <= 1:
            raise LimbeckError(f"eta must lie in [0, 1], not {self.eta:g}: 0 is deterministic")

    @property
    def K(self) -> int:
        """The number of denoiser calls; K - 1 of them are followed by a step with a density."""
        return len(self.times)

    @cached_property
    def coefficients(self) -> Tensor:
        """keep, clean and std of every step, (3, K - 1), float64."""
        nodes = torch.tensor(self.times, dtype=torch.float64)
        steps = [torch.stack(self._step(t, u)) for t, u in pairwise(nodes)]
        return torch.stack(steps, 1) if steps else torch.zeros(3, 0, dtype=torch.float64)

    def _step(self, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = self.process
        if self.kind == "renoise":
            return torch.zeros_like(u), p.a(u), p.s(u)
        if self.kind == "tcd":
            v = times_below(p, u, self.eta)
            a, std = p.transition(v, u)
            keep = p.s(v) / p.s(t)
            return a * keep, a * (p.a(v) - p.a(t) * keep), std
        share = 1.0 if self.kind == "ancestral" else self.eta
        std = share * p.s(u) * p.transition(u, t)[1] / p.s(t)
        keep = torch.sqrt((p.s(u) ** 2 - std**2).clamp(min=0)) / p.s(t)
        return keep, p.a(u) - p.a(t) * keep, std

    def require_density(self) -> None:
        """Raise LimbeckError where a step, or the only one, has no density."""
        flat = (self.coefficients[2] <= 0).nonzero().flatten().tolist()
        if self.K == 1 or flat:
            raise LimbeckError(
                f"transition at step {flat[0] if flat else 0} has zero variance; online PSO needs a stochastic sampler: use "
                "eta > 0 (ddim, tcd), ancestral or renoise with at least two steps, or the offline form"
            )

    def moments(self, x_t: Tensor, x0: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, ...) and standard deviation (shape of ``step``) of the state after ``step``, an index or a LongTensor (B,).

        x_t (B, ...) is the state before it, x0 the denoiser's answer there.
        """
        keep, clean, std = self.coefficients.to(x_t.device)[:, step]
        return scalar(keep, x_t) * x_t + scalar(clean, x_t) * x0, std

    def __call__(self, denoiser: Denoiser, z: Tensor, cond: Cond | None = None, *, noise: Noise | None = None) -> Trajectory:
        """Sample from normal numbers z (B, ...); ``noise(i + 1)`` serves step i. The trajectory's inputs are the K states.

        Raises LimbeckError for a denoiser of another process and for missing noise.
        """
        if denoiser.process != self.process:
            raise LimbeckError(
                f"the denoiser lives in {denoiser.process}, the sampler in {self.process}; "
                "wrap it with limbeck.denoisers.in_process"
            )
        x = self.process.s(torch.tensor(self.times[0], dtype=torch.float64)).item() * z
        inputs, outputs, times = [x], [], [times_like(z, t) for t in self.times]
        for i, t in enumerate(times):
            outputs.append(denoiser(inputs[i], t, cond))
            if i < self.K - 1:
                x, std = self.moments(inputs[i], outputs[i], i)
                if std > 0:
                    x = x + std.item() * drawn(noise, i + 1, z, f"a stochastic sampler ({self.kind})")
                inputs.append(x)
        return Trajectory(outputs[-1], inputs, outputs, times)


def log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2 I) as the mean, not the sum, over the elements of a sample: (B,), at least float32.

    x and mean (B, ...), std () or (B,). The mean makes a scale beta of preference losses independent of the size of x.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    std = std.to(x.device, dtype)
    square = (x.to(dtype) - mean.to(dtype)).square().flatten(1).mean(1)
    return -square / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
