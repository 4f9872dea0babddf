"""Textures without seams: each triangle has half a square of the picture to itself.

F triangles lie two by two in n x n squares of c = size // n pixels, n^2 >= F / 2. In pixels from a square's corner, the first has
its corners at (0.5, 0.5), (c - 2.5, 0.5), (0.5, c - 2.5), the second at (c - 0.5, c - 0.5), (2.5, c - 0.5), (c - 0.5, 2.5): so a
bilinear look-up inside one never reaches a pixel that belongs to the other, or to another square.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.scenes.meshes import Mesh, check_mesh

LEAST_CELL = 5  # pixels: two pixels of colour along an edge


def baked(mesh: Mesh, colour: Callable[[Tensor], Tensor], size: int = 1024) -> Mesh:
    """The mesh with a texture of ``size`` x ``size`` pixels, painted by ``colour`` (N, 3) in [0, 1] of points (N, 3).

    Raises LimbeckError where the picture is too small for the number of faces.
    """
    check_mesh(mesh)
    N = len(mesh.faces)
    n = math.ceil(math.sqrt(N / 2))
    cell = size // n
    if cell < LEAST_CELL:
        raise LimbeckError(f"size={size} is too small for {N} faces: a texture of them needs {LEAST_CELL * n} pixels or more")
    like = mesh.vertices.detach()
    faces = torch.arange(N, device=like.device)
    corner = (
        torch.stack([torch.div(faces, 2, rounding_mode="floor") % n, torch.div(faces, 2 * n, rounding_mode="floor")], 1) * cell
    )
    local = like.new_tensor([[0.5, 0.5], [cell - 2.5, 0.5], [0.5, cell - 2.5]])
    local = torch.where(faces[:, None, None] % 2 == 0, local, cell - local)
    pixels = corner[:, None] + local  # x to the right, y downwards
    uv = pixels / size
    y, x = torch.meshgrid(*2 * [torch.arange(size, device=like.device)], indexing="ij")
    column, row = torch.div(x, cell, rounding_mode="floor"), torch.div(y, cell, rounding_mode="floor")
    second = (x % cell + y % cell + 1 > cell).long()
    owner = 2 * (row * n + column) + second
    used = ((column < n) & (row < n) & (owner < N)).nonzero(as_tuple=True)
    owner = owner[used]
    place = torch.stack([x[used], y[used]], 1) + 0.5
    side = pixels[owner, 1, 0] - pixels[owner, 0, 0]  # of either sign, and the same along x and y
    s, t = ((place - pixels[owner, 0]) / side[:, None])[..., None].unbind(1)
    a, b, c = mesh.corners.detach()[owner].unbind(1)
    with torch.no_grad():
        found = colour(a + s * (b - a) + t * (c - a)).to(like)
    texture = like.new_zeros(size, size, 3).index_put(used, found)
    done = mesh._replace(uv=torch.stack([uv[..., 0], 1 - uv[..., 1]], -1), texture=texture)
    check_mesh(done)
    return done


def sample_texture(texture: Tensor, uv: Tensor) -> Tensor:
    """(N, 3): a texture (H, W, 3) between its pixels at ``uv`` (N, 2) in [0, 1], v upwards."""
    places = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], 1)[None, None].to(texture.dtype)
    return F.grid_sample(texture.movedim(-1, 0)[None], places, align_corners=False, padding_mode="border")[0, :, 0].T
