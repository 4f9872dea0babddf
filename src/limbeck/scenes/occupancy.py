"""Where a field is empty, it need not be asked: a grid that remembers the densities of late (arXiv 2201.05989, App. E)."""

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.scenes.volume import Field
from limbeck.scenes.voxels import voxels


class Occupancy(nn.Module):
    """A field that asks ``field`` only at points in cells of [-radius, radius]^3 whose density of late exceeds ``threshold``.

    ``density`` (size, size, size), the axes z, y, x, per world unit, is a buffer: max(decay density, what :meth:`update` finds). All
    cells count as occupied before the first update. Elsewhere density and colour are 0, so pictures miss at most what lies below
    the threshold. For fields of one scene.
    """

    density: Tensor

    def __init__(
        self, field: Field, size: int = 32, radius: float = 1.0, threshold: float = 0.01, decay: float = 0.95, every: int = 16
    ) -> None:
        super().__init__()
        if size < 1 or not radius > 0 or not 0 <= decay < 1 or every < 1 or not threshold >= 0:
            raise LimbeckError(
                f"size={size}, radius={radius:g}, threshold={threshold:g}, decay={decay:g}, every={every}: an occupancy grid needs "
                "size and every >= 1, a positive radius, threshold >= 0 and decay in [0, 1)"
            )
        self.field, self.size, self.radius = field, size, radius
        self.threshold, self.decay, self.every = threshold, decay, every
        self.register_buffer("density", torch.full((size,) * 3, torch.inf))

    @torch.no_grad()
    def update(self, step: int, u: Tensor) -> None:
        """Every ``every`` steps, look at one point in each cell, at shares ``u`` (size, size, size, 3) in [0, 1) of its sides."""
        if step % self.every:
            return
        if u.shape != (*self.density.shape, 3):
            raise LimbeckError(f"uniform numbers of shape {tuple(u.shape)}: give three per cell, {(*self.density.shape, 3)}")
        cell = 2 * self.radius / self.size
        corner = voxels(self.size + 1, self.radius)[:-1, :-1, :-1].to(u)
        found, _ = self.field((corner + cell * u).reshape(1, -1, 3), None)
        found = found.reshape_as(self.density).to(self.density)
        self.density.copy_(torch.where(self.density.isinf(), found, torch.maximum(self.decay * self.density, found)))

    def occupied(self, points: Tensor) -> Tensor:
        """Which points (..., 3) lie in occupied cells, (...); those beyond the grid do not."""
        cell = ((points.detach() / self.radius + 1) * self.size / 2).floor().long()
        inside = ((cell >= 0) & (cell < self.size)).all(-1)
        x, y, z = cell.clamp(0, self.size - 1).unbind(-1)
        return inside & (self.density > self.threshold)[z, y, x]

    def forward(self, points: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(density (B, ...), colour (B, 3, ...)) at points (B, ..., 3)."""
        if which is not None and bool(which.any()):
            raise LimbeckError(f"which={which.tolist()}: an occupancy grid knows one scene, 0")
        here = self.occupied(points)
        asked = here if bool(here.any()) else torch.arange(here.numel(), device=here.device).reshape(here.shape) == 0
        found, colour = self.field(points[asked][None], None)  # one point at least: gradients are 0 then, not missing
        density = here * found.new_zeros(here.shape).masked_scatter(asked, found)
        painted = colour.new_zeros(*here.shape, 3).masked_scatter(asked[..., None], colour[0].T)
        return density, painted.movedim(-1, 1)
