"""The rasteriser against rays cast at every triangle, counted pixels and finite differences."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import Cameras, interpolate, orbit, rasterise


def cast(corners, origins, directions, near):
    """(face, depth, barycentrics) at (..., 3) rays of depth 1: o + t d = a + u (b - a) + v (c - a), solved for each triangle."""
    a, b, c = corners.unbind(1)
    M = torch.stack([(b - a).expand(*directions.shape[:-1], -1, -1), (c - a).expand(*directions.shape[:-1], -1, -1)], -1)
    M = torch.cat([M, -directions[..., None, :, None].expand_as(M[..., :1])], -1)
    u, v, t = torch.linalg.solve(M, origins[..., None, :] - a).unbind(-1)
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > near)
    depth, face = torch.where(hit, t, torch.inf).min(-1)
    u, v = (x.gather(-1, face[..., None])[..., 0] for x in (u, v))
    return torch.where(depth.isfinite(), face, -1), depth, torch.stack([1 - u - v, u, v], -1)


def soup(N=24, seed=0, spread=0.8):
    g = torch.Generator().manual_seed(seed)
    middle = spread * torch.randn(N, 1, 3, generator=g, dtype=torch.float64)
    vertices = (middle + 0.5 * torch.randn(N, 3, 3, generator=g, dtype=torch.float64)).reshape(-1, 3)
    return vertices, torch.arange(3 * N).reshape(N, 3)[torch.randperm(N, generator=g)]


@pytest.mark.parametrize("distance", [3.0, 0.4])  # outside, and among the triangles
def test_every_pixel_shows_what_its_ray_meets(distance, near=0.05):
    vertices, faces = soup()
    cameras = orbit(torch.tensor([10.0, 130.0, -100.0]).double(), 15.0, distance, 60.0, width=21, height=18)
    cameras = Cameras(cameras.c2w, cameras.focal * torch.tensor([1.0, 1.2]).double(), cameras.centre + 1.5, 21, 18)
    face, depth, weights = cast(vertices[faces], *cameras.rays(normalised=False), 0.05)
    found = rasterise(vertices, faces, cameras, near=0.05)
    assert torch.equal(found.face, face) and 300 < int(found.covered.sum()) < 3 * 21 * 18
    seen = found.covered
    torch.testing.assert_close(found.depth[seen], depth[seen], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.weights[seen], weights[seen], rtol=1e-8, atol=1e-8)
    assert bool((found.depth[~seen] == 0).all()) and bool((found.weights[~seen] == 0).all())


@pytest.mark.parametrize(("distance", "near"), [(4.0, 0.05), (0.5, 0.05), (4.0, 3.9)])
def test_parallel_rays(distance, near):
    vertices, faces = soup(seed=3)
    cameras = orbit(torch.tensor([10.0, 130.0, -100.0]).double(), 15.0, distance, 60.0, width=21, height=18)
    face, depth, weights = cast(vertices[faces], *cameras.parallel_rays(3.0), near)
    found = rasterise(vertices, faces, cameras, near=near, extent=3.0)
    assert torch.equal(found.face, face) and 200 < int(found.covered.sum()) < 3 * 21 * 18
    seen = found.covered
    torch.testing.assert_close(found.depth[seen], depth[seen], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.weights[seen], weights[seen], rtol=1e-8, atol=1e-8)


def test_what_is_interpolated_is_right_in_perspective():
    vertices, faces = soup(seed=1)
    cameras = orbit(torch.tensor([40.0]).double(), -10.0, 2.5, 50.0, width=24, height=24)
    found = rasterise(vertices, faces, cameras)
    origins, directions = cameras.rays(normalised=False)
    seen = found.covered
    assert int(seen.sum()) > 200
    points = interpolate(found, faces, vertices)
    torch.testing.assert_close(points[seen], (origins + found.depth[..., None] * directions)[seen], rtol=1e-9, atol=1e-9)
    slope = torch.tensor([[0.3, -1.0], [2.0, 0.1], [0.5, 0.7]]).double()
    torch.testing.assert_close(interpolate(found, faces, vertices @ slope), points @ slope)
    split = interpolate(found, torch.arange(faces.numel()).reshape(-1, 3), vertices[faces].flatten(0, 1))
    torch.testing.assert_close(split, points)


def quad(low, high, x=0.0):
    """Two triangles of y and z from ``low`` to ``high`` in the plane of ``x``, facing +x."""
    (a, b), (c, d) = low, high
    vertices = torch.tensor([[x, a, b], [x, c, b], [x, c, d], [x, a, d]], dtype=torch.float64)
    return vertices, torch.tensor([[0, 1, 2], [0, 2, 3]])


def facing(size=16, distance=2.0):
    """A camera on +x whose pixels are 1/8 of a unit wide in the plane x = 0; +y is to the right."""
    fovy = math.degrees(2 * math.atan(size / 16 / distance))
    return orbit(torch.zeros(1).double(), 0.0, distance, fovy, width=size, height=size)


def test_a_quadrangle_covers_the_pixels_that_it_should():
    vertices, faces = quad((-0.25, -0.5), (0.5, 0.125))  # columns 6..11, rows 7..11
    found = rasterise(vertices, faces, facing())
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    wanted[7:12, 6:12] = True
    assert torch.equal(found.covered[0], wanted)
    torch.testing.assert_close(found.depth[0][wanted], torch.full((30,), 2.0).double())
    right_below = interpolate(found, faces, vertices)[0, 11, 11]
    torch.testing.assert_close(right_below, torch.tensor([0.0, 0.4375, -0.4375]).double())


def test_a_shared_edge_through_pixel_centres_leaves_no_gap():
    vertices, faces = quad((-0.5, -0.5), (0.5, 0.5))  # its diagonal meets the centres of 8 pixels
    for order in ([0, 1], [1, 0]):
        assert int(rasterise(vertices, faces[order], facing()).covered.sum()) == 64
    one = rasterise(vertices, faces[:1], facing()).covered.sum() + rasterise(vertices, faces[1:], facing()).covered.sum()
    assert int(one) == 72  # each of them alone has the diagonal


def test_the_nearer_one_is_seen_in_any_order():
    (back, faces), (front, _) = quad((-0.5, -0.5), (0.5, 0.5)), quad((-0.5, -0.5), (0.5, 0.5), x=0.5)
    both = torch.cat([faces, faces + 4])
    for order, nearer in (([0, 1, 2, 3], {2, 3}), ([3, 1, 0, 2], {0, 3})):
        found = rasterise(torch.cat([back, front]), both[order], facing())
        assert set(found.face.unique().tolist()) == {-1, *nearer}
        assert float(found.depth[found.covered].max()) == pytest.approx(1.5)
    behind = front + torch.tensor([4.0, 0.0, 0.0])
    found = rasterise(torch.cat([back, behind]), both, facing())  # one behind the camera is not there
    assert int(found.covered.sum()) == 64 and int(found.face.max()) == 1


def test_gradients_are_those_of_finite_differences():
    vertices, faces = soup(5, seed=2, spread=0.4)
    vertices.requires_grad_()
    cameras = orbit(torch.tensor([10.0, 130.0]).double(), 15.0, 2.5, 50.0, width=9, height=7)
    values = torch.randn(15, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    probe = torch.randn(2, 7, 9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def pictures(vertices, values):
        found = rasterise(vertices, faces, cameras)
        return (interpolate(found, faces, values) * probe).sum(), found.depth.square().sum()

    assert torch.autograd.gradcheck(pictures, (vertices, values), eps=1e-7, rtol=1e-5, atol=1e-6)


def test_blocks_change_nothing():
    vertices, faces = soup(40)
    cameras = orbit(torch.tensor([10.0, 130.0]).double(), 15.0, 2.5, 50.0, width=16, height=16)
    whole, parts = rasterise(vertices, faces, cameras), rasterise(vertices, faces, cameras, max_pairs=5)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    single = rasterise(vertices.float(), faces, cameras)
    assert single.depth.dtype == torch.float32 and float((single.face == whole.face).float().mean()) > 0.99
    torch.testing.assert_close(single.depth, whole.depth.float(), rtol=1e-4, atol=1e-4)


def test_nothing_to_see():
    vertices, faces = quad((-0.5, -0.5), (0.5, 0.5), x=5.0)
    found = rasterise(vertices, faces, facing())
    assert not bool(found.covered.any()) and interpolate(found, faces, vertices).shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, f, c: rasterise(v[:, :2], f, c), r"vertices \(4, 2\) and faces \(2, 3\): expected \(V, 3\) and \(F, 3\)"),
        (lambda v, f, c: rasterise(v * math.nan, f, c), "vertex 0 is not finite: lower the learning rate"),
        (lambda v, f, c: rasterise(v, f, c, near=0.0), "near=0 and max_pairs=.*: both must be positive"),
        (lambda v, f, c: rasterise(v, f, c, extent=-1.0), "extent=-1: the height of an orthographic image must be positive"),
        (lambda v, f, c: interpolate(rasterise(v, f, c), f, v[:3]), r"values \(3, 3\) for faces \(2, 3\): expected \(V, C\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call(*quad((-0.5, -0.5), (0.5, 0.5)), facing())
