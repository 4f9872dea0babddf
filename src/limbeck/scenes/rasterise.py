"""Which triangle of a mesh each pixel shows: a z-buffer in torch for small meshes, differentiable in the vertices.

With OpenCV axes in the camera, vertices have h = (x, y, z) in perspective and (x, y, 1) in parallel rays, pixels d = (u, v, 1).
On the triangle with h_0, h_1, h_2 the pixel shows the point whose barycentric coordinates are

    w_i / (w_0 + w_1 + w_2),  w_i = d . (h_j x h_k):

the edge functions in homogeneous coordinates. They belong to the triangle itself, so that what is interpolated is right in
perspective, and triangles that cross the camera's plane need no clipping. A pixel on an edge that two triangles share belongs to
one of them. Both sides of a triangle are seen. Which triangle is nearest is found without gradient; where the ray meets it has
gradients, and :mod:`limbeck.scenes.outlines` adds those of the outlines.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.scenes.cameras import Cameras
from limbeck.scenes.compositing import interval, within

MAX_PAIRS = 2**19  # pairs of a triangle and a pixel of its box at once, about 200 bytes each
NOBODY = 2**62
ANYWHERE = 1e9  # pixels
LEAST_DEPTH = 1e-9  # world units, of what is projected
ROUNDING = 1e-14  # relative, of an edge function in float64: some fifty units in the last place
SLACK = 1e-6  # pixels: boxes are this much larger, so that rounding loses no pixel


class Fragments(NamedTuple):
    """What B pictures of H x W pixels show: ``face`` (B, H, W) int64, -1 where nothing is; ``weights`` (B, H, W, 3) of the face's
    corners, and ``depth`` (B, H, W) along the camera's axis in world units, both 0 where nothing is.
    """

    face: Tensor
    weights: Tensor
    depth: Tensor

    @property
    def covered(self) -> Tensor:
        """(B, H, W)."""
        return self.face >= 0


class Projected(NamedTuple):
    """V vertices before one camera, float64: ``h`` (V, 3), of which the image in pixels is ``focal`` h_xy / h_z + ``centre``, and depth
    ``z`` (V,).
    """

    h: Tensor
    z: Tensor
    focal: Tensor
    centre: Tensor

    def points(self) -> Tensor:
        """(V, 2) in pixels; of no use for vertices behind the camera."""
        depth = torch.where(self.h[:, 2:] > LEAST_DEPTH, self.h[:, 2:], 1.0)
        return self.focal * self.h[:, :2] / depth + self.centre

    def rays(self, x: Tensor, y: Tensor) -> Tensor:
        """d (P, 3) of points of the image in pixels."""
        u, v = ((a.to(self.h) - c) / f for a, c, f in zip((x, y), self.centre, self.focal, strict=True))
        return torch.stack([u, v, torch.ones_like(u)], 1)


def rasterise(
    vertices: Tensor,
    faces: Tensor,
    cameras: Cameras,
    near: float = 0.01,
    extent: float | None = None,
    max_pairs: int = MAX_PAIRS,
) -> Fragments:
    """The nearest of (F, 3) faces over (V, 3) vertices at the pixel centres of B cameras; weights and depth have gradients.

    What is closer to the camera's plane than ``near`` is not seen. ``extent``: None for perspective, or parallel rays through an
    image that high in world units (:meth:`limbeck.scenes.Cameras.parallel_rays`). Worked out in float64, in blocks of at most
    ``max_pairs`` pairs (one face at least). Raises LimbeckError for vertices that are not finite.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise LimbeckError(f"vertices {tuple(vertices.shape)} and faces {tuple(faces.shape)}: expected (V, 3) and (F, 3)")
    if not near > 0 or max_pairs < 1:
        raise LimbeckError(f"near={near:g} and max_pairs={max_pairs}: both must be positive")
    if not bool(vertices.isfinite().all()):
        which = int((~vertices.isfinite()).any(1).nonzero()[0])
        raise LimbeckError(f"vertex {which} is not finite: lower the learning rate, or drop it first")
    H, W = cameras.height, cameras.width
    found = []
    for view in projected(vertices, cameras, extent):
        face = _nearest(Projected(*(x.detach() for x in view)), faces, (W, H), near, max_pairs)
        seen = (face >= 0).nonzero()[:, 0]
        corners = faces[face[seen]]
        w = _weights(view.h[corners], view.rays(seen % W + 0.5, torch.div(seen, W, rounding_mode="floor") + 0.5))
        w = w / w.sum(1, keepdim=True)
        weights = w.new_zeros(H * W, 3).index_put((seen,), w).reshape(H, W, 3)
        depth = w.new_zeros(H * W).index_put((seen,), (w * view.z[corners]).sum(1)).reshape(H, W)
        found.append((face.reshape(H, W), weights, depth))
    face, weights, depth = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Fragments(face, weights.to(vertices.dtype), depth.to(vertices.dtype))


def interpolate(fragments: Fragments, faces: Tensor, values: Tensor) -> Tensor:
    """(B, H, W, C): ``values`` (V, C) of the vertices that (F, 3) ``faces`` name, at each pixel; 0 where nothing is.

    Values of each corner of each face (F, 3, C) are ``values.flatten(0, 1)`` with faces ``arange(3 F).reshape(F, 3)``.
    """
    if values.ndim != 2 or len(faces) == 0 or int(faces.max()) >= len(values):
        raise LimbeckError(
            f"values {tuple(values.shape)} for faces {tuple(faces.shape)}: expected (V, C), a row for each vertex"
        )
    seen = fragments.covered.nonzero(as_tuple=True)
    at = (fragments.weights[seen][..., None] * values[faces[fragments.face[seen]]]).sum(1)
    return at.new_zeros(*fragments.face.shape, values.shape[1]).index_put(seen, at)


def projected(vertices: Tensor, cameras: Cameras, extent: float | None = None) -> list[Projected]:
    """The vertices (V, 3) before each of B cameras, in perspective or in parallel rays."""
    if extent is not None and not extent > 0:
        raise LimbeckError(f"extent={extent:g}: the height of an orthographic image must be positive, in world units")
    cameras = cameras.to(vertices.device).to(torch.float64)
    view = cameras.view
    local = vertices.double() @ view[:, :3, :3].mT + view[:, None, :3, 3]
    if extent is None:
        return [Projected(p, p[:, 2], f, c) for p, f, c in zip(local, cameras.focal, cameras.centre, strict=True)]
    flat = torch.cat([local[..., :2], torch.ones_like(local[..., 2:])], -1)
    focal = local.new_full((2,), cameras.height / extent)
    centre = local.new_tensor([cameras.width / 2, cameras.height / 2])
    return [Projected(h, p[:, 2], focal, centre) for h, p in zip(flat, local, strict=True)]


def _weights(h: Tensor, directions: Tensor) -> Tensor:
    """w (P, 3) of one triangle h (P, 3, 3) and one ray (P, 3) each."""
    return (torch.linalg.cross(h.roll(-1, 1), h.roll(-2, 1)) * directions[:, None]).sum(-1)


def crossing(h: Tensor, z: Tensor, directions: Tensor, near: float) -> Tensor:
    """(P,): the depth where a ray (P, 3) meets its triangle, h (P, 3, 3) and depths (P, 3), or the triangle's edge; inf where it does
    not beyond ``near``.

    An edge is as wide as rounding is, so that no ray falls between two triangles; one that is seen edge-on is not met.
    """
    w = _weights(h, directions)
    length = h.norm(dim=-1)
    doubt = ROUNDING * length.roll(-1, 1) * length.roll(-2, 1) * directions.norm(dim=-1, keepdim=True)
    total = w.sum(1)
    depth = (w * z).sum(1) / total
    inside = (w * total.sign()[:, None] >= -doubt).all(1) & (total.abs() > doubt.sum(1)) & (depth > near)
    return torch.where(inside, depth, torch.inf)


def boxes(view: Projected, faces: Tensor) -> tuple[Tensor, Tensor]:
    """(low, high), each (F, 2) in pixels: what (F, 3) faces cover at most. One that crosses the camera's plane may be anywhere; one
    behind it is nowhere.
    """
    points, ahead = view.points()[faces], (view.h[:, 2:] > LEAST_DEPTH)[faces]
    whole, some = ahead.all(1), ahead.any(1)
    low = torch.where(whole, points.amin(1), -ANYWHERE)
    return low, torch.where(whole, points.amax(1), torch.where(some, ANYWHERE, -ANYWHERE))


def pixels_in(
    low: Tensor, high: Tensor, width: int, height: int, max_pairs: int = MAX_PAIRS
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(which box, x, y), each (P,): the pixels whose centres lie in boxes from ``low`` to ``high`` (N, 2), in blocks of boxes of
    about ``max_pairs`` together.
    """
    middle, reach = (low + high) / 2, (high - low) / 2 + SLACK
    left, columns = interval(middle[:, 0], reach[:, 0], width)
    top, rows = interval(middle[:, 1], reach[:, 1], height)
    for box, place in blocks(columns * rows, max_pairs):
        yield box, left[box] + place % columns[box], top[box] + torch.div(place, columns[box], rounding_mode="floor")


def blocks(count: Tensor, most: int = MAX_PAIRS) -> Iterator[tuple[Tensor, Tensor]]:
    """(owner, place), each (P,): 0, 1, .. count_i - 1 for each i of (N,), in blocks of owners with about ``most`` together."""
    used = count.nonzero()[:, 0]
    block = torch.div(count[used].cumsum(0) - count[used], most, rounding_mode="floor")
    for part in used.split(torch.bincount(block).tolist()):
        many = count[part]
        owner = torch.repeat_interleave(many)
        yield part[owner], within(many, owner)


@torch.no_grad()
def _nearest(view: Projected, faces: Tensor, size: tuple[int, int], near: float, max_pairs: int) -> Tensor:
    """(H * W,): the number of the nearest of (F, 3) faces, the lower of two at one depth; -1 where there is none."""
    width, height = size
    depths = view.h.new_full((height * width,), torch.inf)
    nearest = torch.full((height * width,), -1, device=faces.device)
    for face, x, y in pixels_in(*boxes(view, faces), width, height, max_pairs):
        corners = faces[face]
        depth = crossing(view.h[corners], view.z[corners], view.rays(x + 0.5, y + 0.5), near)
        hit = depth.isfinite().nonzero()[:, 0]
        depths, nearest = least(depths, nearest, (y * width + x)[hit], depth[hit], face[hit])
    return nearest


def least(value: Tensor, owner: Tensor, pixel: Tensor, offer: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """(value, owner) of each pixel (N,) after offers (P,) of lower values at ``pixel`` by new owners; the lowest number wins a tie."""
    lower = value.scatter_reduce(0, pixel, offer, "amin")
    named = torch.where(offer == lower[pixel], by, NOBODY)
    first = torch.full_like(owner, NOBODY).scatter_reduce(0, pixel, named, "amin")
    return lower, torch.where(lower < value, first, owner)
