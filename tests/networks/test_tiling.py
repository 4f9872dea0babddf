"""Tiles: every pixel once, the identity exactly, equality with the whole picture where the receptive field fits."""

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.networks.imdn import IMDN, IMDNAS
from limbeck.networks.tiling import cropped_adaptively, tile_parts, tiled


def picture(h, w, b=1, seed=0):
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed))


class Marked:
    """A network that keeps the size, asks for sides that are multiples of 4, and remembers what it was given."""

    def __init__(self):
        self.shapes = []

    def __call__(self, x):
        assert x.shape[-1] % 4 == 0 and x.shape[-2] % 4 == 0
        self.shapes.append(tuple(x.shape))
        return x.clone()


@pytest.mark.parametrize("h,w", [(131, 97), (130, 132), (66, 67), (200, 103)])
def test_adaptive_cropping_of_the_identity_is_the_identity(h, w):
    x, network = picture(h, w, b=2), Marked()
    assert torch.equal(cropped_adaptively(network, x), x)
    corner = [n // 2 + 32 - (n // 2 + 32) % 4 for n in (h, w)]
    assert network.shapes == [(8, 3, *corner)]  # the four corners of both pictures, as one batch


@pytest.mark.parametrize("n", [97, 131, 128, 256])
def test_two_tiles_are_the_corners_of_adaptive_cropping(n):
    side, (first, last) = tile_parts(n, 2, 32, 4)
    assert side == n // 2 + 32 - (n // 2 + 32) % 4
    assert first == (0, 0, n // 2) and last == (n - side, n // 2, n)


@pytest.mark.parametrize("grid", [(1, 1), (1, 3), (2, 2), (3, 2), (4, 5)])
@pytest.mark.parametrize("factor", [1, 3])
def test_every_pixel_is_written_once_from_a_tile_that_has_it(grid, factor):
    h, w = 264, 300
    parts = [tile_parts(n, count, 32, 4)[1] for n, count in zip((h, w), grid, strict=True)]
    for side, n in zip(parts, (h, w), strict=True):
        assert [p.begin for p in side] == [0, *(p.end for p in side[:-1])] and side[-1].end == n
        assert all(p.start % 4 == 0 for p in side)
    x = picture(h, w)
    enlarge = lambda v: v.repeat_interleave(factor, -1).repeat_interleave(factor, -2)  # noqa: E731
    assert torch.equal(tiled(enlarge, x, grid), enlarge(x))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_overlap_is_what_was_asked_for_up_to_the_alignment(count):
    for n in (400, 403, 412):
        side, parts = tile_parts(n, count, 32, 4)
        for p in parts:
            assert p.begin == 0 or p.begin - p.start >= 32 - 8
            assert p.end == n or p.start + side - p.end >= 32 - 8


def frozen(network):
    """Its attention replaced by constants, one per channel."""
    for k, name in enumerate(network.names):
        block = getattr(network, name)
        generator = torch.Generator().manual_seed(k)
        block.cca = Scale(torch.rand(1, block.kept * 4, 1, 1, generator=generator))
    return network.eval()


class Scale(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return self.by * x


@pytest.mark.parametrize("grid", [(2, 2), (3, 2)])
@torch.no_grad()
def test_with_constant_attention_tiles_are_the_whole_picture(grid):
    torch.manual_seed(0)
    enlarging = frozen(IMDN(2, 16, 1)).double()  # its receptive field reaches 4 blocks + 3 = 7 pixels
    x = picture(131, 97).double()
    whole = enlarging(x)
    torch.testing.assert_close(tiled(enlarging, x, grid, overlap=8, align=1), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(tiled(enlarging, x, grid, overlap=16), whole, rtol=0, atol=1e-13)
    assert float((tiled(enlarging, x, grid, overlap=4, align=1) - whole).abs().max()) > 1e-9  # too little: seen at the seams


@torch.no_grad()
def test_with_constant_attention_the_one_with_strides_is_whole_too():
    torch.manual_seed(0)
    keeping = frozen(IMDNAS(16, 1)).double()  # 4 (4 + 2) + 3 = 27 pixels
    x = picture(192, 136).double()
    whole = keeping(x)
    for grid in ((2, 2), (3, 2)):
        torch.testing.assert_close(tiled(keeping, x, grid, overlap=36), whole, rtol=0, atol=1e-13)
    assert float((tiled(keeping, x, (2, 2), overlap=12) - whole).abs().max()) > 1e-9


@torch.no_grad()
def test_attention_over_a_tile_is_not_that_over_the_picture():
    torch.manual_seed(0)
    network = IMDN(2, 48, 1).double().eval()
    x = torch.cat([picture(96, 48), 0.1 * picture(96, 48)], -1).double()
    assert float((tiled(network, x, overlap=16) - network(x)).abs().max()) > 1e-7


@torch.no_grad()
def test_imdn_as_keeps_odd_sizes_and_small_pictures_are_padded():
    torch.manual_seed(0)
    network = IMDNAS(16, 1).eval()
    assert network(picture(131, 97)).shape == (1, 3, 131, 97)
    small, seen = picture(30, 45), Marked()
    assert torch.equal(cropped_adaptively(seen, small), small) and seen.shapes == [(1, 3, 32, 48)]
    padded = nn.functional.pad(small, (0, 3, 0, 2), mode="replicate")
    assert torch.equal(network(small), network(padded)[..., :30, :45])
    assert cropped_adaptively(lambda v: v.repeat_interleave(2, -1).repeat_interleave(2, -2), small).shape == (1, 3, 60, 90)


def test_whole_pictures_that_fit_are_not_cut():
    network = Marked()
    cropped_adaptively(network, picture(64, 96))
    assert network.shapes == [(1, 3, 64, 96)]


def test_bad_input_is_named():
    x = picture(40, 60)
    for call, message in (
        (lambda: tiled(Marked(), x, (1, 1), align=16), r"1 tiles of side 32 .* do not fit a side of 40"),
        (lambda: tiled(Marked(), x, (2, 2), overlap=64), r"2 tiles of side 84 .* fewer tiles, less overlap, or pad"),
        (lambda: tiled(Marked(), x, (0, 2)), "0 tiles along 40 pixels: give from 1 to 40"),
        (lambda: tiled(lambda v: v[..., :-1], x, (2, 2), overlap=8), r"made \(\d+, \d+\) of a tile .* one whole factor"),
        (lambda: tiled(Marked(), picture(403, 403), (4, 4), overlap=0), "overlap=0 is too little .* at least 8"),
    ):
        with pytest.raises(LimbeckError, match=message):
            call()
