"""Gaussians in the plane composited front to back, at a cost linear in the (Gaussian, pixel) pairs that can be seen.

alpha = min(0.99, o exp(-q / 2)) where it is at least 1/255 and 0 elsewhere; T = product of (1 - alpha) over the Gaussians in front;
a pixel is sum_i T_i alpha_i f_i. Each row of an ellipse alpha >= 1/255 is an interval of pixels, because along a row

    ln alpha = p - (a (x - c))^2,  p = ln o - dy^2 / (2 S_yy),  c = m_x + dy S_xy / S_yy,  a^2 = 1 / (2 (S_xx - S_xy^2 / S_yy)).

The pairs of these intervals are listed in order of depth, sorted by pixel (stable), and T = exp(segmented sum of log1p(-alpha)).
All of this is float64: in float32 that sum over all pixels would cost 1e-3, and pairs near 1/255 would come and go. Painting does
not stop at T < 1e-4 as other rasterisers do, so images differ from theirs by at most that share of a colour.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.errors import LimbeckError

LEAST = 1 / 255
MOST = 0.99
BLOCK = 2**17  # pairs worked on at once, about 250 bytes each: what fits a cache is nearly twice as fast
MAX_PAIRS = 2**21  # remembered for the backward pass, 44 bytes each


class Plane(NamedTuple):
    """B x N Gaussians in pixels, float64: means (B, N, 2), S_xx, S_xy, S_yy as (B, N, 3), ln o (B, N), depth (B, N), features
    (B, N, F), and which of them (B, N) may be seen at all.
    """

    means: Tensor
    covariances: Tensor
    log_opacity: Tensor
    depth: Tensor
    features: Tensor
    visible: Tensor


class _Rows(NamedTuple):
    """R intervals of pixels, in order of depth: p, c, a (3, R); the Gaussian (R,) among the columns of the features; the image
    row (R,) counted over all images; the first pixel in it (R,) and how many there are (R,).
    """

    curve: Tensor
    gaussian: Tensor
    line: Tensor
    first: Tensor
    length: Tensor


def composite(plane: Plane, width: int, height: int, max_pairs: int = MAX_PAIRS) -> tuple[Tensor, Tensor]:
    """(sums of T alpha f (B, F, H, W), which Gaussians reach a pixel (B, N)); the last of the F + 1 sums is that of T alpha.

    Gaussians of equal depth keep their order. Images are painted in bands of rows of at most BLOCK pairs (one row at least). Where
    all bands together have more than ``max_pairs``, which bounds the bands too, they are listed again in the backward pass.
    """
    B, N, F = plane.features.shape
    rows = _rows(plane, width, height)
    features = plane.features.reshape(B * N, F).T.contiguous()
    seen = torch.zeros(B * N, dtype=torch.bool, device=features.device)
    seen[rows.gaussian] = True
    remember = int(rows.length.sum()) <= max_pairs
    parts = []
    for part, start, end in _bands(rows, B * height, min(BLOCK, max_pairs)):
        first = (part.line - start) * width + part.first
        pixels = (end - start) * width
        parts.append(_Paint.apply(part.curve, features, part.gaussian, first, part.length, width, pixels, remember))
    image = torch.cat(parts, 1)
    return image.reshape(F + 1, B, height, width).transpose(0, 1), seen.reshape(B, N)


def over(rgb: Tensor, opacity: Tensor, background: Tensor | float) -> Tensor:
    """rgb (B, 3, H, W), already weighted, over what the opacity (B, 1, H, W) lets through.

    ``background``: a number, (3,), (B, 3) or (B, 3, H, W); raises LimbeckError for another shape.
    """
    B, _, H, W = rgb.shape
    behind = torch.as_tensor(background, dtype=rgb.dtype, device=rgb.device)
    if behind.shape not in ((), (3,), (B, 3), (B, 3, H, W)):
        raise LimbeckError(
            f"a background of shape {tuple(behind.shape)}: give a number, (3,), ({B}, 3) or ({B}, 3, {H}, {W}) for these cameras"
        )
    behind = behind if behind.ndim in (0, 4) else behind[..., None, None]
    return rgb + (1 - opacity) * behind


def _rows(plane: Plane, width: int, height: int) -> _Rows:
    N = plane.visible.shape[1]
    which = plane.visible.reshape(-1).nonzero()[:, 0]
    which = which[plane.depth.detach().reshape(-1)[which].argsort(stable=True)]
    (x, y), (xx, xy, yy) = plane.means.reshape(-1, 2)[which].T, plane.covariances.reshape(-1, 3)[which].T
    peak = plane.log_opacity.reshape(-1)[which]
    table = torch.stack([x, y, peak, xy / yy, 1 / (2 * yy), 1 / (2 * (xx - xy * xy / yy)).sqrt()])
    with torch.no_grad():
        reach = (2 * (peak - math.log(LEAST)) * yy).clamp(min=0).sqrt()
        top, lines = interval(y, reach, height)
        row = torch.repeat_interleave(lines)
        line = top[row] + within(lines, row)
    x, y, peak, slope, fall, a = table.index_select(1, row)
    dy = line + 0.5 - y
    p, c = peak - fall * dy * dy, x + slope * dy
    with torch.no_grad():
        first, count = interval(c, (p - math.log(LEAST)).clamp(min=0).sqrt() / a, width)
        used = (count > 0).nonzero()[:, 0]
        gaussian = which[row[used]]
        image_row = torch.div(gaussian, N, rounding_mode="floor") * height + line[used]
    return _Rows(torch.stack([p, c, a])[:, used], gaussian, image_row, first[used], count[used])


def interval(centre: Tensor, reach: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(first, count) of the pixels of 0..size - 1 whose centres lie within ``reach``."""
    first = (centre - reach - 0.5).ceil().clamp(0, size)
    last = (centre + reach - 0.5).floor().clamp(-1, size - 1)
    return first.long(), (last - first + 1).clamp(min=0).long()


def within(count: Tensor, owner: Tensor) -> Tensor:
    """0, 1, .. count_i - 1 for each i in a row, (sum of count,); ``owner`` says which i each belongs to."""
    return torch.arange(len(owner), device=count.device) - (count.cumsum(0) - count)[owner]


def _bands(rows: _Rows, lines: int, most: int) -> list[tuple[_Rows, int, int]]:
    """The rows by bands of the image's lines [start, end) that together are all lines, each with at most ``most`` pairs."""
    pairs = rows.length.new_zeros(lines).index_add_(0, rows.line, rows.length).tolist()
    starts, held = [0], 0
    for line, more in enumerate(pairs):
        if held and held + more > most:
            starts.append(line)
            held = 0
        held += more
    ends = [*starts[1:], lines]
    if len(starts) == 1:
        return [(rows, 0, lines)]
    band = torch.bucketize(rows.line, rows.line.new_tensor(ends), right=True)
    order = band.argsort(stable=True)
    sizes = torch.bincount(band, minlength=len(starts)).tolist()
    parts = [x.split(sizes, -1) for x in (rows.curve[:, order], *(x[order] for x in rows[1:]))]
    return [(_Rows(*part), start, end) for *part, start, end in zip(*parts, starts, ends, strict=True)]


class _Pairs(NamedTuple):
    """P pairs sorted by pixel, then by depth: interval of pixels, Gaussian, pixel; x - c, alpha and T of each (P,); where each
    pixel's pairs end (pixels,).
    """

    row: Tensor
    gaussian: Tensor
    pixel: Tensor
    dx: Tensor
    alpha: Tensor
    T: Tensor
    ends: Tensor


def _pairs(curve: Tensor, gaussian: Tensor, first: Tensor, length: Tensor, width: int, pixels: int) -> _Pairs:
    row = torch.repeat_interleave(length)
    pixel, order = (first[row] + within(length, row)).int().sort(stable=True)
    row = row[order]
    p, c, a = (x.index_select(0, row) for x in curve)
    dx = pixel % width + 0.5 - c
    alpha = torch.exp(p - (a * dx).square()).clamp(max=MOST)
    light = torch.log1p(-alpha)
    through = light.cumsum(0) - light  # over all pixels so far: what each begins with is taken off
    per_pixel = torch.bincount(pixel, minlength=pixels)
    ends, used = per_pixel.cumsum(0), per_pixel > 0
    begin = light.new_zeros(pixels)
    begin[used] = through[(ends - per_pixel)[used]]
    T = torch.exp(through - begin.index_select(0, pixel))
    return _Pairs(row, gaussian.index_select(0, row), pixel, dx, alpha, T, ends)


class _Paint(torch.autograd.Function):
    """(F + 1, pixels): sums of T alpha f and of T alpha. The pairs are remembered, or listed again in the backward pass.

    There, with g the gradient of a pixel along f: dalpha_i = T_i g_i - (sum of T_j alpha_j g_j behind i) / (1 - alpha_i).
    """

    @staticmethod
    def forward(
        ctx: Any,
        curve: Tensor,
        features: Tensor,
        gaussian: Tensor,
        first: Tensor,
        length: Tensor,
        width: int,
        pixels: int,
        remember: bool,
    ) -> Tensor:
        pairs = _pairs(curve, gaussian, first, length, width, pixels)
        weight = pairs.T * pairs.alpha
        out = weight.new_zeros(len(features) + 1, pixels)
        for total, f in zip(out, features, strict=False):
            total.index_add_(0, pairs.pixel, weight * f.index_select(0, pairs.gaussian))
        out[-1].index_add_(0, pairs.pixel, weight)
        ctx.again = None if remember else (width, pixels)
        ctx.save_for_backward(curve, features, *(pairs if remember else (gaussian, first, length)))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        curve, features, *rest = ctx.saved_tensors
        row, gaussian, pixel, dx, alpha, T, ends = rest if ctx.again is None else _pairs(curve, *rest, *ctx.again)
        weight = T * alpha
        along = gradient[-1].index_select(0, pixel)
        d_features = torch.zeros_like(features)
        for total, f, g in zip(d_features, features, gradient, strict=False):
            g = g.index_select(0, pixel)
            along += g * f.index_select(0, gaussian)
            total.index_add_(0, gaussian, weight * g)
        so_far = (weight * along).cumsum(0)
        whole = torch.cat([so_far.new_zeros(1), so_far])[ends]  # up to the end of each pixel
        d_alpha = T * along - (whole.index_select(0, pixel) - so_far) / (1 - alpha)
        d_log = torch.where(alpha < MOST, d_alpha * alpha, 0.0)
        slope = 2 * d_log * curve[2].index_select(0, row) * dx
        d_curve = torch.zeros_like(curve)
        for total, d in zip(d_curve, (d_log, slope * curve[2].index_select(0, row), -slope * dx), strict=True):
            total.index_add_(0, row, d)
        return d_curve, d_features, None, None, None, None, None, None
