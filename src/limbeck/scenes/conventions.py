"""Camera matrices of other programs, in both directions, with the names of their conventions.

Every convention is a camera-to-world matrix (unless said), written here as ours = WORLD @ theirs @ CAMERA:

- ``opengl``, ``blender``: z up, camera x right, y up, looking along -z, as here; Blender's own and NeRF-synthetic's.
- ``opencv``: the same world, camera x right, y down, z forward.
- ``colmap``: the inverse of ``opencv``, world to camera; also gsplat's ``viewmats``.
- ``pytorch3d``: the same world, camera x left, y up, z forward. Its R and T act on row vectors, x R + T:
  :func:`pytorch3d_matrices` and :func:`from_pytorch3d` read and write them.
- ``y-up``: OpenGL cameras in a world with y up and the object's front at +z (glTF, three.js).
- ``stable-dreamfusion``: the world of ``y-up``; angles are the polar one from y and phi from +z towards +x
  (elevation = 90 - polar, azimuth = phi). Its cameras have x to the left, y up and z backward: det(R) = -1, so its images are
  mirrored. The converted cameras are not: their images are its images flipped left to right.
"""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, unknown
from limbeck.scenes.cameras import check_rigid

_SAME = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_Y_UP = ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))  # their z is our x, their x our y, their y our z
CONVENTIONS: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, float, float]]] = {
    "opengl": (_SAME, (1.0, 1.0, 1.0)),
    "blender": (_SAME, (1.0, 1.0, 1.0)),
    "opencv": (_SAME, (1.0, -1.0, -1.0)),
    "colmap": (_SAME, (1.0, -1.0, -1.0)),
    "pytorch3d": (_SAME, (-1.0, 1.0, -1.0)),
    "y-up": (_Y_UP, (1.0, 1.0, 1.0)),
    "stable-dreamfusion": (_Y_UP, (-1.0, 1.0, 1.0)),
}


def from_convention(matrices: Tensor, convention: str) -> Tensor:
    """Our c2w (B, 4, 4) of matrices (B, 4, 4) in another convention.

    Raises LimbeckError for an unknown convention, and where the result is mirrored or no rigid motion: then the matrices were
    not of this convention.
    """
    world, camera = _factors(matrices, convention)
    c2w = world @ (_inverse(matrices) if convention == "colmap" else matrices) @ camera
    try:
        check_rigid(c2w)
    except LimbeckError as error:
        raise LimbeckError(f"the matrices are not {convention}: {error}") from error
    return c2w


def to_convention(c2w: Tensor, convention: str) -> Tensor:
    """Our c2w (B, 4, 4) as another convention has it; the inverse of :func:`from_convention`."""
    world, camera = _factors(c2w, convention)
    check_rigid(c2w)
    theirs = world.mT @ c2w @ camera  # both are their own inverse's transpose
    return _inverse(theirs) if convention == "colmap" else theirs


def pytorch3d_matrices(c2w: Tensor) -> tuple[Tensor, Tensor]:
    """(R (B, 3, 3), T (B, 3)) of PyTorch3D: x_camera = x_world R + T."""
    theirs = to_convention(c2w, "pytorch3d")
    R = theirs[:, :3, :3]
    return R, -(theirs[:, None, :3, 3] @ R)[:, 0]


def from_pytorch3d(R: Tensor, T: Tensor) -> Tensor:
    """Our c2w (B, 4, 4) of PyTorch3D's R (B, 3, 3) and T (B, 3)."""
    theirs = torch.eye(4, dtype=R.dtype, device=R.device).repeat(len(R), 1, 1)
    theirs[:, :3, :3] = R
    theirs[:, :3, 3] = -(T[:, None] @ R.mT)[:, 0]
    return from_convention(theirs, "pytorch3d")


def _factors(like: Tensor, convention: str) -> tuple[Tensor, Tensor]:
    if convention not in CONVENTIONS:
        raise unknown("camera convention", convention, CONVENTIONS)
    if like.ndim != 3 or like.shape[1:] != (4, 4):
        raise LimbeckError(f"camera matrices of shape {tuple(like.shape)}: expected (B, 4, 4)")
    world, camera = CONVENTIONS[convention]
    W = torch.eye(4, dtype=like.dtype, device=like.device)
    W[:3, :3] = like.new_tensor(world)
    return W, torch.diag(like.new_tensor((*camera, 1.0)))


def _inverse(rigid: Tensor) -> Tensor:
    """Of a rotation and a translation, without a solver's rounding."""
    R = rigid[:, :3, :3].mT
    top = torch.cat([R, -R @ rigid[:, :3, 3:]], -1)
    return torch.cat([top, rigid[:, 3:]], 1)
