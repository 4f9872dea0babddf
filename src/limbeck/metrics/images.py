"""Distortion between paired images."""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.metrics.samples import as_pair


def psnr(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of paired images (B, ...): 10 log10(range^2 / MSE).

    The range of images in [-1, 1] is 2. Equal images give infinity.
    Raises `LimbeckError` for mismatched, empty or non-finite images, or a range not above 0.
    """
    if x.shape != y.shape or not data_range > 0:
        raise LimbeckError(
            f"x has shape {tuple(x.shape)}, y {tuple(y.shape)} and data_range is {data_range}: "
            "pass pairs of equal shape and a range above 0"
        )
    x, y = as_pair(x, y)
    return 10 * torch.log10(data_range**2 / (x - y).square().mean(1))
