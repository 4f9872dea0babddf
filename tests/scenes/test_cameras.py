"""Cameras: the convention by hand, rays and matrices against one another, random laws, and bad input."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.scenes import NUMBERS, CameraLaw, Cameras, angles, between, look_at, orbit, pinhole, turntable

TIGHT = {"rtol": 0, "atol": 1e-12}


def random_orbits(B=20, **options):
    g = torch.Generator().manual_seed(0)
    u = torch.rand(B, 4, generator=g, dtype=torch.float64)
    return orbit(360 * u[:, 0] - 180, 178 * u[:, 1] - 89, 1 + u[:, 2], 20 + 80 * u[:, 3], 20, 14, **options)


def test_the_front_camera_by_hand():
    camera = orbit(torch.zeros(1, dtype=torch.float64), 0.0, 2.0, 90.0, 4, 2)
    right, up, back = [0, 1, 0], [0, 0, 1], [1, 0, 0]
    expected = torch.tensor([[*x, p] for x, p in zip(zip(right, up, back, strict=True), [2, 0, 0], strict=True)])
    torch.testing.assert_close(camera.c2w[0, :3], expected.double(), **TIGHT)
    torch.testing.assert_close(camera.focal, torch.tensor([[1.0, 1.0]], dtype=torch.float64), **TIGHT)
    origins, directions = camera.rays(normalised=False)
    # row 0 is the top, column 0 the left; x right is the world's y
    torch.testing.assert_close(directions[0, 0, 0], torch.tensor([-1.0, -1.5, 0.5], dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(directions[0, 1, 3], torch.tensor([-1.0, 1.5, -0.5], dtype=torch.float64), **TIGHT)
    assert bool((origins == torch.tensor([2.0, 0, 0])).all())


@pytest.mark.parametrize(
    ("azimuth", "elevation", "position"),
    [(0, 0, (1, 0, 0)), (90, 0, (0, 1, 0)), (180, 0, (-1, 0, 0)), (0, 90, (0, 0, 1)), (30, 30, (0.75, math.sqrt(3) / 4, 0.5))],
)
def test_positions(azimuth, elevation, position):
    camera = orbit(torch.tensor([float(azimuth)], dtype=torch.float64), float(elevation), 1.0)
    torch.testing.assert_close(camera.position[0], torch.tensor(position, dtype=torch.float64), **TIGHT)


def test_angles_are_the_inverse_of_orbit():
    g = torch.Generator().manual_seed(1)
    u = torch.rand(50, 3, generator=g, dtype=torch.float64)
    given = (360 * u[:, 0] - 180, 180 * u[:, 1] - 90, 0.5 + u[:, 2])
    target = (0.3, -0.2, 0.1)
    found = angles(orbit(*given, target=target).position, torch.tensor(target, dtype=torch.float64))
    for one, other in zip(found, given, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert float(angles(torch.tensor([[-1.0, -0.0, 0.0]]))[0]) == 180.0


def test_orbits_are_upright_and_see_their_target_in_the_middle():
    cameras = random_orbits(target=(0.1, 0.2, -0.3))
    up = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([[0.1, 0.2, -0.3]], dtype=torch.float64)
    torch.testing.assert_close(cameras.c2w, look_at(cameras.position, target, up), rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.linalg.det(cameras.c2w[:, :3, :3]), torch.ones(20, dtype=torch.float64), **TIGHT)


def test_vertical_views_are_the_limit_of_nearly_vertical_ones():
    azimuth = torch.tensor([70.0, 70.0], dtype=torch.float64)
    for sign in (1, -1):
        exact, near = orbit(azimuth, sign * torch.tensor([90.0, 90 - 1e-7], dtype=torch.float64)).c2w
        torch.testing.assert_close(exact, near, rtol=0, atol=1e-8)


@pytest.mark.parametrize("normalised", [True, False])
def test_rays_meet_the_pixels_that_they_go_through(normalised):
    cameras = random_orbits()
    origins, directions = cameras.rays(normalised)
    points = (origins + 1.7 * directions).reshape(20, -1, 3)
    local = points @ cameras.view[:, :3, :3].mT + cameras.view[:, None, :3, 3]
    seen = local @ cameras.intrinsics.mT
    y, x = torch.meshgrid(torch.arange(14) + 0.5, torch.arange(20) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(1, -1, 2).double().expand(20, -1, 2)
    torch.testing.assert_close(seen[..., :2] / seen[..., 2:], pixels, rtol=0, atol=1e-10)
    if normalised:
        torch.testing.assert_close(directions.norm(dim=-1), torch.ones(20, 14, 20, dtype=torch.float64), **TIGHT)
    else:
        torch.testing.assert_close(local[..., 2], torch.full((20, 280), 1.7, dtype=torch.float64), rtol=0, atol=1e-10)


def test_clip_coordinates_agree_with_pixels_and_depths():
    cameras = random_orbits()
    shifted = Cameras(cameras.c2w, cameras.focal, cameras.centre + 1.5, 20, 14)
    near, far = 0.5, 4.0
    origins, directions = shifted.rays(normalised=False)
    for depth, ndc in ((near, -1.0), (far, 1.0)):
        points = torch.cat([origins + depth * directions, torch.ones(20, 14, 20, 1)], -1).reshape(20, -1, 4)
        local = points @ torch.linalg.inv(shifted.c2w).mT
        clip = local @ shifted.projection(near, far).mT
        x, y, z = (clip[..., :3] / clip[..., 3:]).reshape(20, 14, 20, 3).unbind(-1)
        torch.testing.assert_close(z, torch.full_like(z, ndc), rtol=0, atol=1e-9)
        torch.testing.assert_close((x[0, 0] + 1) * 10, torch.arange(20) + 0.5, rtol=0, atol=1e-9, check_dtype=False)
        torch.testing.assert_close((1 - y[0, :, 0]) * 7, torch.arange(14) + 0.5, rtol=0, atol=1e-9, check_dtype=False)


def test_parallel_rays_by_hand():
    origins, directions = orbit(torch.zeros(1, dtype=torch.float64), 0.0, 2.0, width=4, height=2).parallel_rays(1.0)
    torch.testing.assert_close(origins[0, 0, 0], torch.tensor([2.0, -0.75, 0.25], dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(origins[0, 1, 3], torch.tensor([2.0, 0.75, -0.25], dtype=torch.float64), **TIGHT)
    torch.testing.assert_close(directions.reshape(-1, 3), -torch.eye(3).double()[:1].expand(8, 3), **TIGHT)


def test_resized_cameras_see_the_same():
    cameras = random_orbits()
    fine = cameras.resized(40, 28)
    _, directions = cameras.rays(normalised=False)
    _, finer = fine.rays(normalised=False)
    torch.testing.assert_close(finer.reshape(20, 14, 2, 20, 2, 3).mean((2, 4)), directions, rtol=0, atol=1e-12)
    torch.testing.assert_close(fine.fovy, cameras.fovy, rtol=0, atol=1e-9)


def test_some_of_the_cameras():
    cameras = turntable(6, width=8, height=8)
    torch.testing.assert_close(angles(cameras.position)[0], torch.tensor([0.0, 60, 120, 180, -120, -60]), rtol=0, atol=1e-4)
    assert torch.equal(cameras[[1, 3]].c2w, cameras.c2w[[1, 3]]) and len(cameras[2:]) == 4
    assert cameras.to(torch.float64).focal.dtype == torch.float64


def numbers(B, seed=0):
    return torch.rand(B, NUMBERS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_elevations_are_uniform_in_degrees_or_in_area():
    B = 4000
    ends = torch.deg2rad(torch.tensor([-10.0, 45.0], dtype=torch.float64))
    for share, value in ((0.0, lambda e: (e + 10) / 55), (1.0, lambda e: torch.deg2rad(e).sin() - ends[0].sin())):
        law = CameraLaw(on_sphere=share)
        x = value(angles(law(numbers(B), 8, 8).position)[1]).sort().values
        x = x if share == 0 else x / (ends[1].sin() - ends[0].sin())
        uniform = (torch.arange(B) + 0.5) / B
        assert float((x - uniform).abs().max()) < 1.63 / B**0.5  # Kolmogorov-Smirnov at 1 %
    half = angles(CameraLaw(on_sphere=0.5)(numbers(B), 8, 8).position)[1]
    by_hand = torch.stack([angles(CameraLaw(on_sphere=s)(numbers(B), 8, 8).position)[1] for s in (0.0, 1.0)])
    assert torch.equal(half, torch.where(numbers(B)[:, 0] < 0.5, by_hand[1], by_hand[0]))


def test_azimuths_are_stratified_in_the_whole_and_in_parts():
    law, u = CameraLaw(), numbers(12)
    azimuth, _, distance = angles(law(u, 8, 8).position)
    assert torch.equal(((azimuth + 180) * 12 / 360).floor(), torch.arange(12.0, dtype=torch.float64))
    assert float(distance.min()) >= 1.0 and float(distance.max()) <= 1.5
    parts = [law(u[i : i + 4], 8, 8, torch.arange(i, i + 4), 12).c2w for i in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), law(u, 8, 8).c2w)
    free = angles(CameraLaw(stratified=False)(u, 8, 8).position)[0]
    torch.testing.assert_close(free, 360 * u[:, 2] - 180, rtol=0, atol=1e-9)


def test_groups_stand_around_the_object():
    law = CameraLaw(elevation=(0.0, 30.0), fovy=(15.0, 60.0), distance=(0.8, 1.0), group=4, relative=True)
    cameras = law(numbers(8), 8, 8)
    azimuth, elevation, distance = (x.reshape(2, 4) for x in angles(cameras.position))
    torch.testing.assert_close(azimuth.diff(dim=1) % 360, torch.full((2, 3), 90.0).double(), rtol=0, atol=1e-9)
    assert float((elevation - elevation[:, :1]).abs().max()) < 1e-9 and float(distance.diff(dim=0).abs().min()) > 1e-3
    size = distance * torch.tan(torch.deg2rad(cameras.fovy.reshape(2, 4)) / 2)
    assert bool(((size > 0.8) & (size < 1.0)).all())


def test_jitter_has_the_sizes_that_are_asked_for():
    u = numbers(4000)
    still = CameraLaw()(u, 8, 8)
    moved = CameraLaw(move=0.1, aim=0.05, tilt=0.02)(u, 8, 8)
    off = (moved.position - still.position) / 0.1
    assert float(off.abs().max()) <= 1 and abs(float(off.square().mean()) - 1 / 3) < 0.02
    aimed = CameraLaw(aim=0.05)(u, 8, 8)
    look = -aimed.c2w[:, :3, 2]
    along = (-aimed.position * look).sum(1, keepdim=True)
    miss = (aimed.position + along * look).norm(dim=1)  # distance of the line of sight from the origin
    # the aim's two components across the line of sight: sqrt(2) * 0.05, as the distances are much larger
    assert abs(float(miss.square().mean().sqrt()) / (0.05 * 2**0.5) - 1) < 0.03


def test_ranges_widen_linearly():
    law = between(CameraLaw(azimuth=(-30.0, 30.0), move=0.2), CameraLaw(azimuth=(-180.0, 180.0), group=2), 0.5)
    assert law.azimuth == (-105.0, 105.0) and law.move == 0.1 and law.group == 2 and law.fovy == (40.0, 70.0)


def rigid(change):
    c2w = turntable(3).c2w.clone()
    change(c2w)
    return c2w


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pinhole(rigid(lambda m: m[1, :, 1].neg_()), 50.0, 8, 8), r"cameras \[1\] have det\(R\) = -1, a mirror image"),
        (lambda: pinhole(rigid(lambda m: m[2, :3, 0].mul_(2)), 50.0, 8, 8), "camera 2 is no rigid motion"),
        (lambda: pinhole(rigid(lambda m: m[0, 0, 3].fill_(math.nan)), 50.0, 8, 8), "camera 0 is no rigid motion"),
        (lambda: pinhole(turntable(1).c2w, 180.0, 8, 8), r"field of view of \[180.0\] degrees: it must lie between 0 and 180"),
        (lambda: orbit(0.0, width=0), "an image of 0 x 64 pixels: cameras need at least 1 x 1"),
        (lambda: orbit(0.0, 91.0), r"elevation of 91 degrees: it must lie in \[-90, 90\]"),
        (lambda: orbit(0.0, 0.0, -1.0), "orbit at distance -1: it must be positive"),
        (lambda: turntable(0), "turntable of 0 views"),
        (lambda: orbit(0.0).projection(1.0, 1.0), "near=1 and far=1: a projection needs 0 < near < far"),
        (lambda: orbit(0.0).parallel_rays(0.0), "extent=0: the height of an orthographic image must be positive"),
        (lambda: look_at(torch.ones(1, 3), torch.ones(1, 3), torch.eye(3)[2:]), "a camera stands at its own target"),
        (lambda: look_at(torch.eye(3)[2:], torch.zeros(1, 3), torch.eye(3)[2:]), r"camera 0 looks along its up vector"),
        (
            lambda: Cameras(turntable(2).c2w, torch.ones(2), torch.ones(2, 2), 4, 4),
            r"focal \(2,\) and centre \(2, 2\) do not fit",
        ),
        (lambda: Cameras(turntable(1).c2w, torch.zeros(1, 2), torch.ones(1, 2), 4, 4), "a focal length must be positive"),
        (
            lambda: CameraLaw(elevation=(30.0, 10.0)),
            r"elevation=\(30, 10\): give \(low, high\) with low <= high, in \[-90, 90\]",
        ),
        (lambda: CameraLaw(distance=(0.0, 1.0)), "must be above 0"),
        (lambda: CameraLaw(on_sphere=1.5), r"on_sphere=1.5 is a share in \[0, 1\]"),
        (lambda: CameraLaw(group=4)(numbers(6), 8, 8), r"shape \(6, 14\): a law takes \(B, 14\), B a positive multiple of 4"),
        (lambda: between(CameraLaw(), CameraLaw(), 1.1), "progress=1.1: it goes from 0 to 1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()
