"""Measures of meshes against closed forms, losses against hand-worked values and finite differences."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import Mesh, check_mesh, collapsed, is_watertight, laplacian, largest_component, normal_consistency
from limbeck.scenes.meshes import (
    area,
    boundary,
    components,
    edges,
    euler_characteristic,
    face_normals,
    vertex_normals,
    volume,
)


def together(*meshes):
    offsets = torch.tensor([0, *[len(m.vertices) for m in meshes]]).cumsum(0)
    faces = torch.cat([m.faces + o for m, o in zip(meshes, offsets[:-1], strict=True)])
    return Mesh(torch.cat([m.vertices for m in meshes]), faces)


def test_a_box(box_mesh):
    mesh = box_mesh((0.5, 1.0, 2.0), (3.0, -1.0, 0.5))
    assert float(volume(mesh)) == pytest.approx(8.0, rel=1e-12) and float(area(mesh)) == pytest.approx(28.0, rel=1e-12)
    assert is_watertight(mesh) and euler_characteristic(mesh) == 2 and len(boundary(mesh)) == 0
    middle = mesh.corners.mean(1) - torch.tensor([3.0, -1.0, 0.5])
    assert bool(((face_normals(mesh) * middle).sum(1) > 0).all())
    assert torch.equal(face_normals(mesh).abs().sort(1).values, torch.tensor([0.0, 0.0, 1.0]).double().expand(12, 3))
    inside_out = mesh._replace(faces=mesh.faces.flip(1))
    assert is_watertight(inside_out) and float(volume(inside_out)) == pytest.approx(-8.0)


def test_what_is_not_closed(box_mesh):
    mesh = box_mesh()
    opened = mesh._replace(faces=mesh.faces[1:])
    assert not is_watertight(opened) and sorted(boundary(opened).tolist()) == [[0, 1], [0, 3], [1, 3]]
    turned = mesh._replace(faces=torch.cat([mesh.faces[:1].flip(1), mesh.faces[1:]]))
    assert len(boundary(turned)) == 0 and not is_watertight(turned)  # every edge in two faces, but not oriented
    doubled = mesh._replace(faces=torch.cat([mesh.faces, mesh.faces[:1]]))
    assert not is_watertight(doubled)


def test_a_torus_converges_at_second_order(torus_mesh):
    truth = torch.tensor([2 * math.pi**2 * 0.6 * 0.25**2, 4 * math.pi**2 * 0.6 * 0.25])
    found = torch.stack([torch.stack([volume(m), area(m)]) for m in (torus_mesh(n) for n in (16, 32, 64))])
    error = (found / truth - 1).abs()
    assert float(error[2].max()) < 0.005
    torch.testing.assert_close(error[:-1] / error[1:], torch.full((2, 2), 4.0).double(), rtol=0.1, atol=0)
    mesh = torus_mesh(16)
    assert is_watertight(mesh) and euler_characteristic(mesh) == 0
    assert euler_characteristic(together(mesh, mesh)) == 0


def test_normals_of_vertices_follow_the_surface(torus_mesh):
    mesh = torus_mesh(64)
    v = mesh.vertices
    ring = torch.nn.functional.normalize(v[:, :2], dim=1) * 0.6
    truth = (v - torch.cat([ring, torch.zeros(len(v), 1)], 1)) / 0.25
    assert float((vertex_normals(mesh) - truth).norm(dim=1).max()) < 0.05
    torch.testing.assert_close(vertex_normals(mesh).norm(dim=1), torch.ones(len(v)).double())


def test_edges_and_who_shares_them(box_mesh):
    mesh = box_mesh()
    found = edges(mesh.faces)
    assert len(found.vertices) == 18 and found.sharing.tolist() == [2] * 18
    for ends, faces, opposite in zip(found.vertices.tolist(), found.faces.tolist(), found.opposite.tolist(), strict=True):
        for face, third in zip(faces, opposite, strict=True):
            assert sorted(mesh.faces[face].tolist()) == sorted([*ends, third])
        assert faces[0] != faces[1]


def test_losses_by_hand(box_mesh):
    # a box: 12 edges at right angles, 6 diagonals within a plane
    assert float(normal_consistency(box_mesh((1.0, 2.0, 3.0)))) == pytest.approx(12 / 18, rel=1e-12)
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    corners = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]).double()
    tetrahedron = Mesh(corners, faces)
    # cos of the angle between normals is -1/3; the mean of the three others is -v / 3
    assert float(normal_consistency(tetrahedron)) == pytest.approx(4 / 3, rel=1e-12)
    assert float(laplacian(tetrahedron)) == pytest.approx(4 / 3 * math.sqrt(3), rel=1e-12)
    flat = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]).double(), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    assert float(normal_consistency(flat)) == 0


@pytest.mark.parametrize("measure", [area, volume, normal_consistency, laplacian])
def test_gradients_are_those_of_finite_differences(measure, torus_mesh):
    mesh = torus_mesh(4)
    g = torch.Generator().manual_seed(0)
    vertices = (mesh.vertices + 0.1 * torch.randn(mesh.vertices.shape, generator=g, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: measure(mesh._replace(vertices=v)), (vertices,), rtol=1e-6, atol=1e-8)


def test_a_face_without_area_has_a_finite_gradient(box_mesh):
    mesh = box_mesh()
    vertices = mesh.vertices.clone()
    vertices[1] = vertices[0]
    vertices.requires_grad_()
    thin = mesh._replace(vertices=vertices)
    (normal_consistency(thin) + laplacian(thin) + vertex_normals(thin).sum()).backward()
    assert bool(vertices.grad.isfinite().all()) and float(vertices.grad.abs().max()) < 10


def test_the_largest_part(box_mesh, torus_mesh):
    small, big = box_mesh((0.1, 0.1, 0.1), (2.0, 0.0, 0.0)), torus_mesh(12)
    mesh = together(small, big, small)._replace(colours=torch.rand(160, 3, generator=torch.Generator().manual_seed(0)).double())
    assert torch.bincount(components(mesh)).tolist() == [12, 288, 12]
    kept = largest_component(mesh)
    assert torch.equal(kept.vertices, big.vertices) and torch.equal(kept.faces, big.faces)
    assert torch.equal(kept.colours, mesh.colours[8:-8])


def test_edges_of_no_length_are_collapsed(torus_mesh):
    mesh = torus_mesh(12)
    found = edges(mesh.faces).vertices
    a, b = found[found[:, 0] == 30][0].tolist()
    g = torch.Generator().manual_seed(0)
    vertices = mesh.vertices.clone()
    vertices[b] = vertices[a] + 1e-9
    thin = Mesh(vertices, mesh.faces, torch.rand(144, 3, generator=g).double())
    kept = collapsed(thin)
    assert len(kept.vertices) == 143 and len(kept.faces) == 286 and is_watertight(kept) and euler_characteristic(kept) == 0
    assert float(volume(kept)) == pytest.approx(float(volume(thin)), abs=1e-8)
    rest = [i for i in range(144) if i != b]
    assert torch.equal(kept.vertices, vertices[rest]) and torch.equal(kept.colours, thin.colours[rest])
    assert all(x is y or torch.equal(x, y) for x, y in zip(collapsed(mesh), mesh, strict=True))
    with pytest.raises(LimbeckError, match="all 288 faces of the mesh lie in one place each: there is no surface"):
        collapsed(mesh, 10.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertices": torch.full((8, 3), math.nan)}, "row 0 of the mesh's vertices is not finite: lower the learning rate"),
        ({"vertices": torch.zeros(8, 2)}, r"vertices of shape \(8, 2\): 8 vertices and 12 faces need \(8, 3\)"),
        ({"faces": torch.zeros(0, 3).long()}, "a mesh without faces: there is no surface"),
        ({"faces": torch.tensor([[0, 1, 8]])}, r"face 0 has vertices that are not there: indices lie in 0\.\.7"),
        ({"faces": torch.tensor([[0, 1, 2]]).int()}, "faces of dtype torch.int32: indices of vertices are int64"),
        ({"colours": torch.full((8, 3), 1.5)}, r"colours from 1.5 to 1.5: colours of a mesh lie in \[0, 1\]"),
        ({"texture": torch.zeros(4, 4, 3)}, "a texture and uv coordinates together, or neither"),
        ({"texture": torch.zeros(4, 4), "uv": torch.zeros(12, 3, 2)}, r"a texture of shape \(4, 4\): expected \(H, W, 3\)"),
    ],
)
def test_what_is_no_mesh(change, message, box_mesh):
    with pytest.raises(LimbeckError, match=message):
        check_mesh(box_mesh()._replace(**change))
