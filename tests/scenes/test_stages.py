"""The stages of a text-to-3D pipeline on a known object: voxels from pictures, a surface from their density, colour on it, a file."""

import math

import pytest
import torch
import trimesh

from limbeck.scenes import (
    ColourGrid,
    DMTet,
    Head,
    MeshScene,
    VolumeScene,
    VoxelGrid,
    baked,
    load_mesh,
    orbit,
    render_head,
    save_mesh,
)
from limbeck.scenes.meshes import is_watertight, volume
from limbeck.scenes.voxels import voxels

THRESHOLD = 2.5  # a tenth of a density of 25


def fitted(scene, parameters, cameras, wanted, steps, lr):
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        loss = (scene(cameras, 1.0).rgb - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.slow
def test_voxels_become_a_painted_mesh_in_a_file(tmp_path):
    around = torch.arange(16) * 22.5
    seen, between = (
        orbit(around - first, tilt, 2.5, 40.0, width=24, height=24) for first, tilt in ((180.0, 10.0), (168.75, 20.0))
    )
    wanted, truth = ((render_head(Head(), cameras, samples=4).image + 1) / 2 for cameras in (seen, between))

    @torch.no_grad()
    def psnr(scene):
        return -10 * math.log10(float((scene(between, 1.0).rgb - truth).square().mean()))

    torch.manual_seed(0)
    field = VoxelGrid(24)
    volumes = VolumeScene(field, samples=32)
    fitted(volumes, field.parameters(), seen, wanted, 120, 0.1)
    first = psnr(volumes)
    assert first > 22

    surface = DMTet.from_density(lambda points: field(points[None])[0][0], THRESHOLD, 32)
    mesh = surface()
    fine = voxels(129).reshape(1, -1, 3)
    with torch.no_grad():
        within = float((field(fine)[0] > THRESHOLD).double().mean()) * 8
    assert is_watertight(mesh) and float(volume(mesh).detach()) == pytest.approx(within, rel=0.15)

    # the colours of the mesh cannot mend its outlines, which stand where the fog had that density: 22 dB against the field's 30
    painted = MeshScene(surface.requires_grad_(False), ColourGrid(24))
    before = psnr(painted)
    fitted(painted, painted.colour.parameters(), seen, wanted, 20, 0.2)
    assert psnr(painted) > max(before + 5, 20)

    with torch.no_grad():
        save_mesh(tmp_path / "head.obj", baked(mesh, painted.colour, size=512))
    read = trimesh.load_mesh(tmp_path / "head.obj")
    assert read.is_volume or is_watertight(load_mesh(tmp_path / "head.obj"))
    assert float(volume(load_mesh(tmp_path / "head.obj"))) == pytest.approx(float(volume(mesh).detach()), rel=1e-4)
