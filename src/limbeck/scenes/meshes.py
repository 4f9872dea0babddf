"""Triangle meshes: what one is, its measures, and the losses that keep it smooth.

Faces are counterclockwise seen from outside, so that a closed mesh has a positive volume.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError

LEAST_AREA = 1e-12  # world units squared: a smaller face has no normal, and its gradients would be huge


class Mesh(NamedTuple):
    """V vertices and F triangles; what is None is not there.

    ``vertices`` (V, 3) in world units; ``faces`` (F, 3) int64, counterclockwise seen from outside; ``colours`` (V, 3) in [0, 1];
    ``uv`` (F, 3, 2) in [0, 1], of each corner of each face, v upwards; ``texture`` (H, W, 3) in [0, 1], row 0 on top.
    """

    vertices: Tensor
    faces: Tensor
    colours: Tensor | None = None
    uv: Tensor | None = None
    texture: Tensor | None = None

    @property
    def corners(self) -> Tensor:
        """(F, 3, 3): the positions of each face's corners."""
        return self.vertices[self.faces]


class Edges(NamedTuple):
    """E edges: ``vertices`` (E, 2), the smaller first; ``sharing`` (E,), how many faces have each; ``faces`` (E, 2), two of them, and
    ``opposite`` (E, 2), their third vertices. Where only one face has the edge, it stands there twice.
    """

    vertices: Tensor
    sharing: Tensor
    faces: Tensor
    opposite: Tensor


def check_mesh(mesh: Mesh) -> None:
    """Raise LimbeckError for shapes that do not fit, numbers that are not finite, faces of vertices that are not there, and
    colours outside [0, 1].
    """
    V, N = len(mesh.vertices), len(mesh.faces)
    wanted = {"vertices": (V, 3), "faces": (N, 3), "colours": (V, 3), "uv": (N, 3, 2)}
    for name, shape in wanted.items():
        x = getattr(mesh, name)
        if x is not None and tuple(x.shape) != shape:
            raise LimbeckError(f"a mesh's {name} of shape {tuple(x.shape)}: {V} vertices and {N} faces need {shape}")
    texture = mesh.texture
    if texture is not None and (texture.ndim != 3 or texture.shape[-1] != 3 or 0 in texture.shape):
        raise LimbeckError(f"a texture of shape {tuple(texture.shape)}: expected (H, W, 3)")
    if (texture is None) != (mesh.uv is None):
        raise LimbeckError("a mesh has a texture and uv coordinates together, or neither: give both")
    if N == 0:
        raise LimbeckError("a mesh without faces: there is no surface")
    if mesh.faces.dtype != torch.int64:
        raise LimbeckError(f"faces of dtype {mesh.faces.dtype}: indices of vertices are int64")
    if int(mesh.faces.min()) < 0 or int(mesh.faces.max()) >= V:
        outside = ((mesh.faces < 0) | (mesh.faces >= V)).any(1)
        raise LimbeckError(f"face {int(outside.nonzero()[0])} has vertices that are not there: indices lie in 0..{V - 1}")
    for name in ("vertices", "colours", "uv", "texture"):
        x = getattr(mesh, name)
        if x is not None and not bool(x.isfinite().all()):
            which = int((~x.isfinite()).reshape(len(x), -1).any(1).nonzero()[0])
            raise LimbeckError(f"row {which} of the mesh's {name} is not finite: lower the learning rate, or drop it first")
        if name in ("colours", "texture") and x is not None and not bool(((x >= 0) & (x <= 1)).all()):
            raise LimbeckError(
                f"{name} from {float(x.detach().min()):g} to {float(x.detach().max()):g}: colours of a mesh lie in [0, 1]"
            )


def face_vectors(mesh: Mesh) -> Tensor:
    """(F, 3): outward normals, twice as long as the faces are large."""
    a, b, c = mesh.corners.unbind(1)
    return torch.linalg.cross(b - a, c - a)


def face_normals(mesh: Mesh) -> Tensor:
    """Outward unit normals (F, 3); 0, without gradient, of faces smaller than LEAST_AREA."""
    vectors = face_vectors(mesh)
    proper = vectors.detach().norm(dim=1, keepdim=True) > 2 * LEAST_AREA
    return torch.where(proper, F.normalize(torch.where(proper, vectors, 1.0), dim=1), 0.0)


def vertex_normals(mesh: Mesh) -> Tensor:
    """Unit normals (V, 3): means of the faces around, weighted by area; 0 where there are none."""
    vectors = face_vectors(mesh)
    total = torch.zeros_like(mesh.vertices).index_add(0, mesh.faces.reshape(-1), vectors.repeat_interleave(3, 0))
    proper = total.detach().norm(dim=1, keepdim=True) > 2 * LEAST_AREA
    return torch.where(proper, F.normalize(torch.where(proper, total, 1.0), dim=1), 0.0)


def area(mesh: Mesh) -> Tensor:
    """Of the surface, in world units squared, ()."""
    return face_vectors(mesh).norm(dim=1).sum() / 2


def volume(mesh: Mesh) -> Tensor:
    """Enclosed by a closed mesh, (); negative where its faces look inwards. The sum of det(a, b, c) / 6."""
    a, b, c = mesh.corners.unbind(1)
    return (a * torch.linalg.cross(b, c)).sum() / 6


def edges(faces: Tensor) -> Edges:
    """The edges of (F, 3) faces, and who shares them."""
    N = len(faces)
    half = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    third = torch.cat([faces[:, 2], faces[:, 0], faces[:, 1]])
    size = int(faces.max()) + 1 if N else 1
    ends = half.sort(1).values
    keys, which, count = torch.unique(ends[:, 0] * size + ends[:, 1], return_inverse=True, return_counts=True)
    order = which.argsort(stable=True)  # the faces of an edge stand side by side
    first = count.cumsum(0) - count
    pair = torch.stack([order[first], order[first + (count > 1)]], 1)
    vertices = torch.stack([torch.div(keys, size, rounding_mode="floor"), keys % size], 1)
    return Edges(vertices, count, pair % max(N, 1), third[pair])


def is_watertight(mesh: Mesh) -> bool:
    """Whether every edge lies in exactly two faces, which run through it in opposite directions."""
    faces = mesh.faces
    half = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    size = int(faces.max()) + 1
    there = torch.unique(half[:, 0] * size + half[:, 1])
    back = torch.unique(half[:, 1] * size + half[:, 0])
    return bool((edges(faces).sharing == 2).all()) and torch.equal(there, back)


def boundary(mesh: Mesh) -> Tensor:
    """(E, 2): the edges that lie in one face only, along which the mesh is open."""
    found = edges(mesh.faces)
    return found.vertices[found.sharing == 1]


def euler_characteristic(mesh: Mesh) -> int:
    """V - E + F over the vertices in use: 2 for a sphere, 2 - 2 g with g handles, added up over components."""
    return len(mesh.faces.unique()) - len(edges(mesh.faces).vertices) + len(mesh.faces)


def components(mesh: Mesh) -> Tensor:
    """(F,): which connected part each face belongs to, 0, 1, .. ; parts are connected through vertices."""
    return torch.unique(_lowest(mesh.faces, len(mesh.vertices))[mesh.faces[:, 0]], return_inverse=True)[1]


def _lowest(groups: Tensor, size: int) -> Tensor:
    """(size,): the lowest vertex that each is connected with, itself included, through (K, n) groups of vertices."""
    label = torch.arange(size, device=groups.device)
    while True:
        lowest = label[groups].amin(1, keepdim=True).expand_as(groups)
        lower = label.scatter_reduce(0, groups.reshape(-1), lowest.reshape(-1), "amin")
        lower = lower[lower]  # a label is a vertex of the same part, with a label of its own
        if torch.equal(lower, label):
            return label
        label = lower


def collapsed(mesh: Mesh, shortest: float = 1e-6) -> Mesh:
    """Without edges shorter than ``shortest`` in world units: their ends become one vertex, faces that had them vanish.

    A surface that passes through a vertex of its grid has such edges; programs that join vertices at one place would find
    holes there. A closed surface stays closed; parts smaller than that vanish. Raises LimbeckError where nothing is left.
    """
    ends = edges(mesh.faces).vertices
    length = (mesh.vertices[ends[:, 0]] - mesh.vertices[ends[:, 1]]).detach().norm(dim=1)
    return joined(mesh, _lowest(ends[length < shortest], len(mesh.vertices)))


def joined(mesh: Mesh, label: Tensor) -> Mesh:
    """The vertices ``label`` (V,) in the place of the mesh's, without the faces that then have one twice."""
    faces = label[mesh.faces]
    kept = (faces != faces.roll(1, 1)).all(1)
    if not bool(kept.any()):
        raise LimbeckError(
            f"all {len(faces)} faces of the mesh lie in one place each: there is no surface, choose a shorter edge"
        )
    return _kept(mesh._replace(faces=faces), kept)


def largest_component(mesh: Mesh) -> Mesh:
    """The connected part with the largest surface, without vertices that no face uses."""
    part = components(mesh)
    sizes = face_vectors(mesh).detach().norm(dim=1)
    sums = torch.zeros(int(part.max()) + 1, dtype=sizes.dtype, device=sizes.device).index_add(0, part, sizes)
    return _kept(mesh, part == sums.argmax())


def _kept(mesh: Mesh, kept: Tensor) -> Mesh:
    """Some of the faces (F,), and the vertices that they use."""
    used, faces = torch.unique(mesh.faces[kept], return_inverse=True)
    colours = None if mesh.colours is None else mesh.colours[used]
    return Mesh(mesh.vertices[used], faces, colours, None if mesh.uv is None else mesh.uv[kept], mesh.texture)


def normal_consistency(mesh: Mesh) -> Tensor:
    """mean over edges of 1 - n_f . n_g, in [0, 2], of the two faces' normals; 0 for a plane, ()."""
    found = edges(mesh.faces)
    normals = face_normals(mesh)
    pairs = found.faces[found.sharing == 2]
    n, m = normals[pairs[:, 0]], normals[pairs[:, 1]]
    proper = (n.detach().abs().sum(1) > 0) & (m.detach().abs().sum(1) > 0)
    return (1 - (n * m).sum(1))[proper].sum() / proper.sum().clamp(min=1)


def laplacian(mesh: Mesh) -> Tensor:
    """Uniform Laplacian loss: mean over vertices of || mean of the neighbours - v ||, in world units, ()."""
    a, b = edges(mesh.faces).vertices.unbind(1)
    v = mesh.vertices
    total = torch.zeros_like(v).index_add(0, torch.cat([a, b]), v[torch.cat([b, a])])
    degree = torch.bincount(torch.cat([a, b]), minlength=len(v))
    used = degree > 0
    return (total[used] / degree[used, None] - v[used]).norm(dim=1).mean()
