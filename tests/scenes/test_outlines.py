"""Soft outlines against distances in closed form, projected spheres and finite differences."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import DMTet, interpolate, orbit, rasterise, soft_outlines
from limbeck.scenes.outlines import PIECE

CAMERA = orbit(torch.zeros(1).double(), 0.0, 2.0, math.degrees(2 * math.atan(0.5)), width=16, height=16)
# its pixels are 1/8 of a unit in the plane x = 0: column 8 + 8 y, row 8 - 8 z


def quads(*boxes, pieces=1):
    """Rectangles (x, y0, z0, y1, z1), each of pieces x pieces squares of two triangles."""
    vertices, faces = [], []
    n = pieces + 1
    for x, y0, z0, y1, z1 in boxes:
        t = torch.arange(n, dtype=torch.float64) / pieces
        y, z = torch.meshgrid(y0 + t * (y1 - y0), z0 + t * (z1 - z0), indexing="ij")
        first = len(vertices) * n * n + torch.arange(n * n).reshape(n, n)
        a, b, c, d = (first[i : n - 1 + i, j : n - 1 + j].reshape(-1) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1)))
        vertices.append(torch.stack([torch.full_like(y, x), y, z], -1).reshape(-1, 3))
        faces += [torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)]
    return torch.cat(vertices), torch.cat(faces)


def soft(vertices, faces, cameras=CAMERA, softness=0.5):
    return soft_outlines(rasterise(vertices, faces, cameras), vertices, faces, cameras, softness)


def to_rectangles(*rectangles):
    """Signed distances (16, 16), positive inside, of pixel centres to a union of rectangles (x0, y0, x1, y1) in pixels: to points
    on their sides that lie in none of the others."""
    points = []
    for i, (x0, y0, x1, y1) in enumerate(rectangles):
        t = torch.linspace(0, 1, 4001, dtype=torch.float64)
        side = torch.cat([torch.stack([x0 + t * (x1 - x0), torch.full_like(t, y)], 1) for y in (y0, y1)])
        side = torch.cat([side, *(torch.stack([torch.full_like(t, x), y0 + t * (y1 - y0)], 1) for x in (x0, x1))])
        for j, (a0, b0, a1, b1) in enumerate(rectangles):
            if i != j:
                within = (side[:, 0] > a0) & (side[:, 0] < a1) & (side[:, 1] > b0) & (side[:, 1] < b1)
                side = side[~within]
        points.append(side)
    y, x = torch.meshgrid(*2 * [torch.arange(16).double() + 0.5], indexing="ij")
    inside = torch.zeros(16, 16, dtype=torch.bool)
    for x0, y0, x1, y1 in rectangles:
        inside |= (x > x0) & (x < x1) & (y > y0) & (y < y1)
    distance = torch.cdist(torch.stack([x, y], -1).reshape(-1, 2), torch.cat(points)).amin(1).reshape(16, 16)
    return torch.where(inside, distance, -distance)


@pytest.mark.parametrize("pieces", [1, 5])
def test_opacity_is_the_sigmoid_of_the_distance_to_a_rectangle(pieces):
    opacity, _ = soft(*quads((0.0, -0.3, -0.55, 0.45, 0.2), pieces=pieces))
    distance = to_rectangles((8 - 2.4, 8 - 1.6, 8 + 3.6, 8 + 4.4))
    torch.testing.assert_close(opacity[0, 0], torch.sigmoid(distance / 0.5), rtol=0, atol=1e-5)


def test_edges_before_other_faces_are_no_outline():
    # a small one in front of a large one, and another reaching over its border
    inside = quads((0.0, -0.6, -0.6, 0.6, 0.6), (0.5, -0.2, -0.2, 0.3, 0.3))
    alone = quads((0.0, -0.6, -0.6, 0.6, 0.6))
    torch.testing.assert_close(soft(*inside)[0], soft(*alone)[0])
    opacity, _ = soft(*quads((0.0, -0.6, -0.6, 0.6, 0.6), (1.0, 0.1, -0.1, 0.4, 0.1)))  # twice as large at half the depth
    distance = to_rectangles((3.2, 3.2, 12.8, 12.8), (9.6, 6.4, 14.4, 9.6))
    found = 0.5 * torch.logit(opacity[0, 0])
    near = distance.abs() < 5
    assert float((found - distance)[near].abs().max()) <= PIECE / 2
    assert float((found - distance)[near].abs().mean()) < 0.01


def test_the_silhouette_of_a_sphere():
    with torch.no_grad():
        mesh = DMTet.from_distance(lambda p: p.norm(dim=1) - 0.6, 32, dtype=torch.float64)()
    cameras = orbit(torch.tensor([0.0, 50.0]).double(), torch.tensor([0.0, 35.0]).double(), 2.0, 50.0, width=48, height=48)
    opacity, _ = soft(mesh.vertices, mesh.faces, cameras, 0.25)
    radius = float(cameras.focal[0, 0]) * 0.6 / math.sqrt(4 - 0.36)
    assert opacity.sum((1, 2, 3)).tolist() == pytest.approx(2 * [math.pi * radius**2], rel=5e-3)
    y, x = torch.meshgrid(*2 * [torch.arange(48).double() - 23.5], indexing="ij")
    exact = torch.sigmoid((radius - torch.hypot(x, y)) / 0.25)
    assert float((opacity[0, 0] - exact).abs().max()) < 0.05


def test_gradients_are_those_of_finite_differences():
    vertices, faces = quads((0.0, -0.31, -0.52, 0.44, 0.23), (0.4, 0.2, -0.2, 0.7, 0.15))
    g = torch.Generator().manual_seed(0)
    vertices = (vertices + 0.05 * torch.randn(vertices.shape, generator=g, dtype=torch.float64)).requires_grad_()
    probe = torch.randn(16, 16, generator=g, dtype=torch.float64)

    def pictures(vertices):
        opacity, found = soft(vertices, faces)
        return (opacity[0, 0] * probe).sum(), (opacity[0, 0] * found.depth[0] * probe).sum()

    assert torch.autograd.gradcheck(pictures, (vertices,), eps=1e-7, rtol=1e-4, atol=1e-5)


def test_outlines_in_parallel_rays():
    vertices, faces = quads((0.0, -0.31, -0.52, 0.44, 0.23), (0.4, 0.2, -0.2, 0.7, 0.15))
    found = rasterise(vertices, faces, CAMERA, extent=2.0)  # pixels are 1/8 of a unit at any depth
    opacity, found = soft_outlines(found, vertices, faces, CAMERA, 0.5, extent=2.0)
    distance = to_rectangles((8 - 2.48, 8 - 1.84, 8 + 3.52, 8 + 4.16), (8 + 1.6, 8 - 1.2, 8 + 5.6, 8 + 1.6))
    near = distance.abs() < 5
    assert float((0.5 * torch.logit(opacity[0, 0]) - distance)[near].abs().max()) <= PIECE / 2
    torch.testing.assert_close(
        found.depth, 2 - interpolate(found, faces, vertices)[..., 0] * found.covered - 2 * ~found.covered
    )
    g = torch.Generator().manual_seed(0)
    vertices = (vertices + 0.05 * torch.randn(vertices.shape, generator=g, dtype=torch.float64)).requires_grad_()

    def total(vertices):
        return soft_outlines(rasterise(vertices, faces, CAMERA, extent=2.0), vertices, faces, CAMERA, 0.5, extent=2.0)[0].sum()

    assert torch.autograd.gradcheck(total, (vertices,), eps=1e-7, rtol=1e-4, atol=1e-5)


def test_growth_adds_the_area_of_a_rim():
    size = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    vertices, faces = quads((0.0, -0.31, -0.52, 0.44, 0.23))
    (opacity, _) = soft(vertices * size, faces, softness=0.25)
    opacity.sum().backward()
    assert float(opacity.sum().detach()) == pytest.approx(6.0 * 6.0, rel=0.02)
    assert float(size.grad) == pytest.approx(2 * 6.0 * 6.0, rel=0.05)  # d(A s^2)/ds


def test_beyond_the_outline_stand_its_nearest_points():
    vertices, faces = quads((0.0, -0.3, -0.55, 0.45, 0.2))
    _, found = soft(vertices, faces)
    hard = rasterise(vertices, faces, CAMERA)
    assert torch.equal(found.face[hard.covered], hard.face[hard.covered])
    out = found.covered & ~hard.covered
    assert int(out.sum()) > 40
    y, z = torch.meshgrid(*2 * [(torch.arange(16).double() - 7.5) / 8], indexing="ij")
    wanted = torch.stack([torch.zeros(16, 16).double(), z.clamp(-0.3, 0.45), (-y).clamp(-0.55, 0.2)], -1)
    torch.testing.assert_close(interpolate(found, faces, vertices)[out], wanted[None][out], rtol=1e-9, atol=1e-9)
    tilted = vertices + torch.stack([vertices[:, 1] * 0.8, *2 * [torch.zeros(4).double()]], 1)
    _, found = soft(tilted, faces)
    out = found.covered & ~rasterise(tilted, faces, CAMERA).covered
    local = 2.0 - interpolate(found, faces, tilted)[..., 0]  # depth, of points that are interpolated in perspective
    torch.testing.assert_close(local[out], found.depth[out])


def test_a_tiny_mesh_and_one_that_is_out_of_sight():
    vertices, faces = quads((0.0, 0.01, 0.01, 0.012, 0.012))  # smaller than a pixel, and on no centre
    opacity, _ = soft(vertices, faces)
    assert not bool(rasterise(vertices, faces, CAMERA).covered.any()) and float(opacity.max()) > 0.1
    opacity, found = soft(*quads((5.0, -1.0, -1.0, 1.0, 1.0)))
    assert float(opacity.max()) == 0 and not bool(found.covered.any())
    with pytest.raises(LimbeckError, match="softness=0: an outline is softened over a positive number of pixels"):
        soft(vertices, faces, softness=0.0)
