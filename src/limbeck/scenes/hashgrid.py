"""A multiresolution hash encoding and a field on it (arXiv 2201.05989), in plain torch, differentiable twice."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.scenes.voxels import blob

PRIMES = (1, 2654435761, 805459861)
INTERPOLATIONS = ("linear", "smoothstep")
BLOCK = 2**13  # points worked on at once: what fits a cache is a third faster


class HashGrid(nn.Module):
    """``levels`` grids of N_l = floor(coarsest b^l) cells a side, b such that the last has ``finest``; ``features`` at each vertex.

    Level l has min((N_l + 1)^3, 2^log2_size) rows of the ``table``: where all vertices fit, each has its own; else vertex (x, y, z)
    has row (x XOR 2654435761 y XOR 805459861 z) mod 2^log2_size, and collisions are left to training. Rows start in U(-1e-4, 1e-4).
    ``active`` counts the levels in use, coarse first: the others give 0 (set it from the step to let detail in by and by).
    ``interpolation`` within a cell: "linear", or "smoothstep" for a continuous gradient.
    """

    cells: Tensor
    strides: Tensor
    offsets: Tensor

    def __init__(
        self,
        levels: int = 16,
        features: int = 2,
        log2_size: int = 19,
        coarsest: int = 16,
        finest: int = 4096,
        interpolation: str = "linear",
    ) -> None:
        super().__init__()
        if levels < 1 or features < 1 or not 1 <= coarsest <= finest or not 1 <= log2_size <= 30:
            raise LimbeckError(
                f"levels={levels}, features={features}, log2_size={log2_size}, coarsest={coarsest}, finest={finest}: a hash grid "
                "needs levels and features >= 1, log2_size in [1, 30] and 1 <= coarsest <= finest"
            )
        if interpolation not in INTERPOLATIONS:
            raise LimbeckError(f"interpolation={interpolation!r}: choose one of {', '.join(INTERPOLATIONS)}")
        growth = math.exp(math.log(finest / coarsest) / max(levels - 1, 1))
        self.resolutions = [
            math.floor(coarsest * growth**level + 1e-6) for level in range(levels)
        ]  # rounding takes no cell away
        self.size, self.interpolation, self.active = 2**log2_size, interpolation, levels
        rows = [min((N + 1) ** 3, self.size) for N in self.resolutions]
        self.dense = sum(self.size >= (N + 1) ** 3 for N in self.resolutions)  # how many levels, always the first
        self.features = features
        cells = torch.tensor(self.resolutions)
        own = torch.stack([torch.ones_like(cells), cells + 1, (cells + 1) ** 2], -1)
        strides = torch.where(torch.arange(levels)[:, None] < self.dense, own, torch.tensor(PRIMES))
        self.register_buffer("cells", cells, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        self.register_buffer("offsets", torch.tensor([0, *rows[:-1]]).cumsum(0), persistent=False)
        self.table = nn.Parameter(torch.empty(sum(rows), features).uniform_(-1e-4, 1e-4))

    @property
    def width(self) -> int:
        """How many numbers the encoding of a point has."""
        return len(self.resolutions) * self.features

    def forward(self, points: Tensor) -> Tensor:
        """The encoding (..., levels * features), coarse levels first, of points (..., 3) in [0, 1]^3; points beyond are moved to
        the nearest face.
        """
        k = self.active
        if not 1 <= k <= len(self.resolutions):
            raise LimbeckError(f"active={k}: a hash grid of {len(self.resolutions)} levels has 1 to all of them in use")
        table = self.table.T.contiguous()  # numbers of one kind in a row: twice as fast
        flat = points.reshape(-1, 3).to(self.table.dtype).clamp(0, 1)
        code = torch.cat([self._encode(part, table, k) for part in flat.split(BLOCK)])
        return F.pad(code, (0, self.width - code.shape[1])).reshape(*points.shape[:-1], self.width)

    def _encode(self, points: Tensor, table: Tensor, k: int) -> Tensor:
        """(P, k F) of P points (P, 3) on the first k levels."""
        d, points = min(self.dense, k), points.T.contiguous()
        parts = [self._levels(points, table, slice(a, b)) for a, b in ((0, d), (d, k)) if b > a]
        return torch.cat(parts, 1).permute(2, 1, 0).flatten(1)

    def _levels(self, points: Tensor, table: Tensor, levels: slice) -> Tensor:
        """Features (F, levels, P) at P points (3, P) on some levels, all dense or none, from the table (F, rows)."""
        cells = self.cells[levels, None]
        place = points[:, None] * cells
        with torch.no_grad():
            low = torch.minimum(place.floor(), cells - 1)
        share = place - low
        if self.interpolation == "smoothstep":
            share = share * share * (3 - 2 * share)
        x, y, z = torch.stack([1 - share, share], 1)  # (2, levels, P) each
        weight = (x[:, None] * y)[:, :, None] * z
        x, y, z = torch.stack([low, low + 1], 1).long() * self.strides[levels].T[:, None, :, None]
        if levels.start < self.dense:
            row = (x[:, None] + y)[:, :, None] + z
        else:
            row = ((x[:, None] ^ y)[:, :, None] ^ z).bitwise_and_(self.size - 1)
        found = table.index_select(1, row.add_(self.offsets[levels, None]).flatten())
        return (found.reshape(-1, 8, *row.shape[3:]) * weight.flatten(0, 2)).sum(1)


class HashField(nn.Module):
    """Density and colour at points by a small network on their hash encoding: a field for :class:`limbeck.scenes.VolumeScene`.

    ``grid`` covers [-radius, radius]^3, or all of space if ``unbounded``: then :func:`contracted` x / radius, with the ball of that
    radius as its inner half. Density is ``gain`` softplus(. + blob) per world unit with the blob named ``kind``
    (:func:`limbeck.scenes.blob`), colour a sigmoid. ``rates``: the table learns 10 times as fast as the network (1e-2 and 1e-3).
    A point takes about 200 bytes of memory for each level; give the scene a ``max_points`` that suits.
    """

    rates = {"table": 10.0}

    def __init__(
        self,
        grid: HashGrid,
        width: int = 64,
        layers: int = 1,
        radius: float = 1.0,
        unbounded: bool = False,
        kind: str = "cone",
        gain: float = 4.0,
    ) -> None:
        super().__init__()
        if width < 1 or layers < 0 or not radius > 0 or not gain > 0:
            raise LimbeckError(
                f"width={width}, layers={layers}, radius={radius:g}, gain={gain:g}: a field needs width >= 1, layers >= 0 and "
                "positive radius and gain"
            )
        blob(torch.zeros(3), kind)  # an unknown one is named now
        self.grid, self.radius, self.unbounded, self.kind, self.gain = grid, radius, unbounded, kind, gain
        sizes = [grid.width] + [width] * layers
        hidden = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.network = nn.Sequential(*hidden, nn.Linear(sizes[-1], 4))

    def forward(self, points: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(density (B, ...), colour (B, 3, ...)) at points (B, ..., 3); one scene, so ``which`` is all 0 or None."""
        if which is not None and bool(which.any()):
            raise LimbeckError(f"which={which.tolist()}: this field holds one scene, 0")
        inside = contracted(points / self.radius) / 4 + 0.5 if self.unbounded else (points / self.radius + 1) / 2
        raw = self.network(self.grid(inside))
        density = self.gain * F.softplus(raw[..., 0] + blob(points, self.kind))
        return density, torch.sigmoid(raw[..., 1:]).movedim(-1, 1)


def contracted(points: Tensor) -> Tensor:
    """Space (..., 3) into the ball of radius 2: x stays within the unit ball, beyond it is (2 - 1 / |x|) x / |x|.

    arXiv 2111.12077, Eq. 10.
    """
    r = points.norm(dim=-1, keepdim=True).clamp(min=1)
    return points * (2 - 1 / r) / r
