"""Pictures of meshes against colours at the rays' hits; a surface that learns from them."""

import math

import pytest
import torch
import trimesh
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.scenes import (
    ColourGrid,
    DMTet,
    Head,
    Mesh,
    MeshScene,
    Scene,
    Seen,
    load_mesh,
    mesh_from_field,
    orbit,
    render_head,
    render_mesh,
    save_mesh,
    tet_grid,
    turntable,
)
from limbeck.scenes.meshes import volume

PAINT = torch.tensor([[0.2, 0.1, -0.1], [0.1, 0.3, 0.0], [-0.2, 0.1, 0.2]], dtype=torch.float64)


def paint(points):
    """A colour affine in the place, in [0, 1] for places in [-1, 1]^3."""
    return 0.5 + points @ PAINT.to(points)


def cameras(size=24, dtype=torch.float64):
    return orbit(torch.tensor([20.0, 140.0, -100.0], dtype=dtype), 25.0, 3.0, 45.0, width=size, height=size)


def test_a_pixel_has_the_colour_where_its_ray_meets_a_box(box_mesh):
    mesh = box_mesh((0.5, 0.6, 0.7))
    view = render_mesh(mesh, cameras(), torch.tensor([0.1, 0.9, 0.3]).double(), paint, softness=0)
    origins, directions = cameras().rays(normalised=False)
    half = torch.tensor([0.5, 0.6, 0.7]).double()
    t0, t1 = (-half - origins) / directions, (half - origins) / directions
    enter, axis = torch.minimum(t0, t1).max(-1)
    hit = enter < torch.maximum(t0, t1).amin(-1)
    points = origins + enter[..., None] * directions
    wanted = torch.where(hit[..., None], paint(points), torch.tensor([0.1, 0.9, 0.3]).double())
    torch.testing.assert_close(view.rgb.movedim(1, -1), wanted)
    assert torch.equal(view.image, 2 * view.rgb - 1)
    assert torch.equal(view.opacity[:, 0], hit.double()) and 300 < int(hit.sum()) < 1000
    torch.testing.assert_close(view.depth[:, 0], torch.where(hit, enter, 0.0))
    # colours of vertices are the same affine map
    by_vertices = render_mesh(mesh._replace(colours=paint(mesh.vertices)), cameras(), 0.3, softness=0)
    torch.testing.assert_close(by_vertices.rgb, render_mesh(mesh, cameras(), 0.3, paint, softness=0).rgb)
    assert bool((render_mesh(mesh, cameras(), 0.0, softness=0).rgb.movedim(1, -1)[hit] == 0.5).all())
    # from the front, a face alone: its normal is that of the face's corners, of which each belongs to three sides
    unshared = Mesh(mesh.corners.reshape(-1, 3), torch.arange(36).reshape(12, 3))
    normal = render_mesh(unshared, cameras(), 0.0, softness=0).normal.movedim(1, -1)
    facing = torch.zeros_like(points).scatter(-1, axis[..., None], -directions.gather(-1, axis[..., None]).sign())
    torch.testing.assert_close(normal[hit], (facing[hit] + 1) / 2)


def test_soft_borders_mix_with_the_background(box_mesh):
    mesh = box_mesh((0.5, 0.6, 0.7))
    on_black, on_white = (render_mesh(mesh, cameras(), b, paint) for b in (0.0, 1.0))
    torch.testing.assert_close(on_white.rgb - on_black.rgb, (1 - on_white.opacity).expand(3, 3, 24, 24))
    partly = (on_black.opacity > 0.05) & (on_black.opacity < 0.95)
    assert 100 < int(partly.sum()) < 500
    colour = on_black.rgb / on_black.opacity.clamp(min=0.05)
    near = (on_black.depth / on_black.opacity.clamp(min=0.05))[partly]
    assert bool((colour.amin(1, keepdim=True)[partly] >= 0.199).all()) and float(near.min()) > 2 and float(near.max()) < 4


def test_normals_of_a_sphere():
    origins, directions = cameras(32).rays()
    along = (origins * directions).sum(-1)
    root = along**2 - (origins.square().sum(-1) - 0.36)
    truth = (origins + (-along - root.clamp(min=0).sqrt())[..., None] * directions) / 0.6
    middle, errors = root > 0.15, []
    for resolution in (10, 20, 40):
        with torch.no_grad():
            scene = MeshScene(DMTet.from_distance(lambda p: p.norm(dim=1) - 0.6, resolution, dtype=torch.float64), softness=0)
            normal = 2 * scene(cameras(32), 0.0).normal.movedim(1, -1) - 1
        torch.testing.assert_close(normal[middle].norm(dim=-1), torch.ones(int(middle.sum())).double())
        errors.append(float((normal - truth)[middle].norm(dim=-1).mean()))
    assert int(middle.sum()) > 250 and errors[2] < 0.02 and errors[0] > 1.8 * errors[1] > 3.2 * errors[2]


def test_gradients_reach_field_grid_and_colour():
    scene = MeshScene(DMTet.from_distance(lambda p: p.norm(dim=1) - 0.6, 8), ColourGrid(8))
    view = scene(cameras(16, torch.float32), 0.2)
    assert isinstance(scene, Scene) and isinstance(view, Seen)
    assert view.rgb.dtype == torch.float32 and view.rgb.shape == (3, 3, 16, 16)
    (view.rgb.sum() + view.normal[:, 0].square().sum()).backward()
    for name, parameter in scene.named_parameters():
        assert bool(parameter.grad.isfinite().all()) and int((parameter.grad != 0).sum()) > 100, name
    # a thicker field makes a larger picture, by the circle's circumference: d(pi R^2) = 2 pi R dR
    scene.zero_grad()
    scene(cameras(16, torch.float32)).opacity.sum().backward()
    f, d = float(cameras(16).focal[0, 0]), 3.0
    growth = 3 * math.pi * f**2 * 2 * 0.6 * d**2 / (d**2 - 0.36) ** 2
    assert float(scene.surface.sdf.grad.sum()) == pytest.approx(growth, rel=0.1)


def test_a_ball_grows_into_an_ellipsoid_by_its_outlines():
    truth = DMTet.from_distance(lambda p: (p / torch.tensor([0.5, 0.7, 0.6])).norm(dim=1) - 1, 8)
    views = turntable(3, 20.0, distance=2.5, fovy=50.0, width=16, height=16)
    with torch.no_grad():
        wanted = MeshScene(truth)(views).opacity
    scene = MeshScene(DMTet.from_distance(lambda p: p.norm(dim=1) - 0.4, 8))
    optimizer = torch.optim.Adam([scene.surface.sdf], lr=0.08)
    losses = []
    for _ in range(9):
        loss = (scene(views).opacity - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_a_grid_of_colours():
    grid = ColourGrid(5, radius=2.0).double()
    g = torch.Generator().manual_seed(0)
    grid.values.data = torch.randn(3, 5, 5, 5, generator=g, dtype=torch.float64)
    at = torch.tensor([[0, 1, 2], [4, 4, 4], [3, 0, 1]])  # x, y, z of nodes
    wanted = torch.stack([grid.values[:, z, y, x] for x, y, z in at.tolist()])
    torch.testing.assert_close(grid(at.double() - 2), torch.sigmoid(wanted))
    torch.testing.assert_close(grid(at[1:2].double() * 9), torch.sigmoid(wanted[1:2]))
    assert bool((ColourGrid(3)(torch.zeros(2, 3)) == 0.5).all())


# The head of limbeck.scenes.head: skull, nose and ears
PARTS = [((0.0, 0.0, 0.0), (0.55, 0.5, 0.62)), ((0.55, 0.0, -0.02), (0.12, 0.08, 0.1))]
PARTS += [((-0.05, side * 0.5, 0.05), (0.1, 0.12, 0.18)) for side in (1, -1)]


def outside_head(points):
    """About the distance to it, negative inside."""
    deep = [(1 - ((points - points.new_tensor(c)) / points.new_tensor(r)).norm(dim=-1)) * min(r) for c, r in PARTS]
    return -torch.stack(deep).amax(0)


def head_density(points):
    """25 inside, soft at the border, where it is 12.5."""
    return 25 * torch.sigmoid(-outside_head(points) / 0.03)


def difference(surface, extent=None):
    """(mean difference in opacity, mean difference in depth well inside) to rays traced at the head's ellipsoids."""
    views = turntable(3, 15.0, distance=2.5, fovy=40.0, width=40, height=40)
    with torch.no_grad():
        found, truth = MeshScene(surface, extent=extent)(views, 1.0), render_head(Head(), views, extent, samples=5)
    directions = (views.rays() if extent is None else views.parallel_rays(extent))[1]
    cosine = -(directions * views.c2w[:, None, None, :3, 2]).sum(-1)[:, None]  # of a distance along a ray to depth
    inside = (found.opacity > 0.999) & (truth.opacity > 0.999)
    depth = (found.depth - truth.depth * cosine).abs()[inside].mean()
    return float((found.opacity - truth.opacity).abs().mean()), float(depth)


def test_the_head_as_rays_see_it():
    for extent in (None, 1.8):
        opacity, depth = difference(DMTet.from_distance(outside_head, 40), extent)
        assert opacity < 0.01 and depth < 0.003
    # of a steep density only what is not clamped knows where in a cell the border is
    unclamped, clamped = (difference(DMTet.from_density(head_density, 12.5, 32, limit=x)) for x in (12.5, 1.0))
    assert unclamped[0] < 0.5 * clamped[0] and unclamped[1] < 0.3 * clamped[1]


def test_from_a_density_to_a_closed_mesh_in_a_file(tmp_path):
    """The stages of ProlificDreamer: a field's density, a tenth of 25 as the threshold, DMTet on 32 cells, OBJ."""
    scene = MeshScene(DMTet.from_density(head_density, 2.5, 32))
    save_mesh(tmp_path / "head.obj", scene.detached())
    found = trimesh.load_mesh(tmp_path / "head.obj")
    assert found.is_watertight and found.is_winding_consistent and found.body_count == 1
    assert load_mesh(tmp_path / "head.obj").faces.shape == found.faces.shape
    fine = tet_grid(64, dtype=torch.float64)
    true_volume = float((head_density(fine.vertices) > 2.5).double().mean()) * 8 * (65 / 64) ** 3
    assert float(found.volume) == pytest.approx(true_volume, rel=0.02)
    # without the clamp, on the same nodes
    values = head_density(tet_grid(32, dtype=torch.float64).vertices).reshape(33, 33, 33)
    assert float(volume(mesh_from_field(values, 2.5, largest=True))) == pytest.approx(true_volume, rel=0.05)


@pytest.mark.slow
def test_a_face_is_painted_on_the_head_from_eight_views():
    """The stage of the texture: the geometry rests. Judged between the views; grey has 15 dB, 20 steps gave 28.6."""
    around = torch.arange(8) * 45.0
    seen, between = (orbit(around - first, 15.0, 2.5, 40.0, width=24, height=24) for first in (157.5, 135.0))
    wanted, truth = ((render_head(Head(), views, samples=4).image + 1) / 2 for views in (seen, between))
    surface = DMTet.from_density(head_density, 12.5, 32, limit=12.5).requires_grad_(False)
    scene = MeshScene(surface, ColourGrid(24))
    optimizer = torch.optim.Adam(scene.colour.parameters(), lr=0.2)

    @torch.no_grad()
    def psnr():
        return -10 * math.log10(float((scene(between, 1.0).rgb - truth).square().mean()))

    before = psnr()
    for _ in range(20):
        loss = (scene(seen, 1.0).rgb - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 16 and psnr() > 27
    assert surface.sdf.grad is None


class Loud(nn.Module):
    def forward(self, points):
        return 1 + points.abs()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: render_mesh(m, cameras(4), 0.0, Loud()),
            r"values from 1.* to .*: colours lie in \[0, 1\], end with a sigmoid",
        ),
        (
            lambda m: render_mesh(m, cameras(4), 0.0, lambda p: p[:, :2]),
            r"gave \(\d+, 2\) for points \(\d+, 3\): give \(N, 3\)",
        ),
        (lambda m: render_mesh(m, cameras(4), torch.zeros(4)), r"a background of shape \(4,\): give a number"),
        (lambda m: render_mesh(m, cameras(4), softness=-1.0), "softness=-1: an outline is softened over a positive number"),
        (lambda m: ColourGrid(1), "size=1 and radius=1: a grid of colours needs size >= 2 and a positive radius"),
    ],
)
def test_bad_input(call, message, box_mesh):
    with pytest.raises(LimbeckError, match=message):
        call(box_mesh((0.5, 0.5, 0.5)))
