"""An image teacher in closed form over renders of known objects: no training, no randomness, exact scores at every noise level.

The data are renders of ``heads`` from the views of a turntable, so the optimal denoiser is a sum over them, and a prompt, a known
camera or a bias towards the front is nothing but other weights. What a scene became can be compared with the object itself, from
cameras that the library does not hold. A teacher like this can only ask for pictures that it knows: judge by the object, never
by the teacher alone, and beside controls (the prompt of another object, a library in disorder).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from limbeck.denoisers import FiniteSetDenoiser
from limbeck.errors import LimbeckError
from limbeck.noise import CosineVP, Process
from limbeck.scenes import Cameras, Head, angles, heads, orbit, render_head

Objects = int | Sequence[int] | Tensor | None
CLOSE = 1e-3  # degrees: angles of cameras in float32 are no exacter


class LinearLatents(nn.Module):
    """A frozen linear autoencoder: z = P (x - centre) / scale and back, with orthonormal rows of P (d, D).

    ``shape`` of an image and ``latent_shape``, of D and d <= D numbers. Differentiable, as an encoder in the graph must be.
    """

    P: Tensor
    centre: Tensor

    def __init__(self, P: Tensor, centre: Tensor, shape: tuple[int, ...], latent_shape: tuple[int, ...], scale: float = 1.0):
        super().__init__()
        self.register_buffer("P", P)
        self.register_buffer("centre", centre)
        self.shape, self.latent_shape, self.scale = tuple(shape), tuple(latent_shape), float(scale)

    @classmethod
    def random(cls, shape: tuple[int, ...], latent_shape: tuple[int, ...], seed: int = 0) -> "LinearLatents":
        """A random projection, drawn from the seed."""
        D, d = _sizes(shape, latent_shape)
        draw = torch.randn(D, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return cls(torch.linalg.qr(draw)[0].T.contiguous().float(), torch.zeros(D), shape, latent_shape)

    @classmethod
    def principal(cls, images: Tensor, latent_shape: tuple[int, ...]) -> "LinearLatents":
        """The leading principal directions of images (n, *shape), scaled so that the latents have a mean square of 1."""
        shape = tuple(images.shape[1:])
        D, d = _sizes(shape, latent_shape)
        if d > len(images):
            raise LimbeckError(f"{len(images)} images have no {d} principal directions: give more images or a smaller latent")
        flat = images.reshape(len(images), D).double()
        P = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:d]
        scale = float(((flat - flat.mean(0)) @ P.T).square().mean().sqrt())
        return cls(P.float(), flat.mean(0).float(), shape, latent_shape, scale or 1.0)

    def encode(self, x: Tensor) -> Tensor:
        """Latents (B, *latent_shape) of images (B, *shape)."""
        if tuple(x.shape[1:]) != self.shape:
            raise LimbeckError(f"images of shape {tuple(x.shape)} do not fit an encoder of {self.shape}")
        z = (x.reshape(len(x), -1) - self.centre.to(x)) @ self.P.to(x).T / self.scale
        return z.reshape(len(x), *self.latent_shape)

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, *shape) of latents: what the projection left of them."""
        x = self.scale * z.reshape(len(z), -1) @ self.P.to(z) + self.centre.to(z)
        return x.reshape(len(z), *self.shape)


def _sizes(shape: tuple[int, ...], latent_shape: tuple[int, ...]) -> tuple[int, int]:
    D, d = math.prod(shape), math.prod(latent_shape)
    if not 1 <= d <= D:
        raise LimbeckError(f"latents of shape {tuple(latent_shape)} for images of shape {tuple(shape)}: give 1 to {D} numbers")
    return D, d


@dataclass(frozen=True, eq=False)
class RenderLibrary:
    """Images (K, V, 3, H, W) in [-1, 1] of K objects from V cameras, in parallel rays through ``extent`` world units.

    ``latents``: the teacher then knows encoded renders. Point j of the teacher is object j // V from view j % V.
    """

    images: Tensor
    cameras: Cameras
    objects: tuple[Head, ...]
    extent: float | None
    background: float = 1.0
    latents: LinearLatents | None = None

    @classmethod
    def of_heads(
        cls,
        count: int = 4,
        views: int = 24,
        elevations: Sequence[float] = (0.0,),
        size: int = 16,
        extent: float | None = 1.6,
        background: float = 1.0,
        samples: int = 3,
    ) -> "RenderLibrary":
        """Renders of ``count`` heads from ``views`` azimuths, the front first, at each of the elevations (degrees).

        ``extent`` None: in perspective. ``size``: pixels of a side, of ``samples`` x ``samples`` rays each.
        """
        if views < 1 or not elevations:
            raise LimbeckError(f"{views} views at {len(elevations)} elevations: a library needs at least one of each")
        azimuth = torch.arange(views, dtype=torch.float64) * 360 / views
        azimuth = torch.where(azimuth > 180, azimuth - 360, azimuth).float()
        tilt = torch.tensor(list(elevations)).float().repeat_interleave(views)
        cameras = orbit(azimuth.repeat(len(elevations)), tilt, width=size, height=size)
        made = tuple(heads(count))
        images = torch.stack([render_head(head, cameras, extent, background, samples).image for head in made])
        return cls(images, cameras, made, extent, background)

    @property
    def azimuth(self) -> Tensor:
        """Of the views, degrees in (-180, 180], (V,)."""
        return angles(self.cameras.position)[0]

    @property
    def elevation(self) -> Tensor:
        """Of the views, degrees, (V,)."""
        return angles(self.cameras.position)[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the teacher knows: an image, or its latent."""
        return tuple(self.images.shape[2:]) if self.latents is None else self.latents.latent_shape

    def front(self, width: float = 30.0) -> Tensor:
        """Which views lie within ``width`` degrees of azimuth 0, (V,): 5 of 24."""
        return self.azimuth.abs() <= width + CLOSE

    def encode(self, images: Tensor) -> Tensor:
        """Renders (B, 3, H, W) as the teacher knows them, with gradient."""
        return images if self.latents is None else self.latents.encode(images)

    def teacher(self, process: Process | None = None, bandwidth: float = 0.0) -> FiniteSetDenoiser:
        """The exact denoiser of all K V renders, equally likely, in a process (default: CosineVP).

        ``bandwidth`` tau: every render is N(y, tau^2 I), in the units of what is denoised. At 0 the gradients of rules that
        compare two answers of the teacher (with different conditions or times) all but vanish; 0.1 to 0.3 keeps them alive.
        """
        return FiniteSetDenoiser(self.encode(self.images.flatten(0, 1)), process or CosineVP(), bandwidth=bandwidth)

    def condition(
        self,
        batch: int,
        objects: Objects = None,
        azimuth: Tensor | None = None,
        elevation: Tensor | None = None,
        width: float = 50.0,
        front_share: float | None = None,
    ) -> dict[str, Tensor]:
        """{"prior": log weights (B, K V)}: what a prompt and a camera leave of the library. Nothing given: the null condition.

        ``objects``: one, several (equally likely), or one per sample (B,). ``azimuth`` and ``elevation`` (B,), degrees: the
        views within ``width`` of the azimuth, and at the nearest elevation; the nearest view always, so that width 0 is a
        camera known exactly. ``front_share``: the front views of each object hold this share together (a prompt that says
        nothing of the view, to a teacher that has seen mostly fronts), before the camera chooses among them.
        """
        V = self.images.shape[1]
        views = torch.zeros(batch, V, dtype=torch.float64)
        if front_share is not None:
            views = views + self._biased(front_share)
        if azimuth is not None:
            away = ((self.azimuth - _rows(azimuth, batch, "azimuth") + 180) % 360 - 180).abs()
            views = views.masked_fill(away > away.amin(1, keepdim=True).clamp(min=width) + CLOSE, -torch.inf)
        if elevation is not None:
            away = (self.elevation - _rows(elevation, batch, "elevation")).abs()
            views = views.masked_fill(away > away.amin(1, keepdim=True) + CLOSE, -torch.inf)
        chosen = self._chosen(objects, batch)
        log = torch.where(chosen[..., None], views[:, None], -torch.inf).flatten(1)
        return {"prior": log - torch.logsumexp(log, 1, keepdim=True)}

    def truth(self, index: int, cameras: Cameras) -> Tensor:
        """Images (B, 3, H, W) of the object itself from any cameras."""
        return render_head(self.objects[index], cameras, self.extent, self.background).image

    def shuffled(self, seed: int) -> "RenderLibrary":
        """A control: the same images, each as another object's view, so that no object looks like its renders."""
        K, V = self.images.shape[:2]
        order = torch.randperm(K * V, generator=torch.Generator().manual_seed(seed))
        return replace(self, images=self.images.flatten(0, 1)[order].unflatten(0, (K, V)))

    def _biased(self, share: float) -> Tensor:
        """Log weights (V,) of the views where the front ones hold ``share``."""
        front = self.front()
        others = len(front) - int(front.sum())
        if not 0 <= share <= 1 or others == 0:
            raise LimbeckError(
                f"front_share={share:g} over {len(front)} views, {others} of them not in front: give a share in [0, 1], and a "
                "library with other views"
            )
        each = torch.where(front, share / max(1, int(front.sum())), (1 - share) / others)
        return each.double().log()

    def _chosen(self, objects: Objects, batch: int) -> Tensor:
        """Which objects every sample may be, (B, K)."""
        K = len(self.images)
        if objects is None:
            return torch.ones(batch, K, dtype=torch.bool)
        index = torch.as_tensor(objects)
        if isinstance(objects, Tensor) and index.ndim == 1:
            if len(index) != batch:
                raise LimbeckError(f"{len(index)} objects for a batch of {batch}: a tensor names one per sample")
            rows = index[:, None]
        else:
            rows = index.reshape(1, -1).expand(batch, -1)
        if rows.shape[1] == 0 or rows.is_floating_point() or bool(((rows < 0) | (rows >= K)).any()):
            raise LimbeckError(f"objects {index.tolist()}: name at least one of the library's {K}, by whole numbers 0..{K - 1}")
        return torch.zeros(batch, K, dtype=torch.bool).scatter(1, rows.long(), True)


def _rows(angle: Tensor, batch: int, name: str) -> Tensor:
    if angle.shape != (batch,):
        raise LimbeckError(
            f"{name} of shape {tuple(angle.shape)} for a batch of {batch}: give one angle per sample, in degrees"
        )
    return angle.detach().cpu().double()[:, None]
