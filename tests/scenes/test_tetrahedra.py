"""Marching tetrahedra against planes, spheres, tori, another program's surfaces and finite differences."""

import math
from itertools import permutations

import pytest
import torch
from skimage.measure import marching_cubes, mesh_surface_area

from limbeck.errors import LimbeckError
from limbeck.scenes import DMTet, Mesh, is_watertight, marching_tetrahedra, mesh_from_field, tet_grid
from limbeck.scenes.meshes import area, boundary, euler_characteristic, face_normals, volume


def sphere(points, radius=0.6):
    return points.norm(dim=1) - radius


def torus(points):
    return torch.hypot(points[:, :2].norm(dim=1) - 0.55, points[:, 2]) - 0.27


def test_the_grid_fills_its_box():
    grid = tet_grid((2, 3, 4), (0.0, -1.0, 0.0), (1.0, 2.0, 2.0), torch.float64)
    a, b, c, d = grid.vertices[grid.tetrahedra].unbind(1)
    volumes = torch.linalg.det(torch.stack([b - a, c - a, d - a], 1)) / 6
    torch.testing.assert_close(
        volumes, torch.full((6 * 24,), 0.25 / 6, dtype=torch.float64)
    )  # all positive, and together the box
    assert grid.vertices.shape == (3 * 4 * 5, 3)
    assert int((~grid.border).sum()) == 1 * 2 * 3
    sides = torch.cat([grid.tetrahedra[:, [j for j in range(4) if j != i]] for i in range(4)]).sort(1).values
    found, count = torch.unique(sides, dim=0, return_counts=True)
    assert count.unique().tolist() == [1, 2]  # neighbours meet in whole triangles
    assert bool(grid.border[found[count == 1]].all()) and int((count == 1).sum()) == 4 * (2 * 3 + 3 * 4 + 2 * 4)


def test_a_linear_field_gives_its_plane_in_every_case():
    g = torch.Generator().manual_seed(0)
    seen = set()
    for order in permutations(range(4)):
        vertices = torch.randn(4, 3, generator=g, dtype=torch.float64)
        tetrahedron = torch.tensor([[*order]])
        if float(torch.linalg.det(torch.stack([x - vertices[order[0]] for x in vertices[list(order[1:])]]))) < 0:
            tetrahedron = tetrahedron[:, [0, 1, 3, 2]]
        for _ in range(8):
            slope, place = torch.randn(2, 3, generator=g, dtype=torch.float64)
            s = (vertices - 0.5 * place) @ slope
            case = int(((s > 0)[tetrahedron[0]] * torch.tensor([1, 2, 4, 8])).sum())
            if case in (0, 15):
                continue
            seen.add(case)
            mesh = marching_tetrahedra(vertices, tetrahedron, s)
            assert len(mesh.faces) == (2 if bin(case).count("1") == 2 else 1)
            torch.testing.assert_close(mesh.vertices @ slope, (0.5 * place @ slope).expand(len(mesh.vertices)))
            torch.testing.assert_close(face_normals(mesh), (-slope / slope.norm()).expand(len(mesh.faces), 3))
            assert len(boundary(mesh)) == len(mesh.vertices) > 2  # one polygon
    assert seen == set(range(1, 15))


def test_the_pieces_of_a_plane_have_the_area_of_the_whole():
    grid = tet_grid(5, dtype=torch.float64)
    slope = torch.tensor([0.3, 0.2, 1.0]).double()
    mesh = marching_tetrahedra(grid.vertices, grid.tetrahedra, 0.05 - grid.vertices @ slope)
    assert float(area(mesh)) == pytest.approx(4 * float(slope.norm()), rel=1e-12)  # over the square [-1, 1]^2
    assert euler_characteristic(mesh) == 1  # a disc


@pytest.mark.parametrize(
    ("distance", "euler", "true_volume", "true_area"),
    [
        (sphere, 2, 4 / 3 * math.pi * 0.6**3, 4 * math.pi * 0.6**2),
        (torus, 0, 2 * math.pi**2 * 0.55 * 0.27**2, 4 * math.pi**2 * 0.55 * 0.27),
    ],
)
def test_closed_surfaces_converge_at_second_order(distance, euler, true_volume, true_area):
    errors = []
    for resolution in (10, 20, 40):
        with torch.no_grad():
            mesh = DMTet.from_distance(distance, resolution, dtype=torch.float64)()
        assert is_watertight(mesh) and euler_characteristic(mesh) == euler
        errors.append([float(volume(mesh)) / true_volume - 1, float(area(mesh)) / true_area - 1])
    errors = torch.tensor(errors).abs()
    assert float(errors[2].max()) < 0.012
    torch.testing.assert_close(errors[:-1] / errors[1:], torch.full((2, 2), 4.0), rtol=0.15, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_any_field_on_any_deformed_grid_is_closed(seed):
    g = torch.Generator().manual_seed(seed)
    s = torch.randn(9**3, generator=g)
    s[torch.rand(9**3, generator=g) < 0.2] = 0  # surfaces through the grid's vertices
    surface = DMTet(s, 8)
    surface.deformation.data.normal_(0, 3, generator=g)
    with torch.no_grad():
        mesh = surface()
    assert is_watertight(mesh) and len(mesh.faces) > 1000
    assert float(mesh.vertices.abs().max()) < 1 + 1 / 8
    assert torch.equal(mesh.faces.unique(), torch.arange(len(mesh.vertices)))


def test_gradients_are_those_of_finite_differences():
    grid = tet_grid(3, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    s = (0.55 - grid.vertices.norm(dim=1) + 0.1 * torch.randn(64, generator=g, dtype=torch.float64)).requires_grad_()
    moved = (grid.vertices + 0.05 * torch.randn(64, 3, generator=g, dtype=torch.float64)).requires_grad_()

    def measures(s, vertices):
        mesh = marching_tetrahedra(vertices, grid.tetrahedra, s)
        return volume(mesh), area(mesh), mesh.vertices.square().sum()

    assert torch.autograd.gradcheck(measures, (s, moved), rtol=1e-6, atol=1e-8)


def test_vertices_are_the_linear_crossings_and_move_with_the_grid():
    grid = tet_grid(4, dtype=torch.float64)
    surface = DMTet.from_distance(sphere, 4, dtype=torch.float64)
    surface.deformation.data.fill_(0.7)
    still = marching_tetrahedra(grid.vertices, grid.tetrahedra, 0.6 - grid.vertices.norm(dim=1))
    torch.testing.assert_close(surface().vertices, still.vertices + math.tanh(0.7) / 4)
    assert sorted(surface.state_dict()) == ["deformation", "sdf"]


def test_a_density_becomes_a_clamped_field():
    density = lambda p: 25 * torch.exp(-p.square().sum(1) / 0.1)  # noqa: E731
    surface = DMTet.from_density(density, 2.5, 24)
    assert torch.equal(surface.sdf, (density(surface.vertices) - 2.5).clamp(-1, 1))
    radius = math.sqrt(0.1 * math.log(10))
    assert float(volume(surface()).detach()) == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.05)
    with pytest.raises(
        LimbeckError, match=r"threshold=30 leaves nothing: the density lies in \[.*, 25\]; choose a threshold between"
    ):
        DMTet.from_density(density, 30.0, 8)


def test_the_border_closes_what_reaches_it():
    missing = []
    for nodes in (9, 17):
        mesh = mesh_from_field(torch.ones(nodes, nodes, nodes).double())
        assert is_watertight(mesh) and euler_characteristic(mesh) == 2 and float(mesh.vertices.abs().max()) < 1
        missing.append(8 - float(volume(mesh)))
    assert 0 < missing[1] < 0.1 and missing[0] / missing[1] == pytest.approx(4, rel=0.1)  # the edges of the box are cut off


def test_the_surface_of_another_program():
    axes = [torch.linspace(-1, 1, n).double() for n in (40, 36, 44)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    values = 3 * torch.exp(-((x / 0.5) ** 2 + (y / 0.4) ** 2 + (z / 0.6) ** 2)) + 0.2 * torch.sin(6 * x) * torch.cos(5 * y)
    mesh = mesh_from_field(values, 1.0)
    spacing = [2 / (len(a) - 1) for a in axes]
    vertices, faces, _, _ = marching_cubes(values.numpy(), 1.0, spacing=spacing, gradient_direction="ascent")
    theirs = Mesh(torch.from_numpy(vertices.astype("float64")) - 1, torch.from_numpy(faces.astype("int64")))
    assert float(volume(mesh)) == pytest.approx(abs(float(volume(theirs))), rel=5e-3)
    assert float(area(mesh)) == pytest.approx(mesh_surface_area(vertices, faces), rel=5e-3)
    assert euler_characteristic(mesh) == euler_characteristic(theirs)
    assert float((mesh.vertices.mean(0) - theirs.vertices.mean(0)).abs().max()) < 0.01


def test_the_largest_part_of_a_field():
    points = tet_grid(24, dtype=torch.float64).vertices
    one, other = 0.4 - (points - torch.tensor([0.4, 0, 0])).norm(dim=1), 0.25 - (points + torch.tensor([0.5, 0, 0])).norm(dim=1)
    values = torch.maximum(one, other).reshape(25, 25, 25)
    assert euler_characteristic(mesh_from_field(values)) == 4
    mesh = mesh_from_field(values, largest=True)
    assert euler_characteristic(mesh) == 2 and is_watertight(mesh)
    assert float(volume(mesh)) == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tet_grid(1), "cells=1, .*: a grid of tetrahedra needs 2 cells or more"),
        (lambda: tet_grid(4, (0.0, 0.0, 0.0), (1.0, 0.0, 1.0)), "needs 2 cells or more and low < high along each axis"),
        (lambda: DMTet(torch.zeros(10), 4), r"a field of shape \(10,\): a grid of resolution 4 has 125 vertices"),
        (
            lambda: DMTet(-torch.ones(125), 4)(),
            r"there is no surface: the field lies in \[-1, -1\] and changes its sign across no",
        ),
        (lambda: DMTet(torch.full((125,), math.nan), 4)(), "the field is not finite at vertex 0: lower the learning rate"),
        (lambda: marching_tetrahedra(torch.zeros(4, 3), torch.tensor([[0, 1, 2, 3]]), torch.zeros(5)), r"expected \(4,\)"),
        (lambda: mesh_from_field(torch.zeros(2, 5, 5)), r"values of shape \(2, 5, 5\): a field needs \(X, Y, Z\) nodes"),
    ],
)
def test_what_has_no_surface(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
