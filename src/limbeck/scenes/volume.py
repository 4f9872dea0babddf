"""Pictures of fields of density and colour by quadrature along rays, differentiable, in bounded memory (arXiv 2003.08934)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.errors import LimbeckError, unknown
from limbeck.scenes.cameras import Cameras
from limbeck.scenes.compositing import over
from limbeck.scenes.rays import Samples, ball_range, blurred, box_range, importance, merged, ray_weights, stratified

BOUNDS = {"box": box_range, "ball": ball_range}
BLOCK = 2**16  # points worked on at once where they are found again: what fits a cache
MAX_POINTS = 2**22  # remembered for the backward pass, about 140 bytes each in float32 on a voxel grid
Field = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(points (B, ..., 3), which (B,) or None) -> density (B, ...) >= 0 per world unit, colour (B, 3, ...) in [0, 1]. ``which`` says which
scene of several each camera looks at.
"""


class VolumeRendered(NamedTuple):
    """B pictures of H x W pixels, from S samples per ray.

    ``rgb`` (B, 3, H, W) in [0, 1] unless the background exceeds it; ``opacity`` (B, 1, H, W); ``depth`` (B, 1, H, W), the sum of weight
    times depth along the camera's axis (divide by the opacity for its mean), and ``variance`` (B, 1, H, W), the sum of weight
    times the squared distance from that mean; ``weights`` (B, H, W, S) of the samples; ``distances`` (B, H, W, S) along the
    rays, of :meth:`VolumeScene.points`.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    variance: Tensor
    weights: Tensor
    distances: Tensor

    @property
    def image(self) -> Tensor:
        """rgb from [0, 1] to the library's [-1, 1], (B, 3, H, W)."""
        return 2 * self.rgb - 1


class VolumeScene(nn.Module):
    """A field and how to look at it: ``scene(cameras, background)`` is a :class:`VolumeRendered`.

    ``field``: a module or function as :data:`Field` says. ``samples`` per ray, stratified in the ``bounds`` ("box": [-radius, radius]^3,
    or "ball"); ``fine`` further ones where the first have their weights. ``extent``: parallel rays through an image that high in world
    units, or None for perspective. As many as ``max_points`` points are remembered for gradients; where there are more, they are
    found again in the backward pass, some rays of each camera at a time.
    """

    def __init__(
        self,
        field: Field,
        samples: int = 64,
        fine: int = 0,
        bounds: str = "box",
        radius: float = 1.0,
        extent: float | None = None,
        max_points: int = MAX_POINTS,
    ) -> None:
        super().__init__()
        if bounds not in BOUNDS:
            raise unknown("bounds", bounds, BOUNDS)
        if samples < 1 or fine < 0 or max_points < 1:
            raise LimbeckError(
                f"samples={samples}, fine={fine}, max_points={max_points}: a ray needs samples >= 1 and fine >= 0, "
                "and memory max_points >= 1"
            )
        self.field = field
        self.samples, self.fine, self.bounds, self.radius = samples, fine, bounds, radius
        self.extent, self.max_points = extent, max_points

    @property
    def rates(self) -> Mapping[str, float]:
        """What the learning rates of the field's parameters are multiplied with (:class:`limbeck.training.Role`), by name."""
        return getattr(self.field, "rates", {})

    def forward(
        self, cameras: Cameras, background: Tensor | float = 0.0, u: Tensor | None = None, which: Tensor | None = None
    ) -> VolumeRendered:
        """The field seen by B cameras.

        ``background``: a number, (3,), (B, 3) or (B, 3, H, W). ``u``: uniform numbers in [0, 1) that place the samples, of a shape that
        expands to (B, H, W, samples + fine); None takes the middles. ``which`` (B,): the scene each camera looks at, for fields
        that hold several.
        """
        cameras = self._at_home(cameras)
        B, H, W = len(cameras), cameras.height, cameras.width
        o, d = (x.reshape(B, H * W, 3) for x in self.rays(cameras))
        along = -(d * cameras.c2w[:, None, :3, 2]).sum(-1)
        given = [o, d, along] if u is None else [o, d, along, self._numbers(u.to(o), (B, H, W))]
        S = self.samples + self.fine
        if self.max_points >= B * H * W * S:
            parts = [self._march(which, *given)]
        else:
            rays = max(min(BLOCK, self.max_points) // (B * S), 1)
            pieces = zip(*(x.split(rays, 1) for x in given), strict=True)
            parts = [checkpoint(self._march, which, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
        sums, weights, t = (torch.cat(x, dim) for x, dim in zip(zip(*parts, strict=True), (2, 1, 1), strict=True))
        rgb, opacity, depth, variance = sums.reshape(B, 6, H, W).split([3, 1, 1, 1], 1)
        weights, t = weights.reshape(B, H, W, S), t.reshape(B, H, W, S)
        return VolumeRendered(over(rgb, opacity, background), opacity, depth, variance, weights, t)

    def rays(self, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """(origins, directions of length 1), each (B, H, W, 3), in the world: through one point, or parallel."""
        return cameras.rays() if self.extent is None else cameras.parallel_rays(self.extent)

    def points(self, cameras: Cameras, distances: Tensor) -> Tensor:
        """Where ``distances`` (B, H, W, S) along the rays of B cameras lie in the world, (B, H, W, S, 3)."""
        return _points(*self.rays(self._at_home(cameras)), distances)

    def _at_home(self, cameras: Cameras) -> Cameras:
        """The cameras in the dtype and on the device of the field's parameters, if it has any."""
        like = next(self.parameters(), cameras.c2w)
        if like.device != cameras.c2w.device:
            cameras = cameras.to(like.device)
        return cameras if like.dtype == cameras.c2w.dtype else cameras.to(like.dtype)

    def _numbers(self, u: Tensor, size: tuple[int, int, int]) -> Tensor:
        B, H, W = size
        S = self.samples + self.fine
        try:
            return u.expand(B, H, W, S).reshape(B, H * W, S)
        except RuntimeError as error:
            raise LimbeckError(
                f"uniform numbers of shape {tuple(u.shape)}: give what expands to ({B}, {H}, {W}, {S}), one per camera, row, "
                "column and sample"
            ) from error

    def _march(
        self, which: Tensor | None, o: Tensor, d: Tensor, along: Tensor, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(sums (B, 6, R): red, green, blue, opacity, depth, variance; weights (B, R, S); distances (B, R, S)) of R rays."""
        t, delta = self._place(o, d, u, which)
        density, colour = self.field(_points(o, d, t), which)
        weights, opacity = ray_weights(density * delta)
        z = t * along[..., None]
        rgb = (weights[:, None] * colour).sum(-1)
        depth = (weights * z).sum(-1)
        mean = depth / opacity.clamp(min=1e-6)
        variance = (weights * (z - mean[..., None]).square()).sum(-1)
        return torch.cat([rgb, torch.stack([opacity, depth, variance], 1)], 1), weights, t

    @torch.no_grad()
    def _place(self, o: Tensor, d: Tensor, u: Tensor | None, which: Tensor | None) -> Samples:
        """Samples (B, R, S) of R rays."""
        near, far = BOUNDS[self.bounds](o, d, self.radius)
        first, later = (None, None) if u is None else u.split([self.samples, self.fine], -1)
        samples = stratified(near, far, self.samples, first)
        if not self.fine:
            return samples
        density, _ = self.field(_points(o, d, samples.t), which)
        weights, _ = ray_weights(density * samples.delta)
        return merged(near, far, samples.t, importance(near, far, blurred(weights), self.fine, later))


def _points(o: Tensor, d: Tensor, t: Tensor) -> Tensor:
    return torch.addcmul(o[..., None, :], t[..., None], d[..., None, :])
