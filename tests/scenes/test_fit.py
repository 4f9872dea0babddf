"""Splats and voxels fitted to pictures of the analytic head: views that they were not fitted to come out right."""

import pytest
import torch

from limbeck.scenes import (
    Head,
    ScreenGradients,
    Splats,
    VolumeScene,
    VoxelGrid,
    apply_edit,
    ball,
    densify,
    prune,
    render,
    render_head,
    splats_from_points,
    turntable,
)
from limbeck.scenes.splats import LEARNING_RATES


def psnr(splats, cameras, images):
    with torch.no_grad():
        return float(-10 * ((render(splats, cameras, 1.0).rgb - images) ** 2).mean().log10())


@pytest.mark.slow
def test_a_head_from_24_views():
    g = torch.Generator().manual_seed(0)
    cameras = turntable(48, 10.0, width=32, height=32, distance=2.5, fovy=35.0)
    images = (render_head(Head(), cameras).image + 1) / 2
    seen, held_out = cameras[0::2], cameras[1::2]
    start = splats_from_points(ball(torch.rand(300, 3, generator=g), 0.7), opacity=0.1)
    parameters = {name: torch.nn.Parameter(x) for name, x in start._asdict().items()}
    groups = [{"params": [p], "lr": 5 * LEARNING_RATES[name]} for name, p in parameters.items()]
    groups[0]["lr"] *= 4
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    first = psnr(Splats(**parameters), held_out, images[1::2])
    sums = ScreenGradients.zeros(Splats(**parameters))
    for step in range(300):
        views = torch.randperm(24, generator=g)[:4]
        picture = render(Splats(**parameters), seen[views], 1.0)
        optimizer.zero_grad()
        (picture.rgb - images[0::2][views]).abs().mean().backward()
        sums = sums.add(picture.screen_gradients(), picture.visible)
        optimizer.step()
        if step in (99, 199):
            normals = torch.randn(len(sums.seen), 2, 3, generator=g)
            edit = densify(Splats(**parameters), sums.mean, normals, 1.0, float(sums.mean.quantile(0.8)), 0.05)
            assert len(edit.source) > len(edit.kept[edit.kept])
            parameters = apply_edit(edit, parameters, optimizer)
            parameters = apply_edit(prune(Splats(**parameters), step=step), parameters, optimizer)
            sums = ScreenGradients.zeros(Splats(**parameters))
    last = psnr(Splats(**parameters), held_out, images[1::2])
    assert first < 12 and last > 22


@pytest.mark.slow
def test_voxels_from_24_views_in_parallel_rays():
    g = torch.Generator().manual_seed(0)
    cameras = turntable(48, width=16, height=16)
    images = render_head(Head(), cameras, extent=1.6).image
    scene = VolumeScene(VoxelGrid(18, start=0.1 * torch.randn(1, 4, 18, 18, 18, generator=g)), 18, extent=1.6)
    optimizer = torch.optim.Adam(scene.parameters(), lr=0.05)
    for _ in range(400):
        views = 2 * torch.randperm(24, generator=g)[:6]
        optimizer.zero_grad()
        (scene(cameras[views], 1.0, torch.rand(6, 16, 16, 18, generator=g)).image - images[views]).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        mse = (scene(cameras[1::2], 1.0).rgb - (images[1::2] + 1) / 2).square().mean()
    assert float(-10 * mse.log10()) > 27  # 30 is seen
