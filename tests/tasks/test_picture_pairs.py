"""Pairs of pictures: their degradation, crops that fit and are keyed by sample, and every bad input."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.networks.bicubic import resize
from limbeck.tasks.picture_pairs import DegradedPictures, PicturePairs, degraded_pairs
from limbeck.training import Keyed


def levels(h, w, seed=0):
    return torch.randint(256, (3, h, w), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def numbered(h, w, scale):
    """A pair in which every pixel says where it lies: both crops then must name the same places."""
    place = torch.stack([torch.arange(h)[:, None].expand(h, w), torch.arange(w).expand(h, w), torch.zeros(h, w)]) / 100
    return place, place.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_crops_of_both_pictures_show_the_same_place_in_the_same_position(scale):
    pairs = PicturePairs(*zip(numbered(12, 9, scale), numbered(7, 10, scale), strict=True))
    assert pairs.scale == scale and pairs.size == 2
    index = torch.arange(64)
    low, high = pairs.crops(index % 2, Keyed(0, 0, index), 4 * scale)
    assert low.shape == (64, 3, 4, 4) and high.shape == (64, 3, 4 * scale, 4 * scale)
    assert torch.equal(high, low.repeat_interleave(scale, -1).repeat_interleave(scale, -2))
    rows, columns = ((100 * low[:, k]).round().long() for k in (0, 1))
    for odd, (h, w) in enumerate(((12, 9), (7, 10))):  # all places of a picture are seen, borders too
        assert int(rows[odd::2].min()) == 0 and int(rows[odd::2].max()) == h - 1
        assert int(columns[odd::2].min()) == 0 and int(columns[odd::2].max()) == w - 1


def test_all_eight_symmetries_are_seen():
    low, high = numbered(4, 4, 1)
    index = torch.arange(100)
    crops, _ = PicturePairs([low], [high]).crops(0 * index, Keyed(0, 0, index), 4)
    found = {tuple(c.flatten().tolist()) for c in crops}
    both = [low, low.flip(-1), low.flip(-2), low.flip(-1).flip(-2)]
    assert found == {tuple(v.flatten().tolist()) for t in both for v in (t, t.mT)} and len(found) == 8


def test_crops_are_keyed_by_sample():
    pairs = degraded_pairs([levels(30, 40), levels(50, 32, 1)], 2)
    rows, index = torch.tensor([0, 1, 1, 0]), torch.tensor([4, 5, 6, 7])
    whole = pairs.crops(rows, Keyed(3, 9, index), 8)
    part = pairs.crops(rows[2:], Keyed(3, 9, index[2:]), 8)
    assert all(torch.equal(a[2:], b) for a, b in zip(whole, part, strict=True))
    other = pairs.crops(rows, Keyed(3, 10, index), 8)
    assert not torch.equal(whole[0], other[0])


def test_degradation_is_bicubic_in_eight_bits_and_cut_sides_are_said():
    picture = levels(21, 32)
    with pytest.warns(UserWarning, match="cut 1 of 2 pictures to multiples of the scale 2"):
        pairs = degraded_pairs([picture, levels(10, 10)], 2)
    assert pairs.high[0].shape == (3, 20, 32)
    assert torch.equal(pairs.low[0], resize(picture[:, :20], 0.5))
    low, high = pairs.pair(0)
    assert torch.equal(low[0], pairs.low[0].float() / 255) and torch.equal(high[0], picture[:, :20].float() / 255)
    assert pairs.fetch(torch.tensor([0])) == (None, None)


def test_pictures_are_degraded_for_the_scale_that_is_asked_for_once():
    source = DegradedPictures([levels(24, 36), levels(36, 24, 1)], torch.float64)
    for scale in (2, 3):
        pairs = source.pairs(scale)
        assert pairs is source.pairs(scale) and pairs.scale == scale and pairs.pair(1)[0].dtype == torch.float64
        assert torch.equal(pairs.low[1], resize(source.pictures[1], 1 / scale)) and pairs.pairs(7) is pairs
    assert source.size == 2 and source.fetch(torch.tensor([0])) == (None, None)


def test_bad_pairs_are_named():
    a, b = numbered(8, 8, 2)
    pairs = PicturePairs([a], [b])
    noise = Keyed(0, 0, torch.tensor([0]))
    row = torch.tensor([0])
    for call, message in (
        (lambda: PicturePairs([a], []), "1 degraded and 0 real pictures"),
        (lambda: PicturePairs([], []), "0 degraded and 0 real pictures"),
        (lambda: PicturePairs([a, a], [b, a]), r"pair 1 has \(8, 8\) and \(8, 8\) pixels, which is no factor of 2 .*modcrop"),
        (lambda: PicturePairs([a], [b[:, :-1]]), r"pair 0 has \(8, 8\) and \(15, 16\) pixels"),
        (lambda: PicturePairs([a[:1]], [b]), r"degraded picture 0 has shape \(1, 8, 8\), not \(3, H, W\); repeat the grey"),
        (lambda: PicturePairs([255 * a], [b]), r"values of degraded picture 0 go from 0 to 17.85; .*\[0, 1\]"),
        (lambda: PicturePairs([a], [b - 0.5]), r"values of real picture 0 go from -0.5 .* \(x \+ 1\) / 2"),
        (lambda: PicturePairs([a * torch.nan], [b]), "values of degraded picture 0 go from nan to nan"),
        (lambda: PicturePairs([a.long()], [b]), "degraded picture 0 has dtype torch.int64: give uint8, or floating point in"),
        (lambda: degraded_pairs([b], 2), "picture 0 has dtype torch.float32: .* give uint8"),
        (lambda: pairs.crops(row, noise, 18), r"patch=18 is larger than real picture 0, \(16, 16\)"),
        (lambda: pairs.crops(row, noise, 5), "patch=5 must be a multiple of the scale 2"),
    ):
        with pytest.raises(LimbeckError, match=message):
            call()
