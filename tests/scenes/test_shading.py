"""Normals and lit fields against round densities, whose normals are known."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.scenes import (
    HashField,
    HashGrid,
    Lit,
    VolumeScene,
    VoxelGrid,
    density_normals,
    gradient,
    gradient_by_differences,
    orbit,
    orientation,
)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ball(points, which=None):
    """Dense inside, in radius and in colour by place: a smooth density with normals x / |x|."""
    return torch.exp(-4 * points.square().sum(-1)), points.sin().square().movedim(-1, 1)


def test_normals_of_a_round_density_point_outwards():
    at = uniform(1, 40, 3) - 0.5
    density = lambda p: ball(p)[0]  # noqa: E731
    for found in (gradient(density, at), gradient_by_differences(density, at, 1e-4)):
        torch.testing.assert_close(density_normals(found), F.normalize(at, dim=-1), rtol=0, atol=1e-6)
    assert density_normals(torch.zeros(2, 3)).tolist() == [[0, 0, 0]] * 2
    exact = gradient(density, at).detach()
    coarse = [float((gradient_by_differences(density, at, h) - exact).abs().max().detach()) for h in (0.02, 0.01)]
    assert coarse[0] / coarse[1] == pytest.approx(4, rel=0.02)  # of second order


def test_orientation_trains_a_field_that_can_be_differentiated_twice():
    torch.manual_seed(0)
    field = HashField(HashGrid(2, 2, 8, 3, 6), 8).double()
    cameras = orbit(torch.zeros(1, dtype=torch.float64), width=4, height=4)
    scene = VolumeScene(field, 6)
    picture = scene(cameras)
    points = scene.points(cameras, picture.distances)
    table = field.grid.table

    def penalty(facing):
        normals = density_normals(gradient(lambda p: field(p)[0], points))
        return orientation(picture.weights, facing * normals, cameras.rays()[1], picture.opacity)

    assert penalty(1.0).item() < 0.2 * penalty(-1.0).item()  # a blob's front hides its back
    (found,) = torch.autograd.grad(penalty(-1.0), table)
    step = 1e-6 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = []
    for sign in (1, -1):
        table.data.add_(step, alpha=sign)
        values.append(penalty(-1.0).item())
        table.data.sub_(step, alpha=sign)
    assert values[0] - values[1] == pytest.approx(2 * float((found * step).sum()), rel=1e-5)


def test_lambert_is_ambient_and_what_faces_the_light():
    light = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
    at = (uniform(2, 5, 4, 3) - 0.5).clone()
    density, albedo = ball(at)
    facing = (F.normalize(at, dim=-1) * F.normalize(light[:, None, None] - at, dim=-1)).sum(-1).clamp(min=0)
    shade = (0.1 + 0.9 * facing)[:, None]
    assert 0 < float((facing == 0).double().mean()) < 1
    for shading, expected in (("lambert", albedo * shade), ("textureless", shade.expand_as(albedo)), ("albedo", albedo)):
        found = Lit(ball, light, shading, step=1e-4)(at)
        assert torch.equal(found[0], density)
        torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-6)


def test_a_lit_field_in_a_scene_trains_the_field():
    field = VoxelGrid(5, start=uniform(1, 4, 5, 5, 5))
    cameras = orbit(torch.tensor([0.0, 90.0], dtype=torch.float64), width=5, height=5)
    scene = VolumeScene(Lit(field, cameras.position, "textureless"), 8)
    assert [n for n, _ in scene.named_parameters()] == ["field.field.values"]
    scene(cameras).rgb.square().sum().backward()
    assert bool(field.values.grad[:, 0].any()) and not bool(field.values.grad[:, 1:].any())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_by_differences(ball, torch.zeros(1, 3), 0.0), "step=0: finite differences need a positive step"),
        (lambda: Lit(ball, torch.zeros(1, 3), "phong"), "unknown shading 'phong'.* Allowed: albedo, lambert, textureless"),
        (lambda: Lit(ball, torch.zeros(3)), r"a light of shape \(3,\): give one place in the world per camera"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
