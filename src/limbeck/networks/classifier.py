"""A small convolutional classifier of images of any size."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from limbeck.errors import LimbeckError

LEAST = 4  # pixels of a side at which halving ends


class Classifier(nn.Module):
    """Images (B, C, H, W) -> logits (B, classes): a convolution, then one of stride 2 until a side has at most 4 pixels.

    The first has ``width`` channels, every further one twice as many, but at most 8 width. ``config`` builds it again.
    """

    def __init__(self, shape: Sequence[int], classes: int, width: int = 16):
        super().__init__()
        if len(shape) != 3 or min(*shape, width) < 1 or classes < 2:
            raise LimbeckError(
                f"shape {tuple(shape)}, {classes} classes and width {width}: give a shape (C, H, W), two classes or more, width >= 1"
            )
        self.config = {"shape": list(shape), "classes": classes, "width": width}
        channels, height, wide = [shape[0], width], shape[1], shape[2]
        while min(height, wide) > LEAST:
            height, wide = -(-height // 2), -(-wide // 2)
            channels.append(min(2 * channels[-1], 8 * width))
        body: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(channels)):
            body += [nn.Conv2d(a, b, 3, stride=2 if i else 1, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*body, nn.Flatten())
        self.head = nn.Linear(channels[-1] * height * wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
