"""Pictures of meshes, and the scene that learns one: a surface with a colour at each of its points."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.scenes.cameras import Cameras
from limbeck.scenes.compositing import over
from limbeck.scenes.meshes import Mesh, check_mesh, collapsed, vertex_normals
from limbeck.scenes.outlines import SOFTNESS, soft_outlines
from limbeck.scenes.rasterise import Fragments, interpolate, rasterise
from limbeck.scenes.texture import sample_texture

Colour = Callable[[Tensor], Tensor]  # points (N, 3) in the world -> colours (N, 3) in [0, 1]


class MeshRendered(NamedTuple):
    """B pictures of H x W pixels in the dtype of the vertices.

    ``rgb`` (B, 3, H, W) in [0, 1]; ``opacity`` (B, 1, H, W); ``depth`` (B, 1, H, W), the opacity times the depth along the camera's
    axis; ``normal`` (B, 3, H, W), (n + 1) / 2 of the outward unit normals in the world, over the same background as rgb.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    normal: Tensor

    @property
    def image(self) -> Tensor:
        """rgb from [0, 1] to the library's [-1, 1], (B, 3, H, W)."""
        return 2 * self.rgb - 1


def render_mesh(
    mesh: Mesh,
    cameras: Cameras,
    background: Tensor | float = 0.0,
    colour: Colour | None = None,
    softness: float = SOFTNESS,
    near: float = 0.01,
    extent: float | None = None,
) -> MeshRendered:
    """The mesh seen by B cameras, differentiable in vertices and colours.

    ``background``: a number, (3,), (B, 3) or (B, 3, H, W); ``colour``: of points of the surface, by default the mesh's texture, or
    its vertices' colours, or else grey; ``softness`` of the outline in pixels, 0 for a hard one without gradient; ``near`` and
    ``extent`` as in :func:`limbeck.scenes.rasterise`.
    """
    check_mesh(mesh)
    fragments = rasterise(mesh.vertices, mesh.faces, cameras, near, extent)
    opacity = fragments.covered[:, None].to(mesh.vertices.dtype)
    if softness != 0:
        opacity, fragments = soft_outlines(fragments, mesh.vertices, mesh.faces, cameras, softness, near, extent)
    normal = F.normalize(interpolate(fragments, mesh.faces, vertex_normals(mesh)), dim=-1, eps=1e-6).movedim(-1, 1)
    rgb = _colours(mesh, fragments, colour).movedim(-1, 1)
    return MeshRendered(
        over(opacity * rgb, opacity, background),
        opacity,
        opacity * fragments.depth[:, None],
        over(opacity * (normal + 1) / 2, opacity, background),
    )


def _colours(mesh: Mesh, fragments: Fragments, colour: Colour | None) -> Tensor:
    """(B, H, W, 3)."""
    seen = fragments.covered.nonzero(as_tuple=True)
    faces, weights = fragments.face[seen], fragments.weights[seen][..., None]
    if colour is not None:
        points = (weights * mesh.corners[faces]).sum(1)
        found = colour(points)
        if found.shape != points.shape:
            raise LimbeckError(
                f"a colour field gave {tuple(found.shape)} for points {tuple(points.shape)}: give (N, 3) for (N, 3)"
            )
        if not bool(((found >= 0) & (found <= 1)).all()):
            raise LimbeckError(
                f"a colour field gave values from {float(found.detach().min()):g} to {float(found.detach().max()):g}: colours lie "
                "in [0, 1], end with a sigmoid"
            )
    elif mesh.texture is not None and mesh.uv is not None:
        found = sample_texture(mesh.texture, (weights * mesh.uv[faces]).sum(1))
    elif mesh.colours is not None:
        found = (weights * mesh.colours[mesh.faces[faces]]).sum(1)
    else:
        found = torch.full_like(weights[:, :, 0], 0.5)
    found = found.to(mesh.vertices.dtype)
    return found.new_zeros(*fragments.face.shape, 3).index_put(seen, found)


class ColourGrid(nn.Module):
    """Colours sigmoid(.) of ``size``^3 values of [-radius, radius]^3, between them trilinear; grey at first.

    ``values`` (3, size, size, size), the last three axes z, y, x. Beyond the box the values of its faces go on.
    """

    def __init__(self, size: int = 32, radius: float = 1.0) -> None:
        super().__init__()
        if size < 2 or not radius > 0:
            raise LimbeckError(f"size={size} and radius={radius:g}: a grid of colours needs size >= 2 and a positive radius")
        self.radius = radius
        self.values = nn.Parameter(torch.zeros(3, size, size, size))

    def forward(self, points: Tensor) -> Tensor:
        places = (points / self.radius).reshape(1, 1, 1, -1, 3).to(self.values.dtype)
        found = F.grid_sample(self.values[None], places, align_corners=True, padding_mode="border")
        return torch.sigmoid(found[0, :, 0, 0].T)


class MeshScene(nn.Module):
    """A ``surface`` (a module without inputs that gives a :class:`Mesh`, as :class:`limbeck.scenes.DMTet`) and a ``colour`` of points
    (a module, as :class:`ColourGrid`; None: the mesh's own), called with cameras and a background. ``extent``: as in :func:`rasterise`.

    For learning the geometry alone, take ``normal`` of the pictures; for the colour alone, ``surface.requires_grad_(False)``.
    """

    def __init__(
        self, surface: nn.Module, colour: nn.Module | None = None, softness: float = SOFTNESS, extent: float | None = None
    ) -> None:
        super().__init__()
        self.surface, self.colour, self.softness, self.extent = surface, colour, softness, extent

    def forward(self, cameras: Cameras, background: Tensor | float = 0.0) -> MeshRendered:
        return render_mesh(self.surface(), cameras, background, self.colour, self.softness, extent=self.extent)

    @torch.no_grad()
    def detached(self) -> Mesh:
        """The surface as it is, with the colours of its vertices and without edges of almost no length, to be written or drawn."""
        mesh = collapsed(self.surface())
        return mesh if self.colour is None else mesh._replace(colours=self.colour(mesh.vertices).to(mesh.vertices.dtype))
