"""Distortion between paired images, and the figures by which super-resolution is judged."""

import warnings

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.metrics.samples import as_pair

LUMA, BLACK = (65.481, 128.553, 24.966), 16.0  # BT.601's Y in 8-bit levels of R, G and B in [0, 1]
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def psnr(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of paired images (B, ...): 10 log10(range^2 / MSE).

    The range of images in [-1, 1] is 2. Equal images give infinity.
    Raises `LimbeckError` for mismatched, empty or non-finite images, or a range not above 0.
    """
    _check_pair(x, y, data_range)
    x, y = as_pair(x, y)
    return 10 * torch.log10(data_range**2 / (x - y).square().mean(1))


def ssim(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity (B,) of paired images (B, C, H, W), the mean over channels and pixels; 1 for equal images.

    Means, variances and covariance under a Gaussian window of 11 x 11 pixels and sigma 1.5, not corrected for the sample; pixels
    whose window leaves the picture do not count (Wang et al. 2004, doi:10.1109/TIP.2003.819861).
    Raises `LimbeckError` for what `psnr` refuses, and pictures smaller than the window.
    """
    _check_pair(x, y, data_range)
    if x.ndim != 4 or min(x.shape[-2:]) < WINDOW:
        raise LimbeckError(f"x has shape {tuple(x.shape)}: SSIM compares pictures (B, C, H, W) of at least {WINDOW} x {WINDOW}")
    shape = x.shape
    x, y = (v.reshape(shape).flatten(0, 1)[:, None] for v in as_pair(x, y))
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.exp(-at.square() / (2 * SIGMA**2))
    window = window / window.sum()

    def local(v: Tensor) -> Tensor:
        return torch.conv2d(torch.conv2d(v, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mx, my = local(x), local(y)
    vx, vy, covariance = local(x * x) - mx * mx, local(y * y) - my * my, local(x * y) - mx * my
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    similarity = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.mean((1, 2, 3)).view(shape[:2]).mean(1)


def luma(rgb: Tensor) -> Tensor:
    """Y of BT.601 (B, 1, H, W), in [16, 235] / 255, of RGB (B, 3, H, W) in [0, 1]."""
    if rgb.ndim != 4 or rgb.shape[1] != 3:
        raise LimbeckError(f"luma is of RGB (B, 3, H, W), not of {tuple(rgb.shape)}; a grey picture is its own")
    weights = torch.tensor(LUMA, dtype=rgb.dtype, device=rgb.device).view(1, 3, 1, 1)
    return ((weights * rgb).sum(1, keepdim=True) + BLACK) / 255


def luma_scores(restored: Tensor, real: Tensor, shave: int) -> tuple[Tensor, Tensor]:
    """(PSNR (B,) in dB, SSIM (B,)) of Y, as papers on super-resolution report them; RGB (B, 3, H, W) in [0, 1].

    Both pictures are rounded to 8 bits, so is their Y, and ``shave`` pixels (the scale) are cut off at each border.
    Raises `LimbeckError` where the sizes differ: nothing is resized or cropped.
    """
    if restored.shape != real.shape:
        raise LimbeckError(
            f"the restored picture is {tuple(restored.shape)} and the real one {tuple(real.shape)}: "
            "cut the real one to a multiple of the scale (modcrop) before it is degraded; IMDN_AS keeps the size of what it is given"
        )
    h, w = real.shape[-2:]
    if not 0 <= 2 * shave <= min(h, w) - WINDOW:
        raise LimbeckError(f"shave={shave} leaves less than {WINDOW} x {WINDOW} pixels of {h} x {w}: cut off less")
    ys = [_eight_bits(luma(_eight_bits(v.double()))) for v in (restored, real)]
    a, b = (y[..., shave : h - shave, shave : w - shave] for y in ys)
    return psnr(a, b, 1.0), ssim(a, b, 1.0)


def modcrop(x: Tensor, scale: int) -> Tensor:
    """Pictures (..., H, W) without the last rows and columns that are no whole multiple of ``scale``; warns where it cuts."""
    h, w = (n - n % scale for n in x.shape[-2:])
    if min(h, w) == 0:
        raise LimbeckError(f"a picture of {tuple(x.shape[-2:])} pixels is smaller than one of scale {scale}")
    if (h, w) != tuple(x.shape[-2:]):
        warnings.warn(
            f"cut a picture of {tuple(x.shape[-2:])} pixels to {(h, w)}, multiples of the scale {scale}", stacklevel=2
        )
    return x[..., :h, :w]


def _eight_bits(x: Tensor) -> Tensor:
    return (255 * x).clamp(0, 255).round() / 255


def _check_pair(x: Tensor, y: Tensor, data_range: float) -> None:
    if x.shape != y.shape or not data_range > 0:
        raise LimbeckError(
            f"x has shape {tuple(x.shape)}, y {tuple(y.shape)} and data_range is {data_range}: "
            "pass pairs of equal shape and a range above 0"
        )
