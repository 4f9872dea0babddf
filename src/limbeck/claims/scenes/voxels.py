"""Small scenes that the claims train: voxel grids of heads before the exact teacher of renders, and pictures as scenes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, FiniteSetDenoiser
from limbeck.metrics import nearest_views, psnr
from limbeck.noise import CosineVP
from limbeck.scenes import Cameras, angles, orbit
from limbeck.scenes.volume import VolumeScene
from limbeck.scenes.voxels import VoxelGrid
from limbeck.tasks.scenes.renders import RenderLibrary
from limbeck.tasks.scenes.task import SceneTask
from limbeck.training import Keyed, Loop, LoopOptions

SIZE, VOXELS, SAMPLES, EXTENT = 16, 18, 18, 1.6
Objects = tuple[int, ...] | None


def grids(count: int, seed: int, noise: float, radius: float = 1.0, samples: int = SAMPLES) -> VolumeScene:
    """``count`` voxel scenes side by side: grey blobs with their own noise of that standard deviation."""
    draw = Keyed(seed, 0, torch.arange(count)).normal("start", (4, VOXELS, VOXELS, VOXELS))
    return VolumeScene(VoxelGrid(VOXELS, count, radius, noise * draw), samples=samples, radius=radius, extent=EXTENT)


def voxel_task(library: RenderLibrary, objects: Objects, width: float = 0.0, noise: float = 0.3, **more: Any) -> SceneTask:
    """Voxel scenes seen from the library's own views; the prompt: some of its objects, equally likely, from within ``width``
    degrees of the camera. ``objects`` None: the prompt says nothing.
    """

    def cameras(u: Tensor, step: int) -> Cameras:
        return library.cameras[(u[:, 0] * len(library.cameras)).long()]

    def goal(at: Cameras) -> Cond | None:
        return None if objects is None else library.condition(len(at), objects, angles(at.position)[0], width=width)

    return SceneTask(
        name="voxels", teacher=library.teacher(), shape=library.shape, cameras=cameras, goal=goal, encode=library.encode,
        scene=lambda seed: grids(1, seed, noise), together=lambda count, seed: grids(count, seed, noise),
        background=(library.background + 1) / 2, sigma_data=float(library.images.std()), **more,
    )  # fmt: skip


def trained(method: Any, seed: int) -> Any:
    """A method after its run."""
    o = method.options
    Loop(method, method.task.source, LoopOptions(o.iterations, o.batch, seed=seed), quiet=True).train()
    return method


def between_views(size: int = SIZE, count: int = 12) -> Cameras:
    """Cameras halfway between those of a turntable of 24."""
    azimuth = 7.5 + torch.arange(count) * 360.0 / count
    return orbit(torch.where(azimuth > 180, azimuth - 360, azimuth), 0.0, width=size, height=size)


@torch.no_grad()
def looked_at(method: Any, cameras: Cameras) -> Tensor:
    """Renders (n, C, 3, H, W) in [-1, 1] of all particles."""
    n, C = len(method.particles), len(cameras)
    which, rows = torch.arange(n).repeat_interleave(C), torch.arange(C).repeat(n)
    background = torch.full((n * C, 3), float(method.task.background))
    (look,) = method.particles(cameras[rows], which, background)
    return look.seen.image.clamp(-1, 1).unflatten(0, (n, C))


class Reached(NamedTuple):
    """Which object each of n scenes became (n,), and its PSNR to it in dB (n,)."""

    objects: Tensor
    psnr: Tensor


def reached(library: RenderLibrary, renders: Tensor, cameras: Cameras) -> Reached:
    """Of renders (n, C, 3, H, W) by cameras that the library need not hold: nearest by mean error."""
    true = torch.stack([library.truth(k, cameras) for k in range(len(library.objects))])
    objects = nearest_views(renders, true)
    return Reached(objects, psnr(renders, true[objects]))


# -- pictures as scenes -----------------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """A picture as what cameras see, whatever they are."""

    rgb: Tensor
    opacity: Tensor
    depth: Tensor

    @property
    def image(self) -> Tensor:
        """From [0, 1] to [-1, 1]."""
        return 2 * self.rgb - 1


class Pictures(nn.Module):
    """n pictures (n, C, H, W) that begin as N(0, std^2) in [-1, 1]: score distillation in two dimensions."""

    def __init__(self, shape: tuple[int, ...], count: int, seed: int, std: float):
        super().__init__()
        self.values = nn.Parameter(std * Keyed(seed, 0, torch.arange(count)).normal("start", shape))

    def forward(self, cameras: Cameras, background: Any = 0.0, which: Tensor | None = None) -> Picture:
        rgb = (self.values[which] + 1) / 2
        full = torch.ones_like(rgb[:, :1])
        return Picture(rgb, full, full)


def picture_task(bank: Tensor, std: float = 0.1) -> SceneTask:
    """Pictures that are to be distributed like a bank (N, C, H, W); there is one camera, which changes nothing."""
    shape = tuple(bank.shape[1:])
    one = orbit(0.0, width=shape[2], height=shape[1])
    return SceneTask(
        name="pictures", teacher=FiniteSetDenoiser(bank, CosineVP()), shape=shape,
        cameras=lambda u, step: one[torch.zeros(len(u), dtype=torch.long)],
        scene=lambda seed: Pictures(shape, 1, seed, std), together=lambda count, seed: Pictures(shape, count, seed, std),
        sigma_data=float(bank.std()),
    )  # fmt: skip
