"""Soft outlines of a mesh, so that pixels have a gradient where the mesh ends (in the spirit of arXiv 1904.01786).

The outline of a picture consists of the edges whose two faces lie on one side of them in the image (or that have one face only),
as far as no other face covers what is beyond them. Opacity is sigmoid(d / softness), where d is a pixel's distance to the nearest
point of the outline, in pixels, negative outside. Its gradient is exact as long as the nearest piece of the outline stays the same.
Where the outlines of two parts cross, d is known to half a piece of an edge. Where one part of the mesh ends in front of another,
the picture keeps a hard edge without gradient.
"""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.scenes.cameras import Cameras
from limbeck.scenes.meshes import Edges, edges
from limbeck.scenes.rasterise import ANYWHERE, Fragments, Projected, blocks, boxes, crossing, least, pixels_in, projected

SOFTNESS = 0.25  # pixels: at the outline as steep as the share of a pixel that a straight edge leaves
REACH = 20.0  # in units of the softness: beyond it opacity is 0 or 1 to 2e-9
PIECE = 0.5  # pixels: pieces of an edge that are on the outline or not, as their middles are
BEYOND = 1e-3  # pixels: how far outside an edge another face is looked for


def soft_outlines(
    fragments: Fragments,
    vertices: Tensor,
    faces: Tensor,
    cameras: Cameras,
    softness: float = SOFTNESS,
    near: float = 0.01,
    extent: float | None = None,
) -> tuple[Tensor, Fragments]:
    """(opacity (B, 1, H, W), fragments): those that :func:`limbeck.scenes.rasterise` found, and around them, where a soft edge
    reaches, the nearest points of the outline. Edges that end closer to the camera's plane than ``near`` are left out.
    """
    if not softness > 0:
        raise LimbeckError(f"softness={softness:g}: an outline is softened over a positive number of pixels")
    shared, made = edges(faces), []
    for i, view in enumerate(projected(vertices, cameras, extent)):
        one = Fragments(*(x[i].flatten(0, 1) for x in fragments))
        made.append(_soften(one, view, faces, shared, (cameras.width, cameras.height), softness, near))
    opacity, face, weights, depth = (torch.stack(parts) for parts in zip(*made, strict=True))
    B, H, W = fragments.face.shape
    softened = Fragments(face.reshape(B, H, W), weights.reshape(B, H, W, 3), depth.reshape(B, H, W))
    return opacity.reshape(B, 1, H, W), softened


def _soften(
    fragments: Fragments, view: Projected, faces: Tensor, shared: Edges, size: tuple[int, int], softness: float, near: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    covered, dtype = fragments.face >= 0, fragments.depth.dtype
    points = view.points()
    edge, start, end = _outline(Projected(*(x.detach() for x in view)), faces, shared, near)
    pixel, piece = _nearest(points.detach()[shared.vertices[edge]], start, end, size, REACH * softness)
    edge, start, end = edge[piece], start[piece], end[piece]
    a, b = shared.vertices[edge].unbind(1)
    width = size[0]
    q = torch.stack([pixel % width, torch.div(pixel, width, rounding_mode="floor")], 1).to(points) + 0.5
    t, nearest = _project(q, points[a], points[b], start, end)
    distance = (q - nearest).norm(dim=1)
    inside = covered[pixel]
    soft = torch.sigmoid(torch.where(inside, distance, -distance) / softness)
    opacity = covered.to(dtype).index_put((pixel,), soft.to(dtype))
    # outside: the point of the edge itself
    out = ~inside
    pixel, a, b, t = pixel[out], a[out], b[out], t[out]
    face = shared.faces[edge[out], 0]
    share = torch.stack([(1 - t) / view.h[a, 2], t / view.h[b, 2]], 1)
    share = share / share.sum(1, keepdim=True)
    depth = (share * torch.stack([view.z[a], view.z[b]], 1)).sum(1)
    at_a, at_b = ((faces[face] == vertex[:, None]).to(share) for vertex in (a, b))
    weights = at_a * share[:, :1] + at_b * share[:, 1:]
    return (
        opacity,
        fragments.face.index_put((pixel,), face),
        fragments.weights.index_put((pixel,), weights.to(dtype)),
        fragments.depth.index_put((pixel,), depth.to(dtype)),
    )


@torch.no_grad()
def _outline(view: Projected, faces: Tensor, shared: Edges, near: float) -> tuple[Tensor, Tensor, Tensor]:
    """(edge, start, end), each (M,): pieces of the outline, from ``start`` to ``end`` in [0, 1] along their edges in the image."""
    a, b = shared.vertices.unbind(1)
    points = view.points()
    across = torch.linalg.cross(view.h[a], view.h[b])  # to the plane of the rays through the edge
    sides = (view.h[shared.opposite] * across[:, None]).sum(-1)
    length = (points[b] - points[a]).norm(dim=1)
    contour = (view.z[shared.vertices] > near).all(1) & (length > BEYOND * BEYOND)
    contour &= ((shared.sharing != 2) | (sides.prod(1) >= 0)) & (sides.abs().amax(1) > 0)
    which = contour.nonzero()[:, 0]
    pieces = (length[which] / PIECE).ceil().clamp(1, 4096).long()
    edge = which.repeat_interleave(pieces)
    place = torch.arange(len(edge), device=edge.device) - (pieces.cumsum(0) - pieces).repeat_interleave(pieces)
    many = pieces.repeat_interleave(pieces)
    start, end = place / many.to(points), (place + 1) / many.to(points)
    along = (points[b] - points[a])[edge] / length[edge, None]
    # the third vertex of the face that is seen less edge-on: outside is on the other side
    third = sides[edge].gather(1, sides[edge].abs().argmax(1, keepdim=True))
    out = torch.stack([along[:, 1], -along[:, 0]], 1) * third.sign()
    middle = torch.lerp(points[a[edge]], points[b[edge]], ((start + end) / 2)[:, None])
    kept = (~_covered(middle + BEYOND * out, view, faces, near)).nonzero()[:, 0]
    return edge[kept], start[kept], end[kept]


def _covered(points: Tensor, view: Projected, faces: Tensor, near: float) -> Tensor:
    """Whether points (M, 2) of the image show any of (F, 3) faces, (M,)."""
    low, high = boxes(view, faces)
    x, order = points[:, 0].contiguous().sort()  # a box has a row of them in this order
    first = torch.searchsorted(x, low[:, 0].contiguous())
    count = torch.searchsorted(x, high[:, 0].contiguous(), right=True) - first
    found = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for face, place in blocks(count):
        point = order[first[face] + place]
        y = points[point, 1]
        near_to = ((y >= low[face, 1]) & (y <= high[face, 1])).nonzero()[:, 0]
        face, point = face[near_to], point[near_to]
        corners = faces[face]
        depth = crossing(view.h[corners], view.z[corners], view.rays(points[point, 0], points[point, 1]), near)
        found[point[depth.isfinite()]] = True
    return found


@torch.no_grad()
def _nearest(ends: Tensor, start: Tensor, end: Tensor, size: tuple[int, int], reach: float) -> tuple[Tensor, Tensor]:
    """(pixel, piece), each (P,): pixels within ``reach`` of any of M pieces, and the nearest of these, the first of several."""
    width, height = size
    a, b = ends.unbind(1)
    first, last = torch.lerp(a, b, start[:, None]), torch.lerp(a, b, end[:, None])
    best = a.new_full((width * height,), ANYWHERE)
    which = torch.full((width * height,), -1, device=a.device)
    low, high = torch.minimum(first, last) - reach, torch.maximum(first, last) + reach
    for piece, x, y in pixels_in(low, high, width, height):
        q = torch.stack([x, y], 1).to(a) + 0.5
        _, nearest = _project(q, a[piece], b[piece], start[piece], end[piece])
        best, which = least(best, which, y * width + x, (q - nearest).norm(dim=1), piece)
    pixel = (best <= reach).nonzero()[:, 0]
    return pixel, which[pixel]


def _project(q: Tensor, a: Tensor, b: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """(t (P,) in [start, end], the point a + t (b - a) nearest to q (P, 2))."""
    along = b - a
    t = ((q - a) * along).sum(1) / along.square().sum(1)
    t = torch.minimum(torch.maximum(t, start), end)
    return t, a + t[:, None] * along
