"""Discriminator heads: one logit per tapped feature."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.networks.conditioning import LabelEmbedding
from limbeck.networks.contract import Condition
from limbeck.networks.taps import candidate_layers, unknown_layer
from limbeck.networks.unet import group_norm


def stage(inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int], padding: int) -> nn.Sequential:
    # 16 channels per group: normalised over two or three numbers, a map of one pixel would tell nothing
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    return nn.Sequential(convolution, group_norm(outputs, least=16), nn.SiLU())


def map_trunk(shape: Sequence[int], width: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, width): 4 x 4 convolutions of stride 2 until 4 x 4 is left, then one over the rest.

    An axis of at most 4 keeps its length, so that small and long maps work.
    """
    channels, h, w = shape
    stages = []
    while max(h, w) > 4:
        kernel, stride = (4 if h > 4 else 3, 4 if w > 4 else 3), (2 if h > 4 else 1, 2 if w > 4 else 1)
        stages.append(stage(channels, width, kernel, stride, 1))
        channels, h, w = width, h // stride[0], w // stride[1]
    return nn.Sequential(*stages, stage(channels, width, (h, w), (1, 1), 0), nn.Flatten())


class VectorTrunk(nn.Module):
    """(B, C) or, averaged over the tokens, (B, L, C) -> (B, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width), nn.SiLU())
        self.second = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h.mean(1) if h.ndim == 3 else h)


class Heads(nn.Module):
    """A small discriminator head per feature: {name: (B, *shape)} -> logits (B, heads), ordered as `shapes`.

    `shapes` maps each feature to its shape without the batch (`feature_shapes` reads them from an example):
    maps (C, H, W) get the convolutional head of DMD2 (Yin et al. 2024), vectors (C,) and tokens (L, C) an MLP
    (any L). `width` is the hidden width of every head. `average` returns the mean logit (B,). `classes` > 0
    adds the projection <embedding(label), features> of Miyato and Koyama (2018), Eq. 3, at first zero, for
    cond as in `LabelEmbedding`. Raises LimbeckError for a feature that is missing or of another shape.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], width: int = 128, classes: int = 0, average: bool = False) -> None:
        super().__init__()
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        if not shapes or any(len(s) not in (1, 2, 3) or min(s) < 1 for s in self.shapes.values()):
            raise LimbeckError(f"give each feature a shape (C,), (L, C) or (C, H, W) without the batch, not {self.shapes}")
        self.width, self.average = width, average
        self.trunks = nn.ModuleList(
            map_trunk(s, width) if len(s) == 3 else VectorTrunk(s[-1], width) for s in self.shapes.values()
        )
        self.logits = nn.ModuleList(nn.Linear(width, 1) for _ in shapes)
        self.label = LabelEmbedding(classes, width * len(shapes)) if classes else None
        if self.label:
            nn.init.zeros_(self.label.table.weight)

    def forward(self, features: Mapping[str, Tensor], cond: Condition | None = None) -> Tensor:
        hidden = [trunk(self._checked(features, name)) for name, trunk in zip(self.shapes, self.trunks, strict=True)]
        logits = torch.cat([logit(h) for h, logit in zip(hidden, self.logits, strict=True)], 1)
        if self.label is not None:
            h = torch.stack(hidden, 1)
            logits = logits + (h * self.label(cond, len(h)).view_as(h)).sum(2)
        return logits.mean(1) if self.average else logits

    def _checked(self, features: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in features:
            raise unknown_layer("feature", name, features)
        feature, shape = features[name], self.shapes[name]
        found = tuple(feature.shape[1:])
        fits = len(found) == 2 and found[1] == shape[1] if len(shape) == 2 else found == shape
        if not fits:
            raise LimbeckError(f"feature {name!r}: found {found} per sample, expected {shape}: build the heads for it")
        return feature


class ChannelMean(nn.Module):
    """A discriminator head without parameters: the mean over the channels of each feature is its map of logits (SiDA).

    {name: (B, *shape)} -> (B, places), for maps (C, H, W), tokens (L, C) and vectors (C,), ordered as `shapes`. What it reads
    must be trained to be read.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}

    def forward(self, features: Mapping[str, Tensor], cond: Condition | None = None) -> Tensor:
        means = [features[name].mean(1 if len(shape) == 3 else -1) for name, shape in self.shapes.items()]
        return torch.cat([mean.reshape(len(mean), -1) for mean in means], 1)


def feature_shapes(module: nn.Module, names: Sequence[str], *example: Any, **options: Any) -> dict[str, tuple[int, ...]]:
    """What `Heads` needs to know of these layers of `module`, read from one call on an example.

    Raises LimbeckError for a name that is not a layer with a tensor in its output.
    """
    candidates = candidate_layers(module, *example, **options)
    for name in names:
        if name not in candidates:
            raise unknown_layer("layer", name, candidates)
    return {name: candidates[name][1:] for name in names}
