"""Surfaces out of tetrahedra: a grid computed here, marching tetrahedra on it, and a surface that is learned (DMTet).

A field ``s`` on the grid's vertices is positive inside; where it changes sign along an edge (a, b), the surface has the vertex

    v = (v_a s_b - v_b s_a) / (s_b - s_a),

differentiable in the field and in the vertices (arXiv 2111.04276). Which triangles join them depends on the signs alone, so
that the surface stays closed and oriented however the grid is deformed.
"""

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.scenes.meshes import Mesh, collapsed, largest_component

EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # of a tetrahedron
SHORTEST = 1e-6  # edge that a mesh keeps, relative to the grid
OUTSIDE = -1e-6  # the largest field on the grid's border


class TetGrid(NamedTuple):
    """``vertices`` (V, 3) in world units, ``tetrahedra`` (T, 4) int64, all with det(b - a, c - a, d - a) > 0, ``border`` (V,) true
    on the surface of the box.
    """

    vertices: Tensor
    tetrahedra: Tensor
    border: Tensor


def tet_grid(
    cells: int | tuple[int, int, int],
    low: tuple[float, float, float] = (-1.0, -1.0, -1.0),
    high: tuple[float, float, float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype = torch.float32,
) -> TetGrid:
    """A box of ``cells`` cubes along x, y and z, each cut into six tetrahedra around its diagonal (Kuhn's triangulation).

    Vertices are in the order of ``values.reshape(-1)`` for values on (x, y, z) nodes, one more than cells along each axis.
    """
    sizes = (cells, cells, cells) if isinstance(cells, int) else cells
    if min(sizes) < 2 or any(not a < b for a, b in zip(low, high, strict=True)):
        raise LimbeckError(
            f"cells={cells}, low={low}, high={high}: a grid of tetrahedra needs 2 cells or more and low < high along each axis"
        )
    axes = [torch.arange(n + 1) for n in sizes]
    nodes = torch.cartesian_prod(*axes)
    strides = torch.tensor([(sizes[1] + 1) * (sizes[2] + 1), sizes[2] + 1, 1])
    cubes = torch.cartesian_prod(*(axis[:-1] for axis in axes)) @ strides
    parts = []
    for order in permutations(range(3)):  # a path along the three axes from one end of the diagonal to the other
        a, b, c = (int(strides[i]) for i in order)
        path = [0, a, a + b, a + b + c]
        odd = sum(order[i] > order[j] for i in range(3) for j in range(i + 1, 3)) % 2
        if odd:
            path[2], path[3] = path[3], path[2]
        parts.append(cubes[:, None] + torch.tensor(path))
    ends = torch.tensor([low, high], dtype=torch.float64)
    spacing = (ends[1] - ends[0]) / torch.tensor(sizes)
    border = ((nodes == 0) | (nodes == torch.tensor(sizes))).any(1)
    return TetGrid((ends[0] + nodes * spacing).to(dtype), torch.cat(parts), border)


def _cases() -> Tensor:
    """(16, 2, 3): edges of a positive tetrahedron that make triangles, counterclockwise from outside, or -1; bit i of the row's
    number says that vertex i is inside.

    One vertex a inside, (a, b, c, d) an even order: the triangle ab, ac, ad. Three inside: the same, turned. Two inside, a and b:
    the quadrangle ac, ad, bd, bc.
    """
    table = torch.full((16, 2, 3), -1)

    def edge(i: int, j: int) -> int:
        return EDGES.index((min(i, j), max(i, j)))

    for a, b, c, d in permutations(range(4)):
        order = (a, b, c, d)
        if sum(order[i] > order[j] for i in range(4) for j in range(i + 1, 4)) % 2:
            continue
        triangle = torch.tensor([edge(a, b), edge(a, c), edge(a, d)])
        table[1 << a, 0] = triangle
        table[15 - (1 << a), 0] = triangle.flip(0)
        if a < b:
            quad = [edge(a, c), edge(a, d), edge(b, d), edge(b, c)]
            table[(1 << a) | (1 << b)] = torch.tensor([[quad[0], quad[1], quad[2]], [quad[0], quad[2], quad[3]]])
    return table


CASES = _cases()


def marching_tetrahedra(vertices: Tensor, tetrahedra: Tensor, s: Tensor) -> Mesh:
    """The surface s = 0 of a field (V,), positive inside, on tetrahedra (T, 4) with positive determinants over (V, 3) vertices.

    Each vertex where s is 0 counts as outside. Raises LimbeckError where s is not finite or has one sign everywhere.
    """
    if s.shape != (len(vertices),):
        raise LimbeckError(f"a field of shape {tuple(s.shape)} on {len(vertices)} vertices: expected ({len(vertices)},)")
    if not bool(s.isfinite().all()):
        raise LimbeckError(f"the field is not finite at vertex {int((~s.isfinite()).nonzero()[0])}: lower the learning rate")
    inside = s > 0
    case = sum((inside[tetrahedra[:, i]].byte() << i for i in range(4)), torch.zeros_like(tetrahedra[:, 0], dtype=torch.uint8))
    cut = ((case > 0) & (case < 15)).nonzero()[:, 0]
    if len(cut) == 0:
        low, high = s.detach().min(), s.detach().max()
        raise LimbeckError(
            f"there is no surface: the field lies in [{float(low):.4g}, {float(high):.4g}] and changes its sign across no "
            "tetrahedron; choose another threshold, or begin with a larger shape"
        )
    ends = tetrahedra[cut][:, torch.tensor(EDGES, device=s.device)].sort(-1).values
    crossed = (inside[ends[..., 0]] != inside[ends[..., 1]]).nonzero(as_tuple=True)
    keys, number = torch.unique((ends[..., 0] * len(vertices) + ends[..., 1])[crossed], return_inverse=True)
    vertex = torch.full_like(ends[..., 0], -1).index_put(crossed, number)
    triangles = CASES.to(s.device)[case[cut].long()].flatten(1)
    faces = vertex.gather(1, triangles.clamp(min=0)).reshape(-1, 3)[triangles.reshape(-1, 3)[:, 0] >= 0]
    a, b = torch.div(keys, len(vertices), rounding_mode="floor"), keys % len(vertices)
    sa, sb = s[a, None], s[b, None]
    return Mesh((vertices[a] * sb - vertices[b] * sa) / (sb - sa), faces)


def mesh_from_field(
    values: Tensor,
    level: float = 0.0,
    low: tuple[float, float, float] = (-1.0, -1.0, -1.0),
    high: tuple[float, float, float] = (1.0, 1.0, 1.0),
    largest: bool = False,
) -> Mesh:
    """The closed surface around values > level, for values (X, Y, Z) on nodes from ``low`` to ``high`` (a density, or minus a
    signed distance).

    Nodes on the border count as outside; edges of almost no length are gone (:func:`limbeck.scenes.collapsed`). ``largest``: only
    the connected part with the largest surface.
    """
    if values.ndim != 3 or min(values.shape) < 3:
        raise LimbeckError(f"values of shape {tuple(values.shape)}: a field needs (X, Y, Z) nodes, 3 or more along each axis")
    X, Y, Z = values.shape
    grid = tet_grid((X - 1, Y - 1, Z - 1), low, high, values.dtype)
    device = values.device
    s = _closed((values - level).reshape(-1), grid.border.to(device))
    mesh = marching_tetrahedra(grid.vertices.to(device), grid.tetrahedra.to(device), s)
    mesh = collapsed(mesh, SHORTEST * float((grid.vertices[-1] - grid.vertices[0]).abs().max()))
    return largest_component(mesh) if largest else mesh


def _closed(s: Tensor, border: Tensor) -> Tensor:
    return torch.where(border, s.clamp(max=OUTSIDE), s)


class DMTet(nn.Module):
    """A closed surface that is learned: a field on a tetrahedral grid over [-radius, radius]^3, and where the grid's vertices are.

    Parameters: ``sdf`` (V,), positive inside, and ``deformation`` (V, 3); a vertex may move by less than half a cell along each
    axis, spacing / 2 tanh(deformation). Called without arguments it gives the :class:`Mesh`. The border counts as outside.
    """

    vertices: Tensor
    tetrahedra: Tensor
    border: Tensor

    def __init__(self, sdf: Tensor, resolution: int = 32, radius: float = 1.0) -> None:
        super().__init__()
        grid = tet_grid(resolution, (-radius,) * 3, (radius,) * 3, sdf.dtype)
        if sdf.shape != (len(grid.vertices),):
            raise LimbeckError(
                f"a field of shape {tuple(sdf.shape)}: a grid of resolution {resolution} has {len(grid.vertices)} vertices"
            )
        self.resolution, self.radius = resolution, radius
        for name in ("vertices", "tetrahedra", "border"):  # computed, so that no checkpoint has to hold them
            self.register_buffer(name, getattr(grid, name).to(sdf.device), persistent=False)
        self.sdf = nn.Parameter(sdf.detach().clone())
        self.deformation = nn.Parameter(torch.zeros_like(self.vertices))

    @classmethod
    def from_density(
        cls,
        density: Callable[[Tensor], Tensor],
        threshold: float,
        resolution: int = 32,
        radius: float = 1.0,
        limit: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> "DMTet":
        """Around density > threshold, with the field clamp(density - threshold, -limit, limit); ``density`` (V,) of points (V, 3).

        ProlificDreamer takes a tenth of a density of 25 for the threshold, and the limit 1: where the density is steep the surface
        then begins with steps as large as cells. Raises LimbeckError where no surface is inside the box.
        """
        points = tet_grid(resolution, (-radius,) * 3, (radius,) * 3, dtype).vertices
        with torch.no_grad():
            found = density(points).reshape(-1)
        scene = cls((found - threshold).clamp(-limit, limit).to(dtype), resolution, radius)
        if not bool((scene.sdf[~scene.border.to(scene.sdf.device)] > 0).any()):
            raise LimbeckError(
                f"threshold={threshold:g} leaves nothing: the density lies in [{float(found.min()):.4g}, {float(found.max()):.4g}]; "
                "choose a threshold between"
            )
        return scene

    @classmethod
    def from_distance(
        cls,
        distance: Callable[[Tensor], Tensor],
        resolution: int = 32,
        radius: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> "DMTet":
        """From a signed distance (V,) of points (V, 3) as usual, negative inside."""
        points = tet_grid(resolution, (-radius,) * 3, (radius,) * 3, dtype).vertices
        with torch.no_grad():
            return cls(-distance(points).reshape(-1).to(dtype), resolution, radius)

    def forward(self) -> Mesh:
        moved = self.vertices + self.radius / self.resolution * torch.tanh(self.deformation)
        return marching_tetrahedra(moved, self.tetrahedra, _closed(self.sdf, self.border))
