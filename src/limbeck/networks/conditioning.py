"""What every network is conditioned on: the noise level and, optionally, a class label."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError, unknown
from limbeck.networks.contract import Condition

NoiseFeatures = Literal["fourier", "positional"]


def sinusoids(x: Tensor, channels: int, kind: str, scale: float = 2.0) -> Tensor:
    """Cosines and sines of x at `channels / 2` frequencies: shape (*x.shape, channels).

    "fourier": frequencies from 1/16 to `scale` cycles per unit, evenly spaced in their logarithm, for an
    input of order one (ln(sigma)/4, or t in [0, 1]). They are fixed and low, where Karras et al. (2022) draw
    them from N(0, 16^2): the derivative of the network in time stays tame. "positional": angular frequencies
    from 1 down to 1e-4, for timesteps 0..1000 and positions (Vaswani et al. 2017, section 3.5).

    Computed in the dtype of x, at least float32.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))[..., None]
    steps = torch.linspace(0, 1, channels // 2, dtype=x.dtype, device=x.device)
    frequency = 2 * math.pi / 16 * (16 * scale) ** steps if kind == "fourier" else 1e-4**steps
    angle = x * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


class LabelEmbedding(nn.Module):
    """A learned vector per class, for cond {"label": LongTensor (B,)}: shape (B, width).

    Labels are 0..classes; the value `classes` is the null class, which also stands for no condition at all.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)

    @property
    def null(self) -> Tensor:
        return torch.tensor(self.classes, device=self.table.weight.device)

    def forward(self, cond: Condition | None, batch: int | torch.SymInt) -> Tensor:
        if cond is None or "label" not in cond:
            return self.table(self.null.expand(batch))
        label = cond["label"]
        if label.shape != (batch,) or label.is_floating_point():
            raise LimbeckError(
                f'the condition "label" is {label.dtype} of shape {tuple(label.shape)}: '
                f"give integers of shape ({batch},), one per sample"
            )
        try:  # no check beforehand: to read the values would wait for a GPU
            return self.table(label)
        except IndexError:
            raise LimbeckError(
                f'the condition "label" has values from {int(label.min())} to {int(label.max())}: '
                f"allowed are the classes 0..{self.classes - 1} and {self.classes} for none"
            ) from None


class Conditioning(nn.Module):
    """The vector e that modulates a network: SiLU(MLP(sinusoids(c_noise)) + label vector), shape (B, width).

    Per-token noise inputs (B, L) give (B, L, width). `classes` > 0 takes the condition of `LabelEmbedding`.
    """

    def __init__(self, width: int, classes: int = 0, noise: str = "fourier", fourier_scale: float = 2.0) -> None:
        super().__init__()
        if noise not in ("fourier", "positional"):
            raise unknown("kind of noise features", noise, ("fourier", "positional"))
        if fourier_scale <= 0:
            raise LimbeckError(f"fourier_scale is {fourier_scale}: the highest frequency must be positive")
        self.noise, self.fourier_scale, self.channels = noise, fourier_scale, 64
        self.first = nn.Linear(self.channels, width)
        self.second = nn.Linear(width, width)
        self.label = LabelEmbedding(classes, width) if classes else None

    @property
    def null(self) -> dict[str, Tensor] | None:
        return {"label": self.label.null} if self.label else None

    def forward(self, c_noise: Tensor, cond: Condition | None, allowed: Iterable[str] = ()) -> Tensor:
        """`allowed` names the conditions that the network itself takes, besides the label."""
        known = {*allowed, *(["label"] if self.label else [])}
        for name in cond or ():
            if name not in known:
                takes = f"takes only {', '.join(sorted(known))}" if known else "is unconditional"
                raise LimbeckError(f"the network {takes}, but was given the condition {name!r}: leave it out")
        features = sinusoids(c_noise, self.channels, self.noise, self.fourier_scale)
        with torch.autocast(c_noise.device.type, enabled=False):  # half precision spoils the derivative in the noise level
            e = self.second(F.silu(self.first(features.to(self.first.weight.dtype))))
        if self.label is not None:
            label = self.label(cond, c_noise.shape[0])
            e = e + (label if c_noise.ndim == 1 else label[:, None])
        return F.silu(e)


def text_tokens(cond: Condition | None, x: Tensor, text: Sequence[int]) -> Tensor:
    """cond["text"] (B, any length, C') of a network built for ``text`` = (M, C'); M zero tokens where there is none."""
    if cond is None or "text" not in cond:
        return x.new_zeros(x.shape[0], *text)
    given = cond["text"]
    if given.ndim != 3 or given.shape[0] != x.shape[0] or given.shape[2] != text[1]:
        raise LimbeckError(f'the condition "text" has shape {tuple(given.shape)}: expected ({len(x)}, any, {text[1]})')
    return given
