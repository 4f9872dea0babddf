"""Fields of density and colour on a regular grid, one scene or several of one shape in one call."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError, unknown

BLOBS = ("cone", "dreamfusion", "magic3d", "none")


def blob(points: Tensor, kind: str = "cone") -> Tensor:
    """What is added to the density before softplus, so that training starts from something in the middle; (...) of points (..., 3).

    r is the distance from the origin in world units. "cone": 4 (1 - r / 0.7); "magic3d": 10 (1 - r / 0.5) (arXiv 2211.10440);
    "dreamfusion": 5 exp(-r^2 / (2 0.2^2)) (arXiv 2209.14988); "none": 0.
    """
    r = points.norm(dim=-1)
    if kind == "cone":
        return 4 * (1 - r / 0.7)
    if kind == "magic3d":
        return 10 * (1 - r / 0.5)
    if kind == "dreamfusion":
        return 5 * torch.exp(-0.5 * (r / 0.2).square())
    if kind == "none":
        return torch.zeros_like(r)
    raise unknown("blob", kind, BLOBS)


class VoxelGrid(nn.Module):
    """Fields on ``size``^3 voxels of [-radius, radius]^3, the outermost on its faces; ``scenes`` of them side by side.

    ``values`` (scenes, 4, size, size, size), the last three axes z, y, x, are interpolated trilinearly; then density =
    ``gain`` softplus(.) per world unit and colour = sigmoid(.). Training starts from a ``blob`` of grey, plus ``start``
    (scenes, 4, size, size, size) if given: several scenes need it to differ. Beyond the box the values of its faces go on.
    """

    def __init__(
        self,
        size: int,
        scenes: int = 1,
        radius: float = 1.0,
        start: Tensor | None = None,
        kind: str = "cone",
        gain: float = 4.0,
    ) -> None:
        super().__init__()
        if size < 2 or scenes < 1 or not radius > 0 or not gain > 0:
            raise LimbeckError(
                f"size={size}, scenes={scenes}, radius={radius:g}, gain={gain:g}: a grid needs size >= 2, scenes >= 1 and "
                "positive radius and gain"
            )
        shape = (scenes, 4, size, size, size)
        if start is not None and start.shape != shape:
            raise LimbeckError(f"start {tuple(start.shape)}: what is added to the values must have their shape {shape}")
        values = torch.zeros(shape) if start is None else start.detach().clone()
        values[:, 0] += blob(voxels(size, radius).to(values), kind)
        self.values = nn.Parameter(values)
        self.radius, self.gain = radius, gain

    def forward(self, points: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(density (B, ...), colour (B, 3, ...)) at points (B, R, S, 3), or any (B, ..., 3).

        ``which`` (B,): the scene that each row looks at; by default the rows are shared out evenly and in order, rows
        0 .. B / scenes - 1 to the first.
        """
        B, inner = len(points), points.shape[1:-1]
        values = self.values if which is None else self._chosen(which, B)
        n = len(values)
        if B % n:
            raise LimbeckError(f"{B} cameras for {n} scenes: give a multiple of {n}, or say with which=... who sees which")
        places = (points / self.radius).reshape(n, B // n, -1, inner[-1] if inner else 1, 3)
        raw = F.grid_sample(values, places, align_corners=True, padding_mode="border")
        density, colour = raw.transpose(1, 2).reshape(B, 4, *inner).split([1, 3], 1)
        return self.gain * F.softplus(density[:, 0]), torch.sigmoid(colour)

    def _chosen(self, which: Tensor, rows: int) -> Tensor:
        n = len(self.values)
        if which.shape != (rows,) or which.is_floating_point() or not bool(((which >= 0) & (which < n)).all()):
            raise LimbeckError(f"which={which.tolist()}: give {rows} whole numbers from 0 to {n - 1}, the scene of each camera")
        return self.values[which]

    @torch.no_grad()
    def resized(self, size: int) -> "VoxelGrid":
        """The same fields on another number of voxels, interpolated trilinearly (exactly, where size - 1 is a multiple)."""
        other = VoxelGrid(size, len(self.values), self.radius, gain=self.gain).to(self.values)
        other.values.copy_(F.interpolate(self.values, size=(size,) * 3, mode="trilinear", align_corners=True))
        return other


def voxels(size: int, radius: float = 1.0) -> Tensor:
    """World positions of a grid's voxels, (size, size, size, 3), the axes z, y, x."""
    axis = torch.linspace(-radius, radius, size)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], -1)
