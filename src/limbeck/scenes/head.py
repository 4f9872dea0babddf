"""A test object known in closed form: a head of ellipsoids with a face at +x, different from all sides and from its mirror image.

The skull has two eyes and a mouth painted in front and dark hair behind; a nose; and an ear of its own colour on each side. A
pixel is the colour of the nearest ellipsoid on its ray. Rendered from some views, variants of it make the finite library of an
exact image teacher (:class:`limbeck.denoisers.FiniteSetDenoiser`), whose three-dimensional truth is known.
"""

import colorsys
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.scenes.cameras import Cameras, on_sphere

Colour = tuple[float, float, float]
EYE, MOUTH = (24.0, 20.0), (0.0, -28.0)  # azimuth (of both eyes, with either sign) and elevation on the skull, degrees


@dataclass(frozen=True)
class Head:
    """Colours in [0, 1]; ``radii`` of the skull in world units along x, y and z. The ears reach 0.12 beyond it."""

    radii: tuple[float, float, float] = (0.55, 0.5, 0.62)
    skin: Colour = (0.85, 0.62, 0.45)
    hair: Colour = (0.12, 0.1, 0.16)
    mouth: Colour = (0.75, 0.1, 0.15)
    left_ear: Colour = (0.15, 0.35, 0.9)
    right_ear: Colour = (0.95, 0.85, 0.1)

    def __post_init__(self) -> None:
        if min(self.radii) <= 0:
            raise LimbeckError(f"radii={self.radii}: a head needs three positive ones")


class View(NamedTuple):
    """Pictures (B, 3, H, W) in [-1, 1], the share of each pixel that the head covers (B, 1, H, W), and the distance along the
    ray, summed over that share (B, 1, H, W).
    """

    image: Tensor
    opacity: Tensor
    depth: Tensor


def heads(count: int) -> list[Head]:
    """``count`` heads that differ in the hue of the skin and the ears and in the skull's stretch."""
    if count < 1:
        raise LimbeckError(f"{count} heads: give at least 1")
    made = []
    for k in range(count):
        hue, stretch = k / count, 1 + 0.25 * ((k % 3) - 1) / 2
        made.append(
            Head(
                radii=(0.55, 0.5, 0.6 * stretch),
                skin=colorsys.hsv_to_rgb(0.07 + hue, 0.45, 0.85),
                left_ear=colorsys.hsv_to_rgb((0.6 + hue) % 1, 0.85, 0.9),
                right_ear=colorsys.hsv_to_rgb((0.15 + hue) % 1, 0.9, 0.95),
            )
        )
    return made


def render_head(head: Head, cameras: Cameras, extent: float | None = None, background: float = 1.0, samples: int = 3) -> View:
    """The head from B cameras, in perspective, or in parallel rays through an image ``extent`` high in world units.

    ``background``: a grey in [-1, 1]; ``samples`` x ``samples`` rays per pixel.
    """
    fine = cameras.resized(cameras.width * samples, cameras.height * samples)
    origins, directions = fine.rays() if extent is None else fine.parallel_rays(extent)
    colour, hit, distance = trace(head, origins, directions)
    image = torch.where(hit, 2 * colour - 1, background)
    parts = (image, hit.to(image.dtype), torch.where(hit, distance, 0))
    return View(*(F.avg_pool2d(part.movedim(-1, 1), samples) for part in parts))


def head_library(
    count: int, cameras: Cameras, extent: float | None = None, background: float = 1.0, samples: int = 3
) -> Tensor:
    """Images of ``count`` heads by B cameras, (count, B, 3, H, W) in [-1, 1]."""
    return torch.stack([render_head(head, cameras, extent, background, samples).image for head in heads(count)])


def trace(head: Head, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(colour (..., 3) in [0, 1], whether the ray meets the head (..., 1), distance along it (..., 1)) of rays (..., 3)."""
    _, y, _ = head.radii
    parts = [
        ((0.0, 0.0, 0.0), head.radii, None),
        ((head.radii[0], 0.0, -0.02), (0.12, 0.08, 0.1), head.skin),
        ((-0.05, y, 0.05), (0.1, 0.12, 0.18), head.left_ear),
        ((-0.05, -y, 0.05), (0.1, 0.12, 0.18), head.right_ear),
    ]
    found = [_meet(origins, directions, centre, radii) for centre, radii, _ in parts]
    distance, nearest = torch.stack([t for t, _ in found]).min(0)
    colour = torch.zeros_like(origins)
    for i, ((_, _, paint), (_, point)) in enumerate(zip(parts, found, strict=True)):
        here = _skull(head, point) if paint is None else origins.new_tensor(paint).expand_as(origins)
        colour = torch.where(nearest == i, here, colour)
    return colour, distance.isfinite(), distance


def _meet(origins: Tensor, directions: Tensor, centre: Colour, radii: Colour) -> tuple[Tensor, Tensor]:
    """(distance (..., 1), inf where there is none; the point on the unit sphere (..., 3)) of the first hit in front."""
    size = origins.new_tensor(radii)
    o, d = (origins - origins.new_tensor(centre)) / size, directions / size
    a, b, c = ((x * y).sum(-1, keepdim=True) for x, y in ((d, d), (o, d), (o, o)))
    root = b * b - a * (c - 1)
    t = (-b - root.clamp(min=0).sqrt()) / a
    t = torch.where((root >= 0) & (t > 0), t, torch.inf)
    return t, o + torch.where(t.isfinite(), t, 0) * d


def _skull(head: Head, point: Tensor) -> Tensor:
    """The skull's paint at points of the unit sphere (..., 3)."""
    x, z = point[..., :1], point[..., 2:]
    colour = torch.where(x > 0.6 * (z - 0.4).clamp(min=0) - 0.15, point.new_tensor(head.skin), point.new_tensor(head.hair))
    for side in (-1, 1):
        off = _angle(point, side * EYE[0], EYE[1])
        colour = torch.where(off < 13, point.new_tensor((1.0, 1.0, 1.0)), colour)
        colour = torch.where(off < 6, point.new_tensor((0.05, 0.05, 0.1)), colour)
    wide = _angle(point * point.new_tensor([1.0, 0.5, 1.0]), *MOUTH)
    return torch.where((wide < 7) & (x > 0), point.new_tensor(head.mouth), colour)


def _angle(point: Tensor, azimuth: float, elevation: float) -> Tensor:
    """Degrees between points (..., 3) and a direction, (..., 1)."""
    a, e, r = (point.new_tensor([value]) for value in (azimuth, elevation, 1.0))
    cosine = (F.normalize(point, dim=-1) * on_sphere(a, e, r)[0]).sum(-1, keepdim=True)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
