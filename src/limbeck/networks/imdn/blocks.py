"""The information multi-distillation block (IMDB) and its contrast-aware attention (CCA).

Of nf channels d = nf / 4 are kept ("distilled") after each convolution, and the others are refined:

(1) D_1, R_1 = split(act(c1(F)));  D_2, R_2 = split(act(c2(R_1)));  D_3, R_3 = split(act(c3(R_2)));  D_4 = c4(R_3)
(2) IMDB(F) = c5(CCA([D_1, D_2, D_3, D_4])) + F
(3) CCA(x) = x sigmoid(W_2 relu(W_1 z)),  z = std(x) + mean(x) of each channel over the picture, std with 1 / (H W)

act is a leaky ReLU of slope 0.05. (3) takes sqrt(var + 1e-12): a constant channel then has a gradient.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Statistic = Literal["std+mean", "mean"]
SLOPE, KEPT, REDUCTION, TINY = 0.05, 4, 16, 1e-12


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution padded with zeros that keeps the size (of stride 1)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2)


class ContrastAttention(nn.Module):
    """(3) on (B, channels, H, W). ``statistic``: "mean" leaves the contrast out, which is squeeze-and-excitation."""

    def __init__(self, channels: int, statistic: Statistic = "std+mean"):
        super().__init__()
        self.statistic = statistic
        hidden = channels // REDUCTION
        self.conv_du = nn.Sequential(conv(channels, hidden, 1), nn.ReLU(), conv(hidden, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast sums over a picture need more than 16 bits
        z = wide.mean((2, 3), keepdim=True)
        if self.statistic == "std+mean":
            z = z + torch.sqrt((wide - z).square().mean((2, 3), keepdim=True) + TINY)
        return x * self.conv_du(z.to(x.dtype))  # (3)


class MultiDistillation(nn.Module):
    """(1) and (2) on (B, nf, H, W). ``statistic``: of the attention."""

    def __init__(self, nf: int, statistic: Statistic = "std+mean"):
        super().__init__()
        kept = nf // KEPT
        self.kept, self.rest = kept, nf - kept
        self.c1, self.c2, self.c3 = conv(nf, nf), conv(self.rest, nf), conv(self.rest, nf)
        self.c4, self.c5 = conv(self.rest, kept), conv(nf, nf, 1)
        self.act = nn.LeakyReLU(SLOPE)
        self.cca = ContrastAttention(nf, statistic)

    def forward(self, f: Tensor) -> Tensor:
        distilled, r = [], f
        for layer in (self.c1, self.c2, self.c3):  # (1)
            d, r = self.act(layer(r)).split((self.kept, self.rest), dim=1)
            distilled.append(d)
        o = torch.cat([*distilled, self.c4(r)], 1)
        return self.c5(self.cca(o)) + f  # (2)
