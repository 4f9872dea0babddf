"""Classifier-free guidance, one convention: D_w = D(null) + w (D(c) - D(null)); w = 1 is the condition alone."""

import torch
from torch import Tensor

from limbeck.denoisers.protocol import Cond, Denoiser
from limbeck.errors import LimbeckError
from limbeck.noise import spread


def null_cond(denoiser: Denoiser, batch: int) -> Cond | None:
    """The null condition for a batch, explicit where the denoiser says what stands for it."""
    if denoiser.null is None:
        raise LimbeckError(
            f"{type(denoiser).__name__} declares no null condition, so it cannot be guided; train it with dropped conditions "
            "and give it a 'null' mapping, or use guidance 1"
        )
    return {name: value.expand(batch, *value.shape) for name, value in denoiser.null.items()} or None


def guided(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond | None, w: float | Tensor = 1.0, negative: Cond | None = None
) -> Tensor:
    """D_w(x_t, t, cond) with a fixed w or one w per sample (B,); any real w. w = 1 and w = 0 cost one call each.

    ``negative`` takes the null condition's place (negative prompts). Raises LimbeckError without a null condition.
    """
    if isinstance(w, (int, float)) and w == 1:
        return denoiser(x_t, t, cond)
    other = negative if negative is not None else null_cond(denoiser, x_t.shape[0])
    base = denoiser(x_t, t, other)
    if isinstance(w, (int, float)) and w == 0:
        return base
    scale = torch.as_tensor(w, dtype=torch.float64, device=x_t.device)
    return base + spread(scale, x_t) * (denoiser(x_t, t, cond) - base)


class ClassifierFree:
    """A denoiser guided at a fixed scale w, or only where sigma = s/a lies in ``interval`` (arXiv 2404.07724).

    ``negative`` takes the null condition's place: one sample's, without its batch dimension.
    """

    def __init__(self, denoiser: Denoiser, w: float, interval: tuple[float, float] | None = None, negative: Cond | None = None):
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise LimbeckError(f"the guidance interval needs 0 <= low < high in sigma, not {interval}")
        self.denoiser, self.w, self.interval = denoiser, float(w), interval
        self.process, self.null, self.negative = denoiser.process, denoiser.null, negative

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        if self.interval is None:
            return guided(self.denoiser, x_t, t, cond, self.w, self._negative(len(x_t)))
        sigma = self.process.sigma(t)
        inside = (sigma >= self.interval[0]) & (sigma <= self.interval[1])
        if not bool(inside.any()):
            return self.denoiser(x_t, t, cond)
        return guided(self.denoiser, x_t, t, cond, 1 + (self.w - 1) * inside.double(), self._negative(len(x_t)))

    def _negative(self, batch: int) -> Cond | None:
        return self.negative and {name: value.expand(batch, *value.shape) for name, value in self.negative.items()}
