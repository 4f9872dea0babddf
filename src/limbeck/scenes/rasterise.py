"""Which triangle of a mesh each pixel shows: a z-buffer in torch for small meshes, differentiable in the vertices.

With OpenCV axes in the camera, a pixel's ray d = (u, v, 1) meets the plane of the triangle p_0 p_1 p_2 where

    w_i = d . (p_j x p_k),  weights w_i / (w_0 + w_1 + w_2),  depth p_0 . (p_1 x p_2) / (w_0 + w_1 + w_2):

the edge functions in homogeneous coordinates. The weights are the barycentric coordinates on the triangle itself, so that what
is interpolated is right in perspective, and triangles that cross the camera's plane need no clipping. A pixel on an edge that two
triangles share belongs to one of them. Both sides of a triangle are seen. Which triangle is nearest is found without gradient;
where the ray meets it has gradients, and :mod:`limbeck.scenes.outlines` adds those of the outlines.
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


def rasterise(vertices: Tensor, faces: Tensor, cameras: Cameras, near: float = 0.01, max_pairs: int = MAX_PAIRS) -> Fragments:
    """The nearest of (F, 3) faces over (V, 3) vertices at the pixel centres of B cameras; weights and depth have gradients.

    What is closer to the camera's plane than ``near`` is not seen. Worked out in float64, in blocks of at most ``max_pairs`` pairs
    (one face at least). Raises LimbeckError for vertices that are not finite.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise LimbeckError(f"vertices {tuple(vertices.shape)} and faces {tuple(faces.shape)}: expected (V, 3) and (F, 3)")
    if not near > 0 or max_pairs < 1:
        raise LimbeckError(f"near={near:g} and max_pairs={max_pairs}: both must be positive")
    if not bool(vertices.isfinite().all()):
        which = int((~vertices.isfinite()).any(1).nonzero()[0])
        raise LimbeckError(f"vertex {which} is not finite: lower the learning rate, or drop it first")
    cameras = cameras.to(vertices.device).to(torch.float64)
    H, W = cameras.height, cameras.width
    found = []
    for local, focal, centre in zip(in_cameras(vertices, cameras), cameras.focal, cameras.centre, strict=True):
        corners = local[faces]
        face = _nearest(corners.detach(), focal, centre, (W, H), near, max_pairs)
        seen = (face >= 0).nonzero()[:, 0]
        x, y = seen % W + 0.5, torch.div(seen, W, rounding_mode="floor") + 0.5
        w, depth = _meet(corners[face[seen]], rays(x, y, focal, centre))
        weights = local.new_zeros(H * W, 3).index_put((seen,), w / w.sum(1, keepdim=True))
        found.append(
            (face.reshape(H, W), weights.reshape(H, W, 3), local.new_zeros(H * W).index_put((seen,), depth).reshape(H, W))
        )
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


def in_cameras(vertices: Tensor, cameras: Cameras) -> Tensor:
    """(B, V, 3) in the dtype of the cameras: OpenCV axes (x right, y down, z forward)."""
    view = cameras.view
    return vertices.to(view.dtype) @ view[:, :3, :3].mT + view[:, None, :3, 3]


def rays(x: Tensor, y: Tensor, focal: Tensor, centre: Tensor) -> Tensor:
    """(P, 3), depth 1, through points of the image in pixels."""
    u, v = (x.to(focal.dtype) - centre[0]) / focal[0], (y.to(focal.dtype) - centre[1]) / focal[1]
    return torch.stack([u, v, torch.ones_like(u)], 1)


def _meet(corners: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """(w (P, 3), depth (P,)) of one triangle (P, 3, 3) and one ray (P, 3) each."""
    p, q = corners.roll(-1, 1), corners.roll(-2, 1)
    planes = torch.linalg.cross(p, q)
    w = (planes * directions[:, None]).sum(-1)
    return w, (corners[:, 0] * planes[:, 0]).sum(-1) / w.sum(-1)


def crossing(corners: Tensor, directions: Tensor, near: float) -> Tensor:
    """(P,): the depth where a ray (P, 3) meets its triangle (P, 3, 3) or its edge, inf where it does not beyond ``near``.

    An edge is as wide as rounding is, so that no ray falls between two triangles; one that is seen edge-on is not met.
    """
    w, depth = _meet(corners, directions)
    length = corners.norm(dim=-1)
    doubt = ROUNDING * length.roll(-1, 1) * length.roll(-2, 1) * directions.norm(dim=-1, keepdim=True)
    total = w.sum(1)
    inside = (w * total.sign()[:, None] >= -doubt).all(1) & (total.abs() > doubt.sum(1)) & (depth > near)
    return torch.where(inside, depth, torch.inf)


def boxes(corners: Tensor, focal: Tensor, centre: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """(low, high), each (F, 2) in pixels: what (F, 3, 3) triangles cover at most. One that crosses the plane at ``near`` may be
    anywhere; one behind it is nowhere.
    """
    ahead = corners[..., 2:] > near
    points = focal * corners[..., :2] / torch.where(ahead, corners[..., 2:], 1.0) + centre
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
def _nearest(corners: Tensor, focal: Tensor, centre: Tensor, size: tuple[int, int], near: float, max_pairs: int) -> Tensor:
    """(H * W,): the number of the nearest of (F, 3, 3) triangles, the lower of two at one depth; -1 where there is none."""
    width, height = size
    depths = corners.new_full((height * width,), torch.inf)
    nearest = torch.full((height * width,), -1, device=corners.device)
    for face, x, y in pixels_in(*boxes(corners, focal, centre, near), width, height, max_pairs):
        depth = crossing(corners[face], rays(x + 0.5, y + 0.5, focal, centre), near)
        hit = depth.isfinite().nonzero()[:, 0]
        face, pixel, depth = face[hit], (y * width + x)[hit], depth[hit]
        depths, nearest = least(depths, nearest, pixel, depth, face)
    return nearest


def least(value: Tensor, owner: Tensor, pixel: Tensor, offer: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """(value, owner) of each pixel (N,) after offers (P,) of lower values at ``pixel`` by new owners; the lowest number wins a tie."""
    lower = value.scatter_reduce(0, pixel, offer, "amin")
    named = torch.where(offer == lower[pixel], by, NOBODY)
    first = torch.full_like(owner, NOBODY).scatter_reduce(0, pixel, named, "amin")
    return lower, torch.where(lower < value, first, owner)
