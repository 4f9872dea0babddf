"""Few-step sampling that is one object at inference and in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, times_like
from limbeck.errors import LimbeckError, unknown
from limbeck.noise import Process
from limbeck.samplers.steps import Noise, check_nodes, drawn

Renoise = Literal["fresh", "fixed", "ode"]
Start = Literal["noise", "unit"]


@dataclass(frozen=True)
class Trajectory:
    """The denoiser calls of a rollout, in order: ``outputs[i]`` (B, ...) answers ``inputs[i]`` at ``times[i]`` (B,).

    ``x`` is the last output: the one with the gradient where a gradient step was asked for.
    """

    x: Tensor
    inputs: list[Tensor]
    outputs: list[Tensor]
    times: list[Tensor]

    def at(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's input and time at its own step: ``step`` (B,) long, results (B, ...) and (B,)."""
        rows = torch.arange(len(step), device=step.device)
        return torch.stack(self.inputs)[step, rows], torch.stack(self.times)[step, rows]


@dataclass(frozen=True)
class Rollout:
    """K steps of denoising and renoising at the times t_0 > ... > t_(K-1), as few-step generators sample and train.

    input_0 = s(t_0) gamma z,  x^(i+1) = D(input_i, t_i),  input_(i+1) = a x^(i+1) + s n_(i+1) with a, s at t_(i+1).

    ``renoise``: n is "fresh" (gamma times ``noise(i + 1)``), "fixed" (gamma z again) or "ode" (the noise implied by the step,
    (input_i - a x^(i+1)) / s at t_i, a constant for gradients: deterministic DDIM). ``noise_scale``: gamma, a factor of all
    numbers drawn. ``start`` "unit": input_0 = gamma z, for models that begin with N(0, I) where s(t_0) < 1. With fresh noise,
    a time may come several times in a row.
    """

    process: Process
    times: Sequence[float] | Tensor  # kept as a tuple of numbers
    renoise: str = "fresh"
    noise_scale: float = 1.0
    start: str = "noise"

    def __post_init__(self) -> None:
        times = torch.as_tensor(self.times, dtype=torch.float64)
        check_nodes(self.process, times.unique_consecutive() if self.renoise == "fresh" and times.ndim == 1 else times)
        object.__setattr__(self, "times", tuple(times.tolist()))
        if self.renoise not in get_args(Renoise):
            raise unknown("renoise", self.renoise, get_args(Renoise))
        if self.start not in get_args(Start):
            raise unknown("start", self.start, get_args(Start))
        if not self.noise_scale >= 0:
            raise LimbeckError(f"noise_scale must be at least 0, not {self.noise_scale:g}")

    @property
    def K(self) -> int:
        """The number of steps."""
        return len(self.times)

    def __call__(
        self,
        denoiser: Denoiser,
        z: Tensor,
        cond: Cond | None = None,
        *,
        noise: Noise | None = None,
        grad_step: int | Tensor | None = None,
        least: int = 0,
    ) -> Trajectory:
        """Roll out from normal numbers z (B, ...).

        ``grad_step`` None runs all K steps in the caller's gradient mode. k runs steps 0..k-1 without gradient and ends with
        step k in the caller's mode, on a detached input: its output is x (SiD's uniform-step matching, DMD2's backward
        simulation). A long tensor (B,) gives each sample its own k (TDM): the shared steps run without gradient, then one
        call serves all samples at their own inputs and times. The shared ones are at least ``least``: a number that does not
        depend on the samples lets all processes of a run call the denoiser equally often.

        Raises LimbeckError for a denoiser of another process, a step outside 0..K-1 and missing noise.
        """
        if denoiser.process != self.process:
            raise LimbeckError(
                f"the denoiser lives in {denoiser.process}, the rollout in {self.process}; "
                "wrap it with limbeck.denoisers.in_process"
            )
        last = max(self._last(grad_step, z), min(least, self.K - 1) if isinstance(grad_step, Tensor) else 0)
        t = [times_like(z, self.times[i]) for i in range(last + 1)]
        with torch.set_grad_enabled(grad_step is None and torch.is_grad_enabled()):
            inputs, outputs = [self.begin(z)], []
            for i in range(last):
                outputs.append(denoiser(inputs[i], t[i], cond))
                inputs.append(self._next(i, inputs[i], outputs[i], z, noise))
        if isinstance(grad_step, Tensor):
            inputs[-1], t[-1] = Trajectory(z, inputs, outputs, t).at(grad_step)
        if grad_step is not None:
            inputs[-1] = inputs[-1].detach()
        outputs.append(denoiser(inputs[-1], t[-1], cond))
        return Trajectory(outputs[-1], inputs, outputs, t)

    def _last(self, grad_step: int | Tensor | None, z: Tensor) -> int:
        if grad_step is None:
            return self.K - 1
        if isinstance(grad_step, Tensor):
            if grad_step.shape != z.shape[:1] or grad_step.dtype != torch.long:
                raise LimbeckError(
                    f"a grad_step per sample is a long tensor of shape ({z.shape[0]},), "
                    f"not {grad_step.dtype} of shape {tuple(grad_step.shape)}"
                )
            low, high = int(grad_step.min()), int(grad_step.max())
        else:
            low = high = grad_step
        if low < 0 or high >= self.K:
            raise LimbeckError(f"grad_step must lie in 0..{self.K - 1}, not {low if low < 0 else high}")
        return high

    def begin(self, z: Tensor) -> Tensor:
        """The first input, from normal numbers z."""
        size = self.noise_scale
        return size * z if self.start == "unit" else self._s(0) * size * z

    def _next(self, i: int, x_t: Tensor, x: Tensor, z: Tensor, noise: Noise | None) -> Tensor:
        if self.renoise == "ode":
            n = ((x_t - self._a(i) * x) / self._s(i)).detach()
        else:
            n = self.noise_scale * (z if self.renoise == "fixed" else drawn(noise, i + 1, z, "renoise='fresh'"))
        return self._a(i + 1) * x + self._s(i + 1) * n

    def _a(self, i: int) -> float:
        return self.process.a(torch.as_tensor(self.times[i], dtype=torch.float64)).item()

    def _s(self, i: int) -> float:
        return self.process.s(torch.as_tensor(self.times[i], dtype=torch.float64)).item()
