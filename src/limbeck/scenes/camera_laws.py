"""Laws of random cameras: functions of uniform numbers that the caller gives, so that noise keyed by sample decides."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.scenes.cameras import Cameras, look_at, on_sphere, pinhole

NUMBERS = 14  # uniform numbers per camera: which elevation law, elevation, azimuth, distance, fovy, then 3 x 3 of jitter

Range = tuple[float, float]
Number = TypeVar("Number", float, Range)


@dataclass(frozen=True)
class CameraLaw:
    """Cameras around the origin from uniform numbers; angles in degrees, ProlificDreamer's ranges by default.

    Elevation is uniform in degrees, or for a share ``on_sphere`` of the cameras uniform in area on the same band of the sphere.
    Azimuth is stratified: camera i of B takes u from [i / B, (i + 1) / B). ``group`` cameras in a row share all numbers and
    stand at equal steps of a full turn, as multi-view teachers want them. ``relative``: distances are in units of
    1 / tan(fovy / 2), so that the object keeps its size in the image (MVDream). Jitter: the position moves by up to
    ``move`` in each axis, the target by N(0, ``aim``^2), the up vector by N(0, ``tilt``^2).
    """

    azimuth: Range = (-180.0, 180.0)
    elevation: Range = (-10.0, 45.0)
    distance: Range = (1.0, 1.5)
    fovy: Range = (40.0, 70.0)
    on_sphere: float = 0.5
    stratified: bool = True
    group: int = 1
    relative: bool = False
    move: float = 0.0
    aim: float = 0.0
    tilt: float = 0.0

    def __post_init__(self) -> None:
        for name, least, most in (("azimuth", -360, 360), ("elevation", -90, 90), ("distance", 0, None), ("fovy", 0, 180)):
            low, high = getattr(self, name)
            if not (least <= low <= high and (most is None or high <= most)):
                bound = f"from {least}" if most is None else f"in [{least}, {most}]"
                raise LimbeckError(f"{name}=({low:g}, {high:g}): give (low, high) with low <= high, {bound}")
        if self.distance[0] <= 0 or self.fovy[0] <= 0 or self.fovy[1] >= 180:
            raise LimbeckError(f"distance={self.distance} must be above 0 and fovy={self.fovy} within (0, 180), ends excluded")
        if not 0 <= self.on_sphere <= 1 or self.group < 1:
            raise LimbeckError(f"on_sphere={self.on_sphere:g} is a share in [0, 1], and group={self.group} at least 1")

    def __call__(self, u: Tensor, width: int, height: int, place: Tensor | None = None, of: int | None = None) -> Cameras:
        """B cameras from ``u`` (B, NUMBERS) in [0, 1); of a group's numbers the first row decides.

        ``place`` (B,) and ``of``: where these cameras stand in a bigger batch that is worked on in parts, for the strata;
        parts hold whole groups. Raises LimbeckError for another shape.
        """
        B = len(u)
        if u.shape != (B, NUMBERS) or B == 0 or B % self.group:
            raise LimbeckError(
                f"uniform numbers of shape {tuple(u.shape)}: a law takes (B, {NUMBERS}), B a positive multiple of {self.group}"
            )
        first = torch.arange(B, device=u.device) // self.group * self.group
        member = torch.arange(B, device=u.device) - first
        u = u[first]
        place = torch.arange(B, device=u.device) if place is None else place
        azimuth = self._azimuth(u[:, 2], place // self.group, (of or B) // self.group) + 360.0 / self.group * member
        elevation = self._elevation(u[:, 0], u[:, 1])
        fovy, distance = _within(self.fovy, u[:, 4]), _within(self.distance, u[:, 3])
        if self.relative:
            distance = distance / torch.tan(torch.deg2rad(fovy) / 2)
        normal = torch.special.ndtri(u[:, 8:].double().clamp(1e-12, 1 - 1e-12)).to(u)
        position = on_sphere(azimuth, elevation, distance) + self.move * (2 * u[:, 5:8] - 1)
        up = on_sphere(azimuth, elevation + 90, torch.ones_like(distance)) + self.tilt * normal[:, 3:]
        return pinhole(look_at(position, self.aim * normal[:, :3], up), fovy, width, height)

    def _azimuth(self, u: Tensor, stratum: Tensor, strata: int) -> Tensor:
        return _within(self.azimuth, (stratum + u) / strata if self.stratified else u)

    def _elevation(self, choice: Tensor, u: Tensor) -> Tensor:
        sines = torch.sin(torch.deg2rad(u.new_tensor(self.elevation)))
        on_band = torch.rad2deg(torch.asin(sines[0] + (sines[1] - sines[0]) * u))
        return torch.where(choice < self.on_sphere, on_band, _within(self.elevation, u))


def between(first: CameraLaw, last: CameraLaw, progress: float) -> CameraLaw:
    """The law at ``progress`` in [0, 1] from first to last: every range and size moves linearly (ranges that widen)."""
    if not 0 <= progress <= 1:
        raise LimbeckError(f"progress={progress:g}: it goes from 0 to 1")
    moving = [f.name for f in fields(CameraLaw) if f.name not in ("stratified", "group", "relative")]
    return replace(last, **{name: _mix(getattr(first, name), getattr(last, name), progress) for name in moving})


def _mix(a: Number, b: Number, s: float) -> Number:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return ((1 - s) * a[0] + s * b[0], (1 - s) * a[1] + s * b[1])
    return (1 - s) * a + s * b


def _within(bounds: Range, u: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * u
