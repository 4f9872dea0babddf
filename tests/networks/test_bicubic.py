"""MATLAB's bicubic against a loop over its definition, closed forms, and what torch and Pillow do otherwise."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks.bicubic import bicubic_weights, resize


def picture(h, w, channels=3, seed=0):
    return torch.rand(channels, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cubic(t):
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0


def by_definition(row, m, scale):
    """One row of pixels, resized pixel by pixel with the positions 1, 2, ... of the definition; the border mirrors."""
    n, k, out = len(row), min(scale, 1.0), []
    for j in range(1, m + 1):
        u = j / scale + 0.5 * (1 - 1 / scale)
        total = weight = 0.0
        for p in range(math.floor(u - 2 / k) - 1, math.ceil(u + 2 / k) + 2):
            w, q = cubic(k * (u - p)), p
            while not 1 <= q <= n:
                q = 1 - q if q < 1 else 2 * n + 1 - q
            total, weight = total + w * row[q - 1], weight + w
        out.append(total / weight)
    return out


@pytest.mark.parametrize("scale", [0.5, 1 / 3, 0.25, 0.7, 1.0, 2.0, 3.0, 1.6])
@pytest.mark.parametrize("n", [3, 12, 17])
def test_it_is_the_definition(scale, n):
    x = picture(n, 7)
    m = math.ceil(round(scale * n, 9))
    columns = [[by_definition(x[c, :, j].tolist(), m, scale) for j in range(7)] for c in range(3)]
    half = torch.tensor(columns, dtype=torch.float64).mT
    wide = math.ceil(round(scale * 7, 9))
    rows = torch.tensor([[by_definition(r.tolist(), wide, scale) for r in plane] for plane in half], dtype=torch.float64)
    torch.testing.assert_close(resize(x, scale), rows, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [0.5, 1 / 3, 0.25, 2.0, 4.0])
def test_constants_and_ramps_are_kept_and_flips_commute(scale):
    x = picture(24, 36)
    constant = resize(torch.full((1, 24, 36), 0.3, dtype=torch.float64), scale)
    torch.testing.assert_close(constant, torch.full((1, int(24 * scale), int(36 * scale)), 0.3, dtype=torch.float64))
    ramp = torch.arange(48, dtype=torch.float64).expand(48, 48)
    place = (torch.arange(48 * scale, dtype=torch.float64) + 0.5) / scale - 0.5
    inner = (place > 2 / min(scale, 1)) & (place < 47 - 2 / min(scale, 1))
    torch.testing.assert_close(resize(ramp, scale)[0, inner], place[inner], rtol=0, atol=1e-12)
    assert bool(inner.any())
    torch.testing.assert_close(resize(x.flip(-1).flip(-2), scale), resize(x, scale).flip(-1).flip(-2), rtol=0, atol=1e-14)
    torch.testing.assert_close(resize(x.mT, scale), resize(x, scale).mT, rtol=0, atol=1e-14)


def test_weights_sum_to_one_and_the_kernel_interpolates():
    for scale, n, m in ((0.5, 9, 5), (1 / 3, 10, 4), (2.0, 5, 10)):
        w = bicubic_weights(n, m, scale)
        torch.testing.assert_close(w.sum(1), torch.ones(m, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.equal(bicubic_weights(6, 6, 1.0), torch.eye(6, dtype=torch.float64))
    # of a whole factor 2 the kernel is that of Keys at quarter pixels, and widened when shrinking
    assert bicubic_weights(8, 16, 2.0)[8, 2:6].tolist() == [-0.0234375, 0.2265625, 0.8671875, -0.0703125]
    assert bicubic_weights(16, 8, 0.5)[4, 5:13].tolist() == [c / 256 for c in (-3, -9, 29, 111, 111, 29, -9, -3)]


def test_torch_with_antialias_agrees_inside_and_not_at_the_border_and_without_it_is_another():
    x = picture(64, 64, seed=1)[None]
    ours, theirs = resize(x, 0.25), F.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], rtol=0, atol=1e-12)
    assert float((ours - theirs).abs().max()) > 1e-3
    plain = F.interpolate(x, scale_factor=0.25, mode="bicubic")
    assert float((ours - plain)[..., 2:-2, 2:-2].abs().mean()) > 0.1


def test_pillow_agrees_inside_up_to_its_rounding():
    levels = (80 + 90 * picture(60, 80)).round().to(torch.uint8)  # nothing is clipped: the order of sides would tell
    pillow = Image.fromarray(levels.permute(1, 2, 0).numpy()).resize((40, 30), Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.asarray(pillow).copy()).permute(2, 0, 1)
    gap = (resize(levels, 0.5).int() - theirs.int()).abs()
    assert int(gap[:, 2:-2, 2:-2].max()) <= 1 and int(gap.max()) > 1


def test_eight_bits_are_rounded_after_each_side_and_the_one_that_shrinks_more_goes_first():
    x = (255 * picture(30, 44)).round().to(torch.uint8)

    def rounded(v):
        return torch.floor(v + 0.5).clamp(0, 255)

    expected = rounded(resize(rounded(resize(x.double(), size=(15, 44))), size=(15, 22)))
    assert resize(x, 0.5).dtype == torch.uint8 and torch.equal(resize(x, 0.5).double(), expected)
    assert not torch.equal(rounded(resize(x.double(), 0.5)), expected)
    wide_first = rounded(resize(rounded(resize(x.double(), size=(30, 11))), size=(15, 11)))
    assert torch.equal(resize(x, size=(15, 11)).double(), wide_first)


def test_sizes_are_rounded_up_and_gradients_flow():
    assert resize(torch.zeros(3, 7, 9), 0.5).shape == (3, 4, 5)
    assert resize(torch.zeros(2, 3, 33, 10), 1 / 3).shape == (2, 3, 11, 4)
    assert resize(torch.zeros(3, 7, 9), size=(5, 20)).shape == (3, 5, 20)
    x = picture(6, 6).requires_grad_()
    resize(x, 0.5).sum().backward()
    w = bicubic_weights(6, 3, 0.5).sum(0)
    torch.testing.assert_close(x.grad, (w[:, None] * w).expand(3, 6, 6))


def test_bad_input_is_named():
    x = torch.zeros(3, 4, 4)
    for call, message in (
        (lambda: resize(x), r"scale=None and size=None: give one"),
        (lambda: resize(x, 0.5, (2, 2)), "give one of them"),
        (lambda: resize(x, -1.0), "scale=-1 must be positive"),
        (lambda: resize(x, size=(0, 3)), r"size=\(0, 3\) must hold at least one pixel"),
        (lambda: resize(x.long(), 0.5), "dtype torch.int64 .* floating point or uint8"),
        (lambda: resize(torch.zeros(3, 0, 4), 0.5), r"shape \(3, 0, 4\)"),
    ):
        with pytest.raises(LimbeckError, match=message):
            call()
