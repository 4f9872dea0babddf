"""IMDN for a factor of 2, 3 or 4, and IMDN_AS, which keeps the size.

(1) F_0 = conv(LR),  B_k = IMDB_k(B_{k-1}),  B_0 = F_0
(2) SR = PixelShuffle_s(conv(conv(act(conv_1x1([B_1 .. B_K]))) + F_0))

Parameters: 694,404 (x2), 703,059 (x3), 715,176 (x4) and 752,104 (IMDN_AS). Modules have the names of the published checkpoints.
``compute_dtype`` runs a network in bfloat16 or float16 under autocast.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.networks.imdn.blocks import KEPT, REDUCTION, SLOPE, MultiDistillation, Statistic, conv
from limbeck.networks.tiling import cropped_adaptively

SCALES = (2, 3, 4)
LOW, HIGH = -0.5, 1.5  # what bicubic overshoot may reach; beyond it the range is another one


class SuperResolver(nn.Module):
    """What the networks share: the check of their input, precision, and a ``config`` of what they were built with."""

    factor: int
    """Sides of the answer over those of the input."""
    config: dict[str, Any]
    compute_dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1] -> (B, 3, factor H, factor W), in the same range but for errors.

        Raises LimbeckError for integers, other channels and (in evaluation) values far outside of [0, 1].
        """
        if x.ndim != 4 or x.shape[1] != 3:
            grey = x.ndim == 4 and x.shape[1] == 1
            hint = "repeat the grey channel, x.expand(-1, 3, -1, -1), and take the answer's mean" if grey else "give that"
            raise LimbeckError(f"{type(self).__name__} expects RGB (B, 3, H, W), not {tuple(x.shape)}: {hint}")
        if not x.is_floating_point():
            raise LimbeckError(f"{type(self).__name__} expects float RGB in [0, 1], not {x.dtype}: give x.float() / 255")
        if not self.training and not torch.compiler.is_compiling():
            low, high = float(x.amin()), float(x.amax())
            if low < LOW or high > HIGH:
                raise LimbeckError(
                    f"{type(self).__name__} expects float RGB in [0, 1], but x goes from {low:.4g} to {high:.4g}: divide 8-bit levels "
                    "by 255; of [-1, 1] give (x + 1) / 2"
                )
        with nullcontext() if self.compute_dtype is None else torch.autocast(x.device.type, self.compute_dtype):
            return self.restored(x).to(x.dtype)

    def restored(self, x: Tensor) -> Tensor:
        """The network itself."""
        raise NotImplementedError


class IMDN(SuperResolver):
    """See the module. ``nf`` channels, a multiple of 4 and at least 16, ``blocks`` blocks; ``statistic`` of the attention."""

    def __init__(self, scale: int = 2, nf: int = 64, blocks: int = 6, statistic: Statistic = "std+mean"):
        super().__init__()
        if scale not in SCALES:
            raise LimbeckError(f"scale={scale}: IMDN enlarges by 2, 3 or 4; for 8 apply x2 and x4, one after the other")
        if nf < REDUCTION or nf % KEPT or blocks < 1:
            raise LimbeckError(f"nf={nf} must be a multiple of {KEPT}, at least {REDUCTION}, and blocks={blocks} at least 1")
        self.config = {"kind": "imdn", "scale": scale, "nf": nf, "blocks": blocks, "statistic": statistic}
        self.factor = scale
        self.fea_conv: nn.Module = conv(3, nf)
        self.names = [f"IMDB{k}" for k in range(1, blocks + 1)]
        for name in self.names:
            self.add_module(name, MultiDistillation(nf, statistic))
        self.c = nn.Sequential(conv(nf * blocks, nf, 1), nn.LeakyReLU(SLOPE))
        self.LR_conv = conv(nf, nf)
        self.upsampler = nn.Sequential(conv(nf, 3 * scale**2), nn.PixelShuffle(scale))

    def restored(self, x: Tensor) -> Tensor:
        f0 = b = self.fea_conv(x)
        all_blocks = [b := getattr(self, name)(b) for name in self.names]  # (1)
        return self.upsampler(self.LR_conv(self.c(torch.cat(all_blocks, 1))) + f0)  # (2)


class IMDNAS(IMDN):
    """IMDN_AS for any factor: the input has been resized to the target's size already, and the answer has the same size.

    Two convolutions of stride 2 go before the blocks; sides that are no multiples of 4 are cropped adaptively
    (:func:`limbeck.networks.tiling.cropped_adaptively`).
    """

    def __init__(self, nf: int = 64, blocks: int = 6, statistic: Statistic = "std+mean"):
        super().__init__(4, nf, blocks, statistic)
        self.config = {"kind": "imdn_as", "nf": nf, "blocks": blocks, "statistic": statistic}
        self.factor = 1
        self.fea_conv = nn.Sequential(conv(3, nf, stride=2), nn.LeakyReLU(SLOPE), conv(nf, nf, stride=2))

    def restored(self, x: Tensor) -> Tensor:
        return cropped_adaptively(super().restored, x)
