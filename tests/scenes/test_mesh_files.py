"""Files of meshes, there and back, and as another library reads them; textures against the colours they were painted with."""

import math
import sys

import numpy as np
import plyfile
import pytest
import torch
import trimesh
from PIL import Image

from limbeck.errors import LimbeckError
from limbeck.scenes import (
    DMTet,
    MeshScene,
    baked,
    is_watertight,
    load_mesh,
    mesh_from_field,
    orbit,
    render_mesh,
    sample_texture,
    save_mesh,
)
from limbeck.scenes.meshes import euler_characteristic, volume


def paint(points):
    """Affine in the place, in [0, 1] for places in [-1, 1]^3."""
    return 0.5 + points @ torch.tensor([[0.2, 0.1, -0.1], [0.1, 0.3, 0.0], [-0.2, 0.1, 0.2]]).to(points)


@pytest.fixture
def mesh(torus_mesh):
    found = torus_mesh(12)
    found = found._replace(vertices=found.vertices.float().double())
    return found._replace(colours=(paint(found.vertices) * 255).round() / 255)


@pytest.mark.parametrize("ending", [".obj", ".glb", ".ply"])
def test_there_and_back(ending, mesh, tmp_path):
    save_mesh(tmp_path / "a" / f"torus{ending}", mesh)
    found = load_mesh(tmp_path / "a" / f"torus{ending}")
    assert torch.equal(found.vertices.double(), mesh.vertices) and torch.equal(found.faces, mesh.faces)
    torch.testing.assert_close(found.colours.double(), mesh.colours, rtol=0, atol=1e-6)
    assert found.uv is None and is_watertight(found)
    save_mesh(tmp_path / f"plain{ending}", mesh._replace(colours=None))
    plain = load_mesh(tmp_path / f"plain{ending}")
    assert torch.equal(plain.vertices, found.vertices) and torch.equal(plain.faces, mesh.faces) and plain.colours is None


@pytest.mark.parametrize("ending", [".obj", ".glb", ".ply"])
def test_as_another_library_reads_it(ending, mesh, tmp_path):
    save_mesh(tmp_path / f"torus{ending}", mesh)
    found = trimesh.load_mesh(tmp_path / f"torus{ending}")
    assert found.is_watertight and found.is_winding_consistent and found.euler_number == 0 and found.volume > 0
    x, y, z = mesh.vertices.unbind(1)
    wanted = torch.stack([y, z, x], 1) if ending == ".glb" else mesh.vertices  # y up
    np.testing.assert_array_equal(found.vertices.astype(np.float32), wanted.float().numpy())
    np.testing.assert_array_equal(found.faces, mesh.faces.numpy())
    np.testing.assert_array_equal(found.visual.vertex_colors[:, :3], (mesh.colours * 255).round().byte().numpy())


def test_several_parts_that_another_library_placed(tmp_path, box_mesh):
    box = trimesh.Trimesh(box_mesh().vertices.numpy(), box_mesh().faces.numpy(), process=False)
    scene = trimesh.Scene()
    for place in (2.0, -2.0):
        scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([0.0, place, 0.0]))  # y is up there
    scene.export(tmp_path / "two.glb")
    found = load_mesh(tmp_path / "two.glb")
    assert len(found.faces) == 24 and is_watertight(found)
    assert found.vertices.amin(0).tolist() == [-1, -1, -3] and found.vertices.amax(0).tolist() == [1, 1, 3]


def test_a_ply_by_a_third_library(mesh, tmp_path):
    save_mesh(tmp_path / "torus.ply", mesh)
    found = plyfile.PlyData.read(tmp_path / "torus.ply")
    vertex = found["vertex"].data
    np.testing.assert_array_equal(np.stack([vertex[n] for n in "xyz"], 1), mesh.vertices.float().numpy())
    levels = np.stack([vertex[n] for n in ("red", "green", "blue")], 1)
    np.testing.assert_array_equal(levels, (mesh.colours * 255).round().byte().numpy())
    np.testing.assert_array_equal(np.stack(found["face"].data["vertex_indices"]), mesh.faces.numpy())


def test_a_texture_holds_the_colours_that_it_was_painted_with(mesh):
    done = baked(mesh, paint, size=256)
    g = torch.Generator().manual_seed(0)
    face = torch.randint(0, len(mesh.faces), (4000,), generator=g)
    weights = torch.distributions.Exponential(1.0).sample((4000, 3)).double()
    weights[:300] = torch.eye(3).double()[torch.arange(300) % 3]  # corners
    weights[300:900, 0] = 0  # edges
    weights = (weights / weights.sum(1, keepdim=True))[..., None]
    points = (weights * mesh.corners[face]).sum(1)
    # between pixels a texture is linear, as is the paint: they agree but for rounding, across the whole triangle
    found = sample_texture(done.texture, (weights * done.uv[face]).sum(1))
    torch.testing.assert_close(found, paint(points), rtol=0, atol=1e-9)
    assert float(done.uv.min()) >= 0 and float(done.uv.max()) <= 1
    with pytest.raises(LimbeckError, match="size=40 is too small for 288 faces: a texture of them needs 60 pixels or more"):
        baked(mesh, paint, size=40)


@pytest.mark.parametrize("ending", [".obj", ".glb"])
def test_a_texture_there_and_back(ending, mesh, tmp_path):
    done = baked(mesh._replace(colours=None), paint, size=128)
    save_mesh(tmp_path / f"torus{ending}", done)
    found = load_mesh(tmp_path / f"torus{ending}")
    assert is_watertight(found)  # what seams had doubled is one again
    assert torch.equal(found.corners.double(), mesh.corners)
    torch.testing.assert_close(found.uv, done.uv.float(), rtol=0, atol=1e-6)
    assert torch.equal((found.texture * 255).round(), (done.texture * 255).round().float())
    camera = orbit(torch.tensor([30.0]).double(), 40.0, 2.5, 45.0, width=32, height=32)
    there, back = render_mesh(mesh, camera, 1.0, paint), render_mesh(found, camera, 1.0)
    assert float((there.rgb - back.rgb).abs().max()) < 0.51 / 255 + 1e-4


@pytest.mark.parametrize("ending", [".obj", ".glb"])
def test_another_library_finds_the_texture_the_right_way_up(ending, mesh, tmp_path):
    done = baked(mesh._replace(colours=None), paint, size=256)
    save_mesh(tmp_path / f"torus{ending}", done)
    found = trimesh.load_mesh(tmp_path / f"torus{ending}", process=False)
    colour = found.visual.to_color().vertex_colors[:, :3] / 255  # the pixel nearest to each vertex
    x, y, z = torch.from_numpy(np.array(found.vertices)).unbind(1)
    points = torch.stack([z, x, y], 1) if ending == ".glb" else torch.stack([x, y, z], 1)
    assert len(colour) == 3 * len(mesh.faces)
    assert float((torch.from_numpy(colour) - paint(points)).abs().max()) < 0.03
    if ending == ".obj":
        joined = trimesh.load_mesh(tmp_path / "torus.obj", process=False)
        joined.merge_vertices(merge_tex=True)
        assert joined.is_watertight and "map_Kd torus.png" in (tmp_path / "torus.mtl").read_text()
        assert Image.open(tmp_path / "torus.png").size == (256, 256)


def test_a_learned_surface_of_many_faces(tmp_path):
    with torch.no_grad():
        surface = DMTet.from_distance(lambda p: p.norm(dim=1) - 0.6, 16)()
    done = baked(surface, paint, size=512)
    save_mesh(tmp_path / "ball.obj", done)
    found = load_mesh(tmp_path / "ball.obj")
    assert is_watertight(found) and torch.equal(found.corners, surface.corners)


@pytest.mark.parametrize("ending", [".obj", ".glb", ".ply"])
def test_a_surface_through_the_vertices_of_its_grid_stays_closed(ending, tmp_path):
    scene = MeshScene(DMTet.from_distance(lambda p: p.norm(dim=1) - 0.6, 10))  # (0.6, 0, 0) is one of them
    with torch.no_grad():
        raw = scene.surface()
    mesh = scene.detached()
    assert len(mesh.faces) < len(raw.faces)  # it has edges of no length
    values = 0.6 - scene.surface.vertices.norm(dim=1).reshape(11, 11, 11)
    for one in (mesh, mesh_from_field(values)):
        assert is_watertight(one) and euler_characteristic(one) == 2
        assert float(volume(one)) == pytest.approx(float(volume(raw)), abs=1e-6)
        save_mesh(tmp_path / f"ball{ending}", one)
        found = trimesh.load_mesh(tmp_path / f"ball{ending}")  # joins vertices at one place
        assert found.is_watertight and found.euler_number == 2
        if ending != ".ply":
            save_mesh(tmp_path / f"ball{ending}", baked(one, paint, 256))
            assert is_watertight(load_mesh(tmp_path / f"ball{ending}"))
    if ending != ".ply":
        save_mesh(tmp_path / f"ball{ending}", baked(raw, paint, 256))
        assert is_watertight(load_mesh(tmp_path / f"ball{ending}"))


@pytest.mark.parametrize("ending", [".obj", ".glb", ".ply"])
def test_what_no_file_can_hold(ending, mesh, tmp_path):
    path = tmp_path / f"a{ending}"
    with pytest.raises(LimbeckError, match="row 0 of the mesh's vertices is not finite"):
        save_mesh(path, mesh._replace(vertices=mesh.vertices * math.nan))
    with pytest.raises(LimbeckError, match="beyond float32, which is what the file holds"):
        save_mesh(path, mesh._replace(vertices=mesh.vertices * 1e300))
    with pytest.raises(LimbeckError, match=r"colours of a mesh lie in \[0, 1\]"):
        save_mesh(path, mesh._replace(colours=mesh.colours * 2))
    assert not path.exists()


def test_paths_and_damage(mesh, tmp_path, monkeypatch):
    with pytest.raises(LimbeckError, match=r"unknown mesh format '.stl': .*Allowed: .glb, .obj, .ply"):
        save_mesh(tmp_path / "a.stl", mesh)
    with pytest.raises(LimbeckError, match="b.obj is not there: give the path"):
        load_mesh(tmp_path / "b.obj")
    with pytest.raises(LimbeckError, match="a PLY holds colours of vertices and no texture; write .obj or .glb"):
        save_mesh(tmp_path / "a.ply", baked(mesh._replace(colours=None), paint, 128))
    for name, content in (
        ("c.glb", b"glTF but not really"),
        ("c.ply", b"ply\nformat ascii 1.0\nend_header\n"),
        ("c.obj", b"v 1 2\n"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LimbeckError, match=rf"{name}( cannot be read as a mesh|: a mesh without faces)"):
            load_mesh(tmp_path / name)
    monkeypatch.setitem(sys.modules, "trimesh", None)
    for call in (lambda: save_mesh(tmp_path / "a.glb", mesh), lambda: load_mesh(tmp_path / "c.obj")):
        with pytest.raises(LimbeckError, match=r"reading meshes need trimesh: pip install 'limbeck\[scenes\]'"):
            call()
    save_mesh(tmp_path / "a.obj", mesh)  # an OBJ needs nobody
    assert (tmp_path / "a.obj").stat().st_size > 1000
