"""Views against an object that is known: the true head, a head with a face on every side, and figures by hand."""

import colorsys
import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.metrics import (
    circular_order_error,
    clipped_fraction,
    label_entropy,
    nearest_views,
    render_distance,
    saturation,
    saturation_ratio,
    share_of,
    view_entropies,
    view_posterior,
)
from limbeck.scenes import head_library, turntable


@pytest.fixture(scope="module")
def views():
    """24 views of one head, (24, 3, 16, 16)."""
    return head_library(1, turntable(24, width=16, height=16), extent=1.6)[0]


@pytest.fixture(scope="module")
def janus(views):
    """The front copied to every side."""
    return views[:1].expand(24, -1, -1, -1)


def test_the_true_head_has_all_views_and_a_janus_head_one(views, janus):
    true, two_faced = (view_entropies(view_posterior(x, views)) for x in (views, janus))
    assert true.variety == pytest.approx(math.log(24), abs=0.05) and true.quality < 0.5
    assert true.variety - two_faced.variety > 1
    assert two_faced.gain == pytest.approx(0, abs=1e-6) and true.gain > 3
    labels = nearest_views(views, views)
    assert labels.tolist() == list(range(24)) and label_entropy(labels) == pytest.approx(math.log(24))
    front = torch.zeros(24, dtype=torch.bool)
    front[[0, 1, 2, 22, 23]] = True
    assert share_of(labels, front) == pytest.approx(5 / 24) and share_of(nearest_views(janus, views), front) == 1


def test_a_posterior_is_bayes_rule(views):
    x, y = views[:3] + 0.1, views[:4]
    likelihood = torch.distributions.Normal(y.double()[None], 0.7).log_prob(x.double()[:, None]).flatten(2).sum(2)
    assert torch.allclose(view_posterior(x, y, 0.7), torch.softmax(likelihood, 1))
    soft, sharp = (view_entropies(view_posterior(views, views, std)).quality for std in (4.0, 0.1))
    assert soft > 1 > 1e-3 > sharp


def test_entropies_by_hand():
    found = view_entropies(torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]))
    variety = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.quality == pytest.approx(math.log(2) / 2) and found.variety == pytest.approx(variety)
    assert found.gain == pytest.approx(variety / found.quality - 1)
    assert view_entropies(torch.eye(4)).gain == float("inf") and view_entropies(torch.eye(4)[:1]).gain == 0
    assert label_entropy(torch.tensor([7, 7, 2, 9])) == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize("shift", [0, 5, 23])
def test_order_does_not_see_a_rotation(shift):
    assert circular_order_error((torch.arange(24) + shift) % 24, 24) == pytest.approx(0, abs=1e-9)


def test_order_sees_a_face_everywhere_and_a_mirror_image():
    assert circular_order_error(torch.zeros(24, dtype=torch.long), 24) == pytest.approx(90)
    assert circular_order_error((-torch.arange(24)) % 24, 24) == pytest.approx(90)
    swapped = torch.arange(24)
    swapped[[3, 4]] = swapped[[4, 3]]
    assert circular_order_error(swapped, 24) == pytest.approx(2 * 15 / 24)
    assert circular_order_error(torch.tensor([0, 2, 4, 6]), 8) == pytest.approx(0, abs=1e-9)  # fewer views than the library has


def test_the_best_rotation_is_found():
    labels = torch.randint(24, (24,), generator=torch.Generator().manual_seed(1))
    angle = 15.0 * (labels - torch.arange(24)).double()
    grid = torch.arange(0, 360, 0.25, dtype=torch.float64)[:, None]
    by_search = (((angle - grid + 180) % 360) - 180).abs().mean(1).min()
    assert circular_order_error(labels, 24) == pytest.approx(float(by_search))


def test_saturation_is_that_of_colorsys():
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = (torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    pixels = ((images + 1) / 2).movedim(1, -1)[mask[:, 0] > 0]
    expected = sum(colorsys.rgb_to_hsv(*p)[1] for p in pixels.tolist()) / len(pixels)
    assert saturation(images, mask) == pytest.approx(expected, rel=1e-5)
    assert saturation(-torch.ones(1, 3, 2, 2)) == 0
    grey, red = torch.zeros(1, 3, 2, 2), torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(1, 3, 2, 2)
    assert saturation(red) == 1
    assert saturation_ratio(red, 0.5 * red) == pytest.approx(1 / (2 / 3))  # (0.75 - 0.25) / 0.75
    with pytest.raises(LimbeckError, match="the truth is grey"):
        saturation_ratio(red, grey)


def test_clipped_values_are_counted_on_the_mask():
    images = torch.zeros(1, 3, 1, 3)
    images[0, 0, 0, 0], images[0, :, 0, 1], images[0, :, 0, 2] = 1.0, -1.0, 0.97
    assert clipped_fraction(images) == pytest.approx(4 / 9)
    assert clipped_fraction(images, torch.tensor([1.0, 0.0, 0.0]).reshape(1, 1, 1, 3)) == pytest.approx(1 / 3)


def test_objects_and_their_distance():
    library = head_library(3, turntable(4, width=8, height=8), extent=1.6)
    became = library[[2, 0, 2]] + 0.05
    assert nearest_views(became, library).tolist() == [2, 0, 2]
    by_hand = [(library[i] - library[j]).square().mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert render_distance(library) == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)
    assert render_distance(library[[1, 1, 1]]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: view_posterior(torch.zeros(2, 3), torch.zeros(4, 3), 0), "a noise above 0"),
        (lambda: view_posterior(torch.zeros(2, 3), torch.zeros(4, 2)), "give both the same shape"),
        (lambda: view_entropies(torch.ones(2, 3)), "each row not negative with sum 1"),
        (lambda: share_of(torch.tensor([3]), torch.ones(3).bool()), "labels up to 3 do not fit"),
        (lambda: circular_order_error(torch.tensor([8]), 8), "they go from 0 to 7"),
        (lambda: saturation(torch.zeros(1, 4, 2, 2)), "give \\(B, 3, H, W\\)"),
        (lambda: clipped_fraction(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)), "the mask is empty"),
        (lambda: render_distance(torch.zeros(1, 3)), "at least 2 are needed"),
    ],
)
def test_what_makes_no_sense_is_said(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
