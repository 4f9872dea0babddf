"""Occupancy grids: the same pictures and gradients at less cost, what they remember and what they forget."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import (
    Occupancy,
    VolumeScene,
    VoxelGrid,
    orbit,
)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def corner(points, which=None):
    """Density 3 where x > 0.25, y > 0 and z > -0.25, and a colour of the place."""
    return 3.0 * (points > points.new_tensor([0.25, 0.0, -0.25])).all(-1), points.abs().movedim(-1, 1)


def test_an_occupied_field_is_the_field_and_asks_it_less():
    asked = []

    def counting(points, which=None):
        asked.append(points[..., 0].numel())
        return corner(points)

    grid = Occupancy(counting, 8)
    cameras = orbit(torch.tensor([40.0, -100.0], dtype=torch.float64), 20.0, width=9, height=9)
    expected = VolumeScene(corner, 40)(cameras, 0.5)
    first = VolumeScene(grid, 40)(cameras, 0.5)
    torch.testing.assert_close(first.rgb, expected.rgb, rtol=0, atol=1e-14)
    grid.update(0, uniform(8, 8, 8, 3))
    assert int((grid.density > 0).sum()) == 3 * 4 * 5  # they are faces of cells: 3, 4 and 5 of 8 are full
    later = VolumeScene(grid, 40)(cameras, 0.5)
    torch.testing.assert_close(later.rgb, expected.rgb, rtol=0, atol=1e-14)
    assert asked[-1] < 0.2 * asked[0] and float(expected.opacity.max()) > 0.5


def test_occupancy_forgets_by_its_decay_and_looks_now_and_then():
    level = 8.0

    def field(points, which=None):
        return level * torch.ones_like(points[..., 0]), points.movedim(-1, 1)

    grid = Occupancy(field, 2)
    u = uniform(2, 2, 2, 3)
    grid.update(0, u)
    level = 0.0
    for step in range(1, 33):
        grid.update(step, u)
    torch.testing.assert_close(grid.density, torch.full((2, 2, 2), 8 * 0.95**2))
    assert grid.occupied(torch.tensor([[0.5, 0.5, 0.5], [1.5, 0.0, 0.0]])).tolist() == [True, False]


def test_an_empty_scene_is_empty_and_has_gradients_of_zero():
    grid = Occupancy(VoxelGrid(3), 2)
    grid.density.zero_()
    picture = VolumeScene(grid, 4)(orbit(0.0, width=3, height=3), 0.5)
    assert bool((picture.rgb == 0.5).all())
    picture.rgb.sum().backward()
    assert not bool(grid.field.values.grad.any())


def test_an_occupied_field_trains_as_the_field_does():
    gradients = []
    cameras = orbit(torch.tensor([40.0], dtype=torch.float64), width=5, height=5)
    for wrap in (lambda f: f, Occupancy):
        field = VoxelGrid(4, start=uniform(1, 4, 4, 4, 4))
        VolumeScene(wrap(field), 6)(cameras).rgb.square().sum().backward()
        gradients.append(field.values.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Occupancy(corner, decay=1.0), "decay=1, every=16: an occupancy grid needs"),
        (lambda: Occupancy(corner, 4).update(0, torch.zeros(4, 3)), r"uniform numbers of shape \(4, 3\): give three per cell"),
        (lambda: Occupancy(corner, 4)(torch.zeros(2, 3), torch.tensor([0, 1])), "an occupancy grid knows one scene, 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
