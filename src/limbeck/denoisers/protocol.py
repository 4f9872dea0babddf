"""What a denoiser is, and the wrappers that present one under another process, data scale or condition."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.noise import Process, spread

Cond = Mapping[str, Tensor]


@runtime_checkable
class Denoiser(Protocol):
    """x0_hat = D(x_t, t, cond): the mean of x_0 given x_t. Every teacher, critic and consistency function is one.

    ``x_t`` (B, ...); ``t`` (B,) in the process's own time, float64; ``cond`` maps names to batch-first tensors; None is the
    null condition, allowed only if ``null`` is not None. ``null`` maps each name to what stands for "no condition" in one
    sample ({} for an unconditional denoiser). Differentiable in x_t.
    """

    @property
    def process(self) -> Process: ...

    @property
    def null(self) -> Mapping[str, Tensor] | None: ...

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor: ...


def times_like(x: Tensor, t: float | Tensor) -> Tensor:
    """A time as a float64 tensor of shape (B,) beside x (B, ...)."""
    return torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(x.shape[0])


class InProcess:
    """A denoiser seen in another process: evaluated at the same signal-to-noise ratio, the input rescaled."""

    def __init__(self, denoiser: Denoiser, process: Process):
        self.denoiser, self.process, self.null = denoiser, process, denoiser.null

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        inner = self.denoiser.process
        u = self.process.match(t, inner)
        size, size_inner = self.process.a(t) ** 2 + self.process.s(t) ** 2, inner.a(u) ** 2 + inner.s(u) ** 2
        return self.denoiser(spread(torch.sqrt(size_inner / size), x_t) * x_t, u, cond)


def in_process(denoiser: Denoiser, process: Process) -> Denoiser:
    """The denoiser itself if it already lives in ``process``, else :class:`InProcess` around it."""
    return denoiser if denoiser.process == process else InProcess(denoiser, process)


class Rescaled(nn.Module):
    """A denoiser of data y = scale x + shift seen as a denoiser of x (a network of [0, 1] images: scale 0.5, shift 0.5).

    A module, so that students can start as its copies.
    """

    def __init__(self, denoiser: Denoiser, scale: float, shift: float = 0.0):
        super().__init__()
        if scale <= 0:
            raise LimbeckError(f"the data scale must be positive, not {scale:g}")
        self.denoiser, self.scale, self.shift = denoiser, scale, shift
        self.process = denoiser.process

    @property
    def null(self) -> Mapping[str, Tensor] | None:
        """What stands for "no condition", as the denoiser inside declares it."""
        return self.denoiser.null

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        a, s = self.process.a(t), self.process.s(t)
        u = self.process.time_of(self.scale * s / a)  # y keeps x's noise only at scale times the noise-to-signal ratio
        size = torch.sqrt((self.process.a(u) ** 2 + self.process.s(u) ** 2) / (a**2 + (self.scale * s) ** 2))
        y_t = spread(size * self.scale, x_t) * x_t + spread(size * a * self.shift, x_t)
        return (self.denoiser(y_t, u, cond) - self.shift) / self.scale


class Reconditioned:
    """A denoiser that sees ``change(cond)`` instead of cond: other conditions for a teacher than for its critic."""

    def __init__(self, denoiser: Denoiser, change: Callable[[Cond | None], Cond | None]):
        self.denoiser, self.change = denoiser, change
        self.process, self.null = denoiser.process, denoiser.null

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.denoiser(x_t, t, self.change(cond))


class Negated(nn.Module):
    """A denoiser for which "no condition" is another condition: guidance leads away from that (negative prompts).

    ``null``: the condition of one sample, by name. A module, so that it can be frozen like what is inside.
    """

    def __init__(self, denoiser: Denoiser, null: Cond):
        super().__init__()
        self.denoiser, self.process, self.null = denoiser, denoiser.process, null

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        return self.denoiser(x_t, t, cond)


def check_denoiser(denoiser: object, x: Tensor, cond: Cond | None = None, gradients: bool = False) -> None:
    """Raise a LimbeckError unless the object maps (x, t, cond) to a finite tensor of x's shape (with input gradients).

    x: one small batch in the data's range, (B, ...). The time tried is that of sigma = 0.5.
    """
    process = getattr(denoiser, "process", None)
    if not callable(denoiser) or not isinstance(process, Process):
        raise LimbeckError(
            f"the teacher is a {type(denoiser).__name__}, not a denoiser: expected a callable (x_t, t, cond) -> x0 with a "
            "'process'; wrap your network in limbeck.denoisers.Preconditioned(network, process, prediction)"
        )
    t = process.time_of(torch.full((x.shape[0],), 0.5, dtype=torch.float64, device=x.device))
    x_t = process.add_noise(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x), t)
    x_t = x_t.detach().requires_grad_(gradients)
    with torch.set_grad_enabled(gradients):
        out = denoiser(x_t, t, cond)
    found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if found != tuple(x.shape):
        raise LimbeckError(
            f"the teacher answered {found} for an input of shape {tuple(x.shape)}; a denoiser "
            "returns x0 in the shape of its input"
        )
    if not bool(torch.isfinite(out).all()):
        raise LimbeckError("the teacher answered non-finite values at sigma = 0.5; check its weights and its prediction type")
    if gradients and (
        not out.requires_grad or torch.autograd.grad(out, x_t, torch.ones_like(out), allow_unused=True)[0] is None
    ):
        raise LimbeckError(
            "no gradient reaches the teacher's input (it runs under no_grad or inference_mode, detaches its input, or is "
            "quantised); this method back-propagates through the teacher: remove the decorator or choose a method without "
            "that need, e.g. dmd"
        )
