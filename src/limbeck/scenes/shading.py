"""Normals of densities and signed distances, and fields that are lit (arXiv 2209.14988)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError, unknown
from limbeck.scenes.volume import Field

SHADINGS = ("albedo", "textureless", "lambert")
Scalar = Callable[[Tensor], Tensor]
"""points (B, ..., 3) -> numbers (B, ...): a density, or a signed distance."""


def gradient(function: Scalar, points: Tensor, create_graph: bool = True) -> Tensor:
    """The derivative (..., 3) of ``function`` at points (..., 3), by autograd.

    With ``create_graph`` it can be trained through, if the function can be differentiated twice: hash grids can, voxel grids
    cannot (take :func:`gradient_by_differences`).
    """
    with torch.enable_grad():
        points = points if points.requires_grad else points.detach().requires_grad_()
        return torch.autograd.grad(function(points).sum(), points, create_graph=create_graph)[0]


def gradient_by_differences(function: Scalar, points: Tensor, step: float = 0.01) -> Tensor:
    """The derivative (..., 3) by central differences of ``step`` world units to either side: smoother than the analytic one."""
    if not step > 0:
        raise LimbeckError(f"step={step:g}: finite differences need a positive step, in world units")
    axes = step * torch.eye(3, dtype=points.dtype, device=points.device)
    around = torch.stack([points[..., None, :] + axes, points[..., None, :] - axes], -2)
    after, before = function(around).unbind(-1)
    return (after - before) / (2 * step)


def density_normals(gradients: Tensor) -> Tensor:
    """Outward unit normals (..., 3), against the ``gradients`` (..., 3) of a density; 0 where that is 0."""
    return -F.normalize(gradients, dim=-1, eps=torch.finfo(gradients.dtype).tiny ** 0.5)


class Lit(nn.Module):
    """A field whose colour is that of ``field`` under a point light.

    ``light`` (B, 3): where it stands in the world, per camera. ``shading``: "lambert", albedo times ambient + diffuse max(0, n . l);
    "textureless", the same with white for the albedo; "albedo", without light. Normals are by central differences of ``step``.
    """

    def __init__(
        self,
        field: Field,
        light: Tensor,
        shading: str = "lambert",
        ambient: float = 0.1,
        diffuse: float = 0.9,
        step: float = 0.01,
    ) -> None:
        super().__init__()
        if shading not in SHADINGS:
            raise unknown("shading", shading, SHADINGS)
        if light.ndim != 2 or light.shape[1] != 3:
            raise LimbeckError(f"a light of shape {tuple(light.shape)}: give one place in the world per camera, (B, 3)")
        self.field, self.light, self.shading = field, light, shading
        self.ambient, self.diffuse, self.step = ambient, diffuse, step

    def forward(self, points: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(density (B, ...), colour (B, 3, ...)) at points (B, ..., 3)."""
        density, albedo = self.field(points, which)
        if self.shading == "albedo":
            return density, albedo
        normals = density_normals(gradient_by_differences(lambda x: self.field(x, which)[0], points, self.step))
        light = self.light.to(points).reshape(len(self.light), *[1] * (points.ndim - 2), 3)
        facing = (normals * F.normalize(light - points, dim=-1)).sum(-1).clamp(min=0)
        lit = (self.ambient + self.diffuse * facing)[:, None]
        return density, lit.expand_as(albedo) if self.shading == "textureless" else albedo * lit
