"""View labels at their borders, and Perp-Neg's weights by hand."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import VIEWS, perp_neg, view_labels, view_prompts


@pytest.mark.parametrize(
    ("azimuth", "elevation", "view"),
    [
        (0.0, 0.0, "front"),
        (44.9, 0.0, "front"),
        (45.0, 0.0, "side"),
        (-44.9, 0.0, "front"),
        (-90.0, 0.0, "side"),
        (135.0, 0.0, "side"),
        (135.1, 0.0, "back"),
        (180.0, 0.0, "back"),
        (-179.0, 0.0, "back"),
        (200.0, 0.0, "back"),
        (360.0, 0.0, "front"),
        (0.0, 60.0, "front"),
        (0.0, 60.1, "overhead"),
        (180.0, 89.0, "overhead"),
    ],
)
def test_labels(azimuth, elevation, view):
    assert VIEWS[int(view_labels(torch.tensor([azimuth]), torch.tensor([elevation])))] == view


def test_sectors_have_the_widths_that_are_asked_for():
    azimuth = torch.arange(-180.0, 180.0, 0.5) + 0.25
    labels = view_labels(azimuth, torch.zeros_like(azimuth), front=30.0, back=20.0)
    assert torch.bincount(labels).tolist() == [2 * (360 - 60 - 40), 2 * 60, 2 * 40]
    assert view_prompts("a fox", torch.tensor([1, 0])) == ["a fox, front view", "a fox, side view"]


def f(r, a, b, c):
    return a * math.exp(-b * r) + c


@pytest.mark.parametrize("sign", [1, -1])
def test_perp_neg_by_hand(sign):
    found = perp_neg(sign * torch.tensor([30.0, 120.0], dtype=torch.float64))
    r = 1 - 30 / 90
    expected = [[1 - r, r, 0, 0], [2 - 120 / 90, 0, 1 - (2 - 120 / 90), 0]]
    torch.testing.assert_close(found.positive, torch.tensor(expected, dtype=torch.float64))
    q = 2 - 120 / 90
    expected = [
        [-f(1 - r, 4, 0.5, -2.426), -f(r, 4, 0.5, -2.426), 0, 0],
        [-f(q, 1, 0.5, -0.606), -f(q, 1, 0.5, 0.967), 0, 0],
    ]
    torch.testing.assert_close(found.negative, torch.tensor(expected, dtype=torch.float64))


def test_perp_neg_at_the_front_the_side_and_the_back():
    found = perp_neg(torch.tensor([0.0, 90.0, 180.0], dtype=torch.float64))
    assert found.positive.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]
    assert abs(float(found.negative[0, 1])) < 1e-3  # the front is not pushed away from itself
    assert abs(float(found.negative[1, 0])) < 1e-3 and float(found.negative[2, 1]) == pytest.approx(-1.967)


@pytest.mark.parametrize("options", [{"front": 100.0, "back": 90.0}, {"front": 0.0}, {"overhead": 100.0}])
def test_sectors_that_do_not_fit(options):
    with pytest.raises(LimbeckError, match="half-widths must be positive and add up to at most 180"):
        view_labels(torch.zeros(1), torch.zeros(1), **options)
