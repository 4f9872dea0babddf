"""Cameras in the library's one convention, their rays and matrices, and the orbits around an object.

World: right-handed, z up, +x the front of the object. Camera: OpenGL axes (x right, y up, looking along -z), so the columns of
``c2w`` are [right, up, -look, position]. Azimuth 0 is on +x and grows towards +y, in (-180, 180]; elevation is in [-90, 90];
both in degrees, like every angle here. Pixel centres lie at +0.5; row 0 is the top. :mod:`limbeck.scenes.conventions`
converts from and to other conventions.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError

ROUNDING = 1e-4  # how far a rotation in float32 may be from orthonormal


@dataclass(frozen=True, eq=False)
class Cameras:
    """B pinhole cameras of one image size.

    ``c2w`` (B, 4, 4) camera to world; ``focal`` (B, 2) and ``centre`` (B, 2) in pixels, x first; ``width`` and ``height`` in
    pixels. Raises LimbeckError for what is no rigid motion (mirrored frames are named), no focal length, or no pixels.
    """

    c2w: Tensor
    focal: Tensor
    centre: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        B = len(self.c2w)
        if self.c2w.shape != (B, 4, 4) or self.focal.shape != (B, 2) or self.centre.shape != (B, 2):
            raise LimbeckError(
                f"c2w {tuple(self.c2w.shape)}, focal {tuple(self.focal.shape)} and centre {tuple(self.centre.shape)} do not "
                "fit: cameras need (B, 4, 4), (B, 2) and (B, 2)"
            )
        if self.width < 1 or self.height < 1:
            raise LimbeckError(f"an image of {self.width} x {self.height} pixels: cameras need at least 1 x 1")
        check_rigid(self.c2w)
        if not bool((self.focal > 0).all() & self.focal.isfinite().all() & self.centre.isfinite().all()):
            raise LimbeckError("a focal length must be positive and finite, in pixels, and so must the centre be finite")

    def __len__(self) -> int:
        return len(self.c2w)

    def __getitem__(self, rows: slice | Tensor | list[int]) -> "Cameras":
        """Some of the cameras, by slice, indices or mask; always a batch."""
        return replace(self, c2w=self.c2w[rows], focal=self.focal[rows], centre=self.centre[rows])

    def to(self, target: torch.dtype | torch.device | str) -> "Cameras":
        """The same cameras in another dtype or on another device."""
        return replace(self, c2w=self.c2w.to(target), focal=self.focal.to(target), centre=self.centre.to(target))

    def resized(self, width: int, height: int) -> "Cameras":
        """The same views with another number of pixels."""
        ratio = self.focal.new_tensor([width / self.width, height / self.height])
        return replace(self, focal=self.focal * ratio, centre=self.centre * ratio, width=width, height=height)

    @property
    def position(self) -> Tensor:
        """(B, 3)."""
        return self.c2w[:, :3, 3]

    @property
    def fovy(self) -> Tensor:
        """The vertical field of view in degrees, (B,), of a centred camera."""
        return torch.rad2deg(2 * torch.atan(self.height / (2 * self.focal[:, 1])))

    @property
    def intrinsics(self) -> Tensor:
        """K (B, 3, 3): pixels from OpenCV camera coordinates, K (x, y, z) / z."""
        K = torch.zeros(len(self), 3, 3, dtype=self.focal.dtype, device=self.focal.device)
        K[:, 0, 0], K[:, 1, 1] = self.focal.unbind(1)
        K[:, :2, 2] = self.centre
        K[:, 2, 2] = 1
        return K

    @property
    def view(self) -> Tensor:
        """World to camera with OpenCV axes (x right, y down, z forward), (B, 4, 4), as COLMAP and gsplat want it."""
        R = self.c2w[:, :3, :3].mT * self.c2w.new_tensor([1.0, -1.0, -1.0])[:, None]
        top = torch.cat([R, -R @ self.position[..., None]], -1)
        return torch.cat([top, self.c2w[:, 3:]], 1)

    def rays(self, normalised: bool = True) -> tuple[Tensor, Tensor]:
        """(origins, directions) through the pixel centres in the world, each (B, height, width, 3).

        Directions have length 1, or else depth 1 along the camera's axis: then a distance along the ray is a depth.
        """
        like = self.c2w
        x = torch.arange(self.width, dtype=like.dtype, device=like.device) + 0.5
        y = torch.arange(self.height, dtype=like.dtype, device=like.device) + 0.5
        u = (x - self.centre[:, :1]) / self.focal[:, :1]
        v = (self.centre[:, 1:] - y) / self.focal[:, 1:]
        size = (len(self), self.height, self.width)
        local = torch.stack([u[:, None].expand(size), v[:, :, None].expand(size), -like.new_ones(size)], -1)
        directions = local @ self.c2w[:, None, :3, :3].mT
        origins = self.position[:, None, None].expand(*size, 3)
        return origins, F.normalize(directions, dim=-1) if normalised else directions

    def parallel_rays(self, extent: float) -> tuple[Tensor, Tensor]:
        """Orthographic (origins, directions), each (B, height, width, 3): all along the camera's axis, through an image in the
        camera's plane that is ``extent`` high in world units. Focal lengths play no part.
        """
        if not extent > 0:
            raise LimbeckError(f"extent={extent:g}: the height of an orthographic image must be positive, in world units")
        like, pixel = self.c2w, extent / self.height
        x = (torch.arange(self.width, dtype=like.dtype, device=like.device) + 0.5 - self.width / 2) * pixel
        y = (self.height / 2 - torch.arange(self.height, dtype=like.dtype, device=like.device) - 0.5) * pixel
        right, up, back = like[:, None, None, :3, :3].unbind(-1)
        origins = self.position[:, None, None] + x[:, None] * right + y[:, None, None] * up
        return origins, -back.expand_as(origins)

    def projection(self, near: float = 0.01, far: float = 100.0) -> Tensor:
        """The OpenGL clip matrix (B, 4, 4), y up; a rasteriser whose row 0 is the top wants its second row negated."""
        if not 0 < near < far:
            raise LimbeckError(f"near={near:g} and far={far:g}: a projection needs 0 < near < far")
        P = torch.zeros_like(self.c2w)
        size = self.focal.new_tensor([self.width, self.height])
        P[:, 0, 0], P[:, 1, 1] = (2 * self.focal / size).unbind(1)
        P[:, :2, 2] = (1 - 2 * self.centre / size) * self.focal.new_tensor([1.0, -1.0])
        P[:, 2, 2], P[:, 2, 3] = -(far + near) / (far - near), -2 * far * near / (far - near)
        P[:, 3, 2] = -1
        return P


def check_rigid(c2w: Tensor) -> None:
    """Raise LimbeckError where a matrix of (B, 4, 4) is not a rotation and a translation; says which, and whether it is mirrored."""
    R = c2w[:, :3, :3].double()
    finite = c2w.isfinite().all(-1).all(-1)
    error = (R @ R.mT - torch.eye(3, dtype=R.dtype, device=R.device)).abs().amax((1, 2))
    last = (c2w[:, 3].double() - R.new_tensor([0.0, 0.0, 0.0, 1.0])).abs().amax(1)
    rigid = finite & (error < ROUNDING) & (last < ROUNDING)
    if not bool(rigid.all()):
        which = int((~rigid).nonzero()[0])
        raise LimbeckError(
            f"camera {which} is no rigid motion: c2w needs an orthonormal rotation, finite numbers and the last row 0 0 0 1"
        )
    mirrored = torch.linalg.det(R) < 0
    if bool(mirrored.any()):
        raise LimbeckError(
            f"cameras {mirrored.nonzero()[:, 0].tolist()} have det(R) = -1, a mirror image: one axis of another convention "
            "was flipped alone (OpenCV flips y and z, PyTorch3D x and z); use limbeck.scenes.from_convention"
        )


def look_at(position: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """c2w (B, 4, 4) of cameras at ``position`` (B, 3) that look at ``target`` (B or 1, 3): right = look x up, up' = right x look.

    Raises LimbeckError where position and target coincide, or the line of sight is parallel to ``up``.
    """
    to = target - position
    distance = to.norm(dim=1, keepdim=True)
    if bool((distance <= 0).any()):
        raise LimbeckError("a camera stands at its own target: move it away, so that it has a direction to look in")
    look = to / distance
    right = torch.linalg.cross(look, F.normalize(up, dim=1).expand_as(look))
    length = right.norm(dim=1, keepdim=True)
    if bool((length < 1e-5).any()):
        which = int((length < 1e-5).nonzero()[0, 0])
        raise LimbeckError(f"camera {which} looks along its up vector {up.expand_as(look)[which].tolist()}: choose another up")
    right = right / length
    columns = torch.stack([right, torch.linalg.cross(right, look), -look, position], -1)
    return torch.cat([columns, columns.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(columns), 1, 4)], 1)


def on_sphere(azimuth: Tensor, elevation: Tensor, distance: Tensor) -> Tensor:
    """Positions r (cos e cos a, cos e sin a, sin e), (B, 3), of angles in degrees."""
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    return distance[..., None] * torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)


def angles(position: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(azimuth in (-180, 180], elevation, distance) of positions seen from ``target`` (default: the origin), each (B,)."""
    x, y, z = (position if target is None else position - target).unbind(-1)
    across = torch.hypot(x, y)
    azimuth = torch.rad2deg(torch.atan2(y, x))
    return torch.where(azimuth <= -180, 180.0, azimuth), torch.rad2deg(torch.atan2(z, across)), torch.hypot(across, z)


def pinhole(c2w: Tensor, fovy: Tensor | float, width: int, height: int) -> Cameras:
    """Cameras with square pixels and a centred axis; ``fovy`` in degrees, (B,) or one number, in (0, 180)."""
    fovy = torch.as_tensor(fovy, dtype=c2w.dtype, device=c2w.device).expand(len(c2w))
    if not bool(((fovy > 0) & (fovy < 180)).all()):
        raise LimbeckError(f"a field of view of {fovy.tolist()} degrees: it must lie between 0 and 180, both excluded")
    focal = height / (2 * torch.tan(torch.deg2rad(fovy) / 2))
    centre = c2w.new_tensor([width / 2, height / 2])
    return Cameras(c2w, focal[:, None].expand(-1, 2), centre.expand(len(c2w), 2), width, height)


def orbit(
    azimuth: Tensor | float,
    elevation: Tensor | float = 0.0,
    distance: Tensor | float = 2.5,
    fovy: Tensor | float = 49.1,
    width: int = 64,
    height: int = 64,
    target: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Cameras:
    """Cameras around ``target``, upright; angles in degrees, numbers or (B,) tensors.

    Straight above or below they are the limit of nearly vertical views at that azimuth. Raises LimbeckError for a distance that
    is not positive and an elevation beyond 90 degrees.
    """
    given = [torch.as_tensor(x) for x in (azimuth, elevation, distance)]
    dtype = next((x.dtype for x in given if x.is_floating_point() and x.ndim), torch.get_default_dtype())
    a, e, r = torch.broadcast_tensors(*(x.to(dtype).reshape(-1) for x in given))
    if not bool((r > 0).all()):
        raise LimbeckError(f"an orbit at distance {float(r.min()):g}: it must be positive")
    if not bool((e.abs() <= 90).all()):
        raise LimbeckError(f"an elevation of {float(e[e.abs().argmax()]):g} degrees: it must lie in [-90, 90]")
    centre = a.new_tensor(target)
    up = on_sphere(a, e + 90, torch.ones_like(r))  # along the meridian: z's part across the line of sight
    return pinhole(look_at(on_sphere(a, e, r) + centre, centre[None], up), fovy, width, height)


def turntable(views: int, elevation: float = 0.0, **options: float | int | tuple[float, float, float]) -> Cameras:
    """``views`` cameras at equal steps of azimuth, from the front; further options as in :func:`orbit`."""
    if views < 1:
        raise LimbeckError(f"a turntable of {views} views: it needs at least 1")
    azimuth = torch.arange(views, dtype=torch.float64) * 360 / views
    turned = torch.where(azimuth > 180, azimuth - 360, azimuth).to(torch.get_default_dtype())
    return orbit(turned, elevation, **options)  # type: ignore[arg-type]
