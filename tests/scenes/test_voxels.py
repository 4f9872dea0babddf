"""Voxel grids: trilinear fields at known points, several scenes at once, resizing."""

import itertools
import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import VolumeScene, VoxelGrid, blob, orbit


def grid(size=4, scenes=1, seed=0, **options):
    start = torch.randn(scenes, 4, size, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return VoxelGrid(size, scenes, start=start, **options)


def inside(*shape, radius=1.0):
    return radius * (2 * torch.rand(*shape, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1)


def test_values_are_interpolated_trilinearly_between_voxels():
    field, radius = grid(radius=0.7), 0.7
    points = inside(1, 50, radius=radius)
    density, colour = (x.detach() for x in field(points))
    raw = field.values.detach()[0]
    for p, sigma, c in zip(points[0], density[0], colour[0].T, strict=True):
        place = (p / radius + 1) * 1.5
        low = place.floor().clamp(0, 2).long()
        share = place - low
        total = torch.zeros(4, dtype=torch.float64)
        for corner in itertools.product((0, 1), repeat=3):
            weight = math.prod(float(s if on else 1 - s) for s, on in zip(share, corner, strict=True))
            x, y, z = (int(i) + on for i, on in zip(low, corner, strict=True))
            total += weight * raw[:, z, y, x]
        assert float(sigma) == pytest.approx(4 * math.log1p(math.exp(float(total[0]))), rel=1e-12)
        torch.testing.assert_close(c, torch.sigmoid(total[1:]), rtol=1e-12, atol=0)


def test_training_starts_from_a_grey_blob():
    field = VoxelGrid(5)
    at = torch.tensor([[[0.0, 0, 0], [0.5, 0, 0], [1.0, 1.0, -1.0]]])
    density, colour = field(at)
    raw = 4 * (1 - torch.tensor([0.0, 0.5, math.sqrt(3)]) / 0.7)
    torch.testing.assert_close(density[0], 4 * torch.log1p(raw.exp()))
    assert bool((colour == 0.5).all())


def test_blobs_are_their_formulas():
    p = torch.tensor([[0.0, 0.3, 0.4], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert blob(p).tolist() == pytest.approx([4 * (1 - 5 / 7), 4])
    assert blob(p, "magic3d").tolist() == pytest.approx([0, 10])
    assert blob(p, "dreamfusion").tolist() == pytest.approx([5 * math.exp(-3.125), 5])
    assert blob(p, "none").tolist() == [0, 0]


def test_scenes_side_by_side_are_those_alone():
    both = grid(scenes=2)
    alone = []
    for k in range(2):
        one = VoxelGrid(4).double()
        one.values.data.copy_(both.values.detach()[k : k + 1])
        alone.append(one)
    views = orbit(torch.tensor([0.0, 40.0, 80.0, 120.0], dtype=torch.float64), 10.0, width=5, height=4)
    u = torch.rand(4, 4, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = VolumeScene(both, 6)
    for which in (None, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 0, 1])):
        owner = [0, 0, 1, 1] if which is None else which.tolist()
        for field in (both, *alone):
            field.zero_grad()
        picture = together(views, 0.2, u, which)
        picture.rgb.square().sum().backward()
        for i, k in enumerate(owner):
            single = VolumeScene(alone[k], 6)(views[[i]], 0.2, u[i : i + 1])
            torch.testing.assert_close(picture.rgb[i], single.rgb[0], rtol=0, atol=1e-14)
            single.rgb.square().sum().backward()
        gradients = torch.cat([one.values.grad for one in alone])
        torch.testing.assert_close(both.values.grad, gradients, rtol=0, atol=1e-13)


def test_resizing_keeps_the_field_where_voxels_are_halved():
    field = grid(4, 2)
    finer = field.resized(7)
    points = inside(2, 40)
    for found, expected in zip(finer(points), field(points), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert finer.values.requires_grad and finer.values.shape == (2, 4, 7, 7, 7)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2), (6, 3, 2, 2)])
def test_points_of_every_shape(shape):
    field, points = grid(scenes=3), inside(*shape)
    density, colour = field(points)
    assert density.shape == shape and colour.shape == (6, 3, *shape[1:])
    flat = field(points.reshape(6, -1, 3))
    assert torch.equal(density.flatten(), flat[0].flatten()) and torch.equal(colour.flatten(), flat[1].flatten())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VoxelGrid(1), "size=1, scenes=1, radius=1, gain=4: a grid needs size >= 2"),
        (lambda: VoxelGrid(3, start=torch.zeros(4, 3, 3, 3)), r"start \(4, 3, 3, 3\): .* their shape \(1, 4, 3, 3, 3\)"),
        (lambda: VoxelGrid(3, kind="sphere"), "unknown blob 'sphere'"),
        (lambda: grid(scenes=2)(inside(3, 5)), "3 cameras for 2 scenes: give a multiple of 2, or say with which"),
        (lambda: grid()(inside(2, 5), torch.tensor([0, 1])), r"which=\[0, 1\]: give 2 whole numbers from 0 to 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
