"""A small diffusion transformer (DiT) for images and sequences, after Peebles and Xie (2023)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks.attention import Attention
from limbeck.networks.conditioning import Conditioning, sinusoids, text_tokens
from limbeck.networks.contract import Condition, check_input, configuration


def position_features(grid: Sequence[int], channels: int) -> Tensor:
    """Sinusoids of the position of every cell, (prod(grid), channels); the axes share the channels."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    return torch.cat([sinusoids(a.flatten(), channels // len(grid), "positional") for a in axes], -1)


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm(h) * (1 + scale) + shift"""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)


class DiTBlock(nn.Module):
    """Self-attention, cross-attention to the text (if any) and MLP; AdaLN-zero: at first the identity."""

    def __init__(self, width: int, heads: int, expansion: int, embedding: int, text: int | None, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.modulation = nn.Linear(embedding, 6 * width)
        self.attention = Attention(width, heads)
        self.inner = nn.Linear(width, expansion * width)
        self.outer = nn.Linear(expansion * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.cross: Attention | None = None
        if text is not None:
            self.cross_norm = nn.LayerNorm(width)
            self.cross = Attention(width, heads, text)
            nn.init.zeros_(self.cross.output.weight)
            nn.init.zeros_(self.cross.output.bias)

    def forward(self, h: Tensor, e: Tensor, text: Tensor | None) -> Tensor:
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = self.modulation(e).chunk(6, -1)
        h = h + gate * self._drop(self.attention(modulate(h, scale, shift)))
        if self.cross is not None:
            h = h + self._drop(self.cross(self.cross_norm(h), text))
        z = F.gelu(self.inner(modulate(h, scale_mlp, shift_mlp)), approximate="tanh")
        return h + gate_mlp * self._drop(self.outer(z))

    def _drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training)


class DiT(nn.Module):
    """Transformer over patches: x (B, C, H, W) or (B, L, C), c_noise (B,) or per token (B, tokens) -> like x.

    `shape` is (C, H, W), cut into patches of patch x patch pixels, or (L, C), cut into runs of `patch`
    elements. `classes` > 0 takes cond {"label": LongTensor (B,)} (value `classes`, or no cond: the null
    class). `text` = (M, C') takes cond {"text": (B, any length, C')}, to which every block attends; without
    it, they attend to M zero tokens.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch: int = 2,
        width: int = 128,
        blocks: int = 4,
        heads: int = 4,
        classes: int = 0,
        text: Sequence[int] | None = None,
        dropout: float = 0.0,
        expansion: int = 4,
        embedding: int = 128,
        noise: str = "fourier",
        fourier_scale: float = 2.0,
    ) -> None:
        config = configuration("dit", locals())
        super().__init__()
        self.config = config
        self.shape, self.patch = tuple(shape), patch
        self.text = None if text is None else tuple(text)
        if len(self.shape) not in (2, 3):
            raise LimbeckError(f"a DiT needs a shape (C, H, W) or (L, C), not {self.shape}")
        extent = self.shape[1:] if len(self.shape) == 3 else self.shape[:1]
        if any(n % patch for n in extent):
            raise LimbeckError(f"patches of {patch} do not tile {' x '.join(map(str, extent))}: choose a common divisor")
        if width % (2 * len(extent)):
            raise LimbeckError(f"width {width} must be a multiple of {2 * len(extent)} for the sine-cosine positions")
        self.grid = tuple(n // patch for n in extent)
        channels = (self.shape[0] if len(self.shape) == 3 else self.shape[1]) * patch ** len(extent)
        self.conditioning = Conditioning(embedding, classes, noise, fourier_scale)
        self.input = nn.Linear(channels, width)
        self.position: Tensor
        position = position_features(self.grid, width).to(torch.get_default_dtype())
        self.register_buffer("position", position, persistent=False)
        context = None if self.text is None else self.text[1]
        self.blocks = nn.ModuleList(DiTBlock(width, heads, expansion, embedding, context, dropout) for _ in range(blocks))
        self.modulation = nn.Linear(embedding, 2 * width)
        self.output = nn.Linear(width, channels)
        for layer in (self.modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """The layers that a discriminator reads by default."""
        return (f"blocks.{len(self.blocks) // 2}",)

    @property
    def encoder_layers(self) -> tuple[str, ...]:
        """The last block of the first half."""
        return (f"blocks.{(len(self.blocks) - 1) // 2}",)

    @property
    def null(self) -> dict[str, Tensor] | None:
        """What stands for "no condition" per sample; None for an unconditional network."""
        w = self.input.weight
        text = {} if self.text is None else {"text": torch.zeros(self.text, dtype=w.dtype, device=w.device)}
        return {**(self.conditioning.null or {}), **text} or None

    @property
    def tokens(self) -> int:
        """The number of patches, and of per-token noise inputs."""
        return math.prod(self.grid)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        check_input(x, c_noise, self.shape, self.tokens)
        e = self.conditioning(c_noise, cond, allowed=() if self.text is None else ("text",))
        e = e if c_noise.ndim == 2 else e[:, None]
        text = None if self.text is None else text_tokens(cond, x, self.text)
        h = self.input(self._cut(x)) + self.position
        for block in self.blocks:
            h = block(h, e, text)
        return self._join(self.output(modulate(h, *self.modulation(e).chunk(2, -1))))

    def _cut(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return x.unflatten(1, (-1, self.patch)).flatten(2)
        return F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)

    def _join(self, h: Tensor) -> Tensor:
        if len(self.shape) == 2:
            return h.unflatten(2, (self.patch, -1)).flatten(1, 2)
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, self.grid), self.patch)
