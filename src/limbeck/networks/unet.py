"""A U-Net for images, after Karras et al. (2022, DDPM++) and Dhariwal and Nichol (2021, ADM), kept small."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks.attention import Attention
from limbeck.networks.conditioning import Conditioning, text_tokens
from limbeck.networks.contract import Condition, check_input, configuration


def group_norm(channels: int, least: int = 4) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide `channels`, up to 32, of at least `least` channels each."""
    groups = next(g for g in range(min(32, max(1, channels // least)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ImageAttention(nn.Module):
    """Residual attention of the pixels of a map (B, C, H, W) to each other, or to a text (B, M, text); at first it adds nothing
    of them."""

    def __init__(self, channels: int, head_channels: int, text: int | None = None) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = Attention(channels, max(1, channels // head_channels), text)
        nn.init.zeros_(self.attention.output.weight)
        if text is not None:
            nn.init.zeros_(self.attention.output.bias)

    def forward(self, h: Tensor, text: Tensor | None = None) -> Tensor:
        tokens = self.attention(self.norm(h).flatten(2).transpose(1, 2), text)
        return h + tokens.transpose(1, 2).reshape(h.shape)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice; the embedding scales and shifts the second norm (ADM).

    With ``head_channels`` the pixels then attend to each other and, with ``text``, to the text's tokens.
    """

    def __init__(
        self, inputs: int, outputs: int, embedding: int, dropout: float, head_channels: int | None, text: int | None = None
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm_in = group_norm(inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm_out = group_norm(outputs)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        self.skip: nn.Module = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention: nn.Module = ImageAttention(outputs, head_channels) if head_channels else nn.Identity()
        self.cross = ImageAttention(outputs, head_channels, text) if head_channels and text else None

    def forward(self, x: Tensor, e: Tensor, text: Tensor | None = None) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(e)[:, :, None, None].chunk(2, 1)
        h = F.silu(torch.addcmul(shift, self.norm_out(h), 1 + scale))
        h = self.conv_out(F.dropout(h, self.dropout, self.training))
        h = self.attention(self.skip(x) + h)
        return h if self.cross is None else self.cross(h, text)


class UNet(nn.Module):
    """U-Net on images: x (B, C, H, W), c_noise (B,) -> (B, C, H, W).

    Level i has `channels * multipliers[i]` channels and half the resolution of level i - 1 (`down` averages,
    `up` repeats: modules that may be replaced); it has `blocks` residual blocks on the way down and as many
    on the way up, each joined to its partner by a skip. `attention` lists the heights, among those of
    `shape`, at which the pixels attend to each other. With `patch` > 1 the network works on patches moved
    into channels: cheaper by patch^2. Images of another size than `shape` are welcome if
    patch * 2^(levels - 1) divides it. `classes` > 0 takes cond {"label": LongTensor (B,)} (value `classes`,
    or no cond: the null class). `text` = (M, C') takes cond {"text": (B, any length, C')}, to which the pixels
    attend wherever they attend to each other; without it, they attend to M zero tokens.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        classes: int = 0,
        text: Sequence[int] | None = None,
        dropout: float = 0.0,
        patch: int = 1,
        head_channels: int = 32,
        embedding: int = 128,
        noise: str = "fourier",
        fourier_scale: float = 2.0,
    ) -> None:
        config = configuration("unet", locals())
        super().__init__()
        self.config = config
        if len(shape) != 3 or not multipliers:
            raise LimbeckError(f"a U-Net needs a shape (C, H, W) and multipliers, not {shape} and {multipliers}")
        self.shape, self.patch = tuple(shape), patch
        levels = len(multipliers)
        self.divisor = patch * 2 ** (levels - 1)
        self._check_size(*self.shape[1:])
        heights = [self.shape[1] // (patch * 2**i) for i in range(levels)]
        if absent := set(attention) - set(heights):
            raise LimbeckError(f"attention at the heights {sorted(absent)}, but the levels have the heights {heights}")
        self.text = None if text is None else tuple(text)
        if self.text is not None and not attention:
            raise LimbeckError(f"a text needs pixels that attend to it: name some of the heights {heights} in attention")
        context = None if self.text is None else self.text[1]

        def block(inputs: int, level: int) -> ResidualBlock:
            attends = head_channels if heights[level] in attention else None
            return ResidualBlock(inputs, widths[level], embedding, dropout, attends, context)

        widths = [channels * m for m in multipliers]
        self.conditioning = Conditioning(embedding, classes, noise, fourier_scale)
        pixels = self.shape[0] * patch**2
        self.input = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList()
        inputs = widths[0]
        for i, width in enumerate(widths):
            self.encoder.append(nn.ModuleList(block(width if j else inputs, i) for j in range(blocks)))
            inputs = width
        self.middle = nn.ModuleList(block(inputs, levels - 1) for _ in range(2))
        self.decoder = nn.ModuleList()
        for i in reversed(range(levels)):
            joined = [(widths[i] if j else inputs) + widths[i] for j in range(blocks)]
            self.decoder.append(nn.ModuleList(block(n, i) for n in joined))
            inputs = widths[i]
        self.down = nn.ModuleList(nn.AvgPool2d(2) for _ in range(levels - 1))
        self.up = nn.ModuleList(nn.Upsample(scale_factor=2, mode="nearest") for _ in range(levels - 1))
        self.norm = group_norm(inputs)
        self.output = nn.Conv2d(inputs, pixels, 3, padding=1)
        nn.init.zeros_(self.output.weight)

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """The layers that a discriminator reads by default: the bottleneck."""
        return ("middle.1",)

    @property
    def encoder_layers(self) -> tuple[str, ...]:
        """The last block on the way down."""
        return (f"encoder.{len(self.encoder) - 1}.{len(self.encoder[-1]) - 1}",)  # type: ignore[arg-type]

    @property
    def null(self) -> dict[str, Tensor] | None:
        """What stands for "no condition" per sample; None for an unconditional network."""
        w = self.input.weight
        text = {} if self.text is None else {"text": torch.zeros(self.text, dtype=w.dtype, device=w.device)}
        return {**(self.conditioning.null or {}), **text} or None

    def _check_size(self, height: int, width: int) -> None:
        if height % self.divisor or width % self.divisor:
            raise LimbeckError(
                f"images of {height} x {width} do not fit this U-Net: height and width must be multiples of "
                f"{self.divisor} (pad the images, or use fewer multipliers or a smaller patch)"
            )

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition | None = None) -> Tensor:
        check_input(x, c_noise, (self.shape[0], None, None))
        self._check_size(*x.shape[2:])
        e = self.conditioning(c_noise, cond, allowed=() if self.text is None else ("text",))
        text = None if self.text is None else text_tokens(cond, x, self.text)
        h = self.input(F.pixel_unshuffle(x, self.patch))
        skips = []
        for i, level in enumerate(self.encoder):
            h = self.down[i - 1](h) if i else h
            for block in level:  # type: ignore[attr-defined]
                h = block(h, e, text)
                skips.append(h)
        for block in self.middle:
            h = block(h, e, text)
        for i, level in enumerate(self.decoder):
            h = self.up[i - 1](h) if i else h
            for block in level:  # type: ignore[attr-defined]
                h = block(torch.cat([h, skips.pop()], 1), e, text)
        return F.pixel_shuffle(self.output(F.silu(self.norm(h))), self.patch)
