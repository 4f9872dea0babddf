"""Other conventions: by hand, by their own formulas, and there and back."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.scenes import (
    CONVENTIONS,
    angles,
    from_convention,
    from_pytorch3d,
    orbit,
    pytorch3d_matrices,
    to_convention,
)

AZIMUTH = torch.tensor([0.0, 35.0, -120.0, 180.0], dtype=torch.float64)
ELEVATION = torch.tensor([0.0, 40.0, -20.0, 75.0], dtype=torch.float64)
CAMERAS = orbit(AZIMUTH, ELEVATION, 1.5)
POINT = torch.tensor([[0.2, -0.3, 0.4]], dtype=torch.float64)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_there_and_back(convention):
    there = to_convention(CAMERAS.c2w, convention)
    torch.testing.assert_close(from_convention(there, convention), CAMERAS.c2w, rtol=0, atol=1e-14)
    determinant = -1.0 if convention == "stable-dreamfusion" else 1.0
    torch.testing.assert_close(torch.linalg.det(there[:, :3, :3]), torch.full((4,), determinant).double(), rtol=0, atol=1e-12)


def ours(point):
    """The point in our camera coordinates, (4, 3)."""
    return (point - CAMERAS.position)[:, None] @ CAMERAS.c2w[:, :3, :3]


def test_a_point_in_opencv_coordinates():
    flip = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    w2c = to_convention(CAMERAS.c2w, "colmap")
    torch.testing.assert_close((POINT @ w2c[:, :3, :3].mT) + w2c[:, None, :3, 3], ours(POINT) * flip, rtol=0, atol=1e-12)
    torch.testing.assert_close(w2c, torch.linalg.inv(to_convention(CAMERAS.c2w, "opencv")), rtol=0, atol=1e-12)
    torch.testing.assert_close(w2c, CAMERAS.view, rtol=0, atol=1e-12)


def test_a_point_in_pytorch3d_coordinates():
    R, T = pytorch3d_matrices(CAMERAS.c2w)
    flip = torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)  # x left, y up, z forward
    torch.testing.assert_close(POINT @ R + T[:, None], ours(POINT) * flip, rtol=0, atol=1e-12)
    torch.testing.assert_close(from_pytorch3d(R, T), CAMERAS.c2w, rtol=0, atol=1e-12)


def test_stable_dreamfusion_by_its_own_angles():
    # polar angle from y, phi from z towards x; axes cross(backward, up), cross(that, backward), backward
    polar, phi = torch.deg2rad(90 - ELEVATION), torch.deg2rad(AZIMUTH)
    position = 1.5 * torch.stack([polar.sin() * phi.sin(), polar.cos(), polar.sin() * phi.cos()], 1)
    backward = F.normalize(position, dim=1)
    first = F.normalize(torch.linalg.cross(backward, torch.tensor([[0.0, 1.0, 0.0]]).double().expand(4, 3)), dim=1)
    pose = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    pose[:, :3] = torch.stack([first, torch.linalg.cross(first, backward), backward, position], -1)
    torch.testing.assert_close(from_convention(pose, "stable-dreamfusion"), CAMERAS.c2w, rtol=0, atol=1e-12)


def test_y_up_has_its_front_at_z():
    there = to_convention(CAMERAS.c2w, "y-up")
    torch.testing.assert_close(there[0, :3, 3], torch.tensor([0.0, 0.0, 1.5]).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(there[0, :3, :3], torch.eye(3).double(), rtol=0, atol=1e-12)
    _, elevation, _ = angles(CAMERAS.position)
    torch.testing.assert_close(torch.rad2deg(torch.asin(there[:, 1, 3] / 1.5)), elevation, rtol=0, atol=1e-9)


def test_a_mirrored_frame_is_named():
    mirrored = to_convention(CAMERAS.c2w, "opencv").clone()
    mirrored[2, :3, 1] *= -1  # y up again, z still forward
    with pytest.raises(LimbeckError, match=r"the matrices are not opencv: cameras \[2\] have det\(R\) = -1"):
        from_convention(mirrored, "opencv")
    with pytest.raises(LimbeckError, match=r"the matrices are not opengl: cameras \[0, 1, 2, 3\] have det\(R\) = -1"):
        from_convention(to_convention(CAMERAS.c2w, "stable-dreamfusion"), "opengl")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_convention(CAMERAS.c2w, "open-cv"), "unknown camera convention 'open-cv': did you mean 'opencv'"),
        (lambda: from_convention(CAMERAS.c2w[0], "opencv"), r"camera matrices of shape \(4, 4\): expected \(B, 4, 4\)"),
        (lambda: to_convention(2 * CAMERAS.c2w, "opencv"), "camera 0 is no rigid motion"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
