"""Voxels that learn a head on a turntable from the exact image teacher, small enough to be trained many times; how they are judged."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.claims.claim import Figures
from limbeck.denoisers import Cond
from limbeck.methods.scenes.prolificdreamer import ProlificDreamer
from limbeck.metrics import (
    circular_order_error,
    label_entropy,
    nearest_views,
    psnr,
    share_of,
    view_entropies,
    view_posterior,
)
from limbeck.scenes import Cameras, orbit
from limbeck.scenes.volume import VolumeScene
from limbeck.scenes.voxels import VoxelGrid
from limbeck.tasks.renders import RenderLibrary
from limbeck.tasks.scenes import SceneTask
from limbeck.training import Keyed, Loop, LoopOptions

PIXELS, VOXELS, SAMPLES, RADIUS = 16, 18, 12, 0.8  # of an image's side, of a grid's side, of a ray; half the grid's side


def on_turntable(u: Tensor, step: int) -> Cameras:
    """Cameras at elevation 0, one at random in each of equal parts of the circle."""
    azimuth = (torch.arange(len(u)) + u[:, 0]) * 360 / len(u)
    return orbit(torch.where(azimuth > 180, azimuth - 360, azimuth), width=PIXELS, height=PIXELS)


def voxels(count: int, seed: int, noise: float = 0.1) -> nn.Module:
    """``count`` grids of a grey cloud, each with noise of its own seed."""
    shape = (4, VOXELS, VOXELS, VOXELS)
    start = torch.cat([Keyed(seed + i, 0, torch.zeros(1, dtype=torch.long)).normal("voxels", shape) for i in range(count)])
    return VolumeScene(VoxelGrid(VOXELS, count, RADIUS, noise * start.float()), SAMPLES, radius=RADIUS, extent=2 * RADIUS)


def turntable_task(library: RenderLibrary, goal: Callable[[Cameras], Cond | None]) -> SceneTask:
    """The library's teacher, told ``goal``, before voxels on a turntable."""
    return SceneTask(
        "turntable", library.teacher(), library.shape, on_turntable, lambda seed: voxels(1, seed), goal, together=voxels
    )


def trained(method: ProlificDreamer, seed: int) -> Tensor:
    """Renders (n, V, 3, H, W) of a method's scenes by the cameras of the heads' library, after its training."""
    options, task = method.options, method.task
    Loop(method, task.source, LoopOptions(options.iterations, options.batch, seed=seed, log_every=1000), quiet=True).train()
    azimuth = torch.arange(24) * 15.0
    cameras, found = orbit(azimuth, width=PIXELS, height=PIXELS), []
    for i in range(options.particles):
        with torch.no_grad():
            (look,) = method.particles(cameras, torch.full((24,), i), torch.ones(24, 3))
        found.append(look.seen.image.clamp(-1, 1))
    return torch.stack(found)


def view_figures(renders: Tensor, library: Tensor, front: Tensor) -> Figures:
    """Of one object's renders (V, 3, H, W) by the library's cameras: see :mod:`limbeck.metrics.views`."""
    labels, found = nearest_views(renders, library), view_entropies(view_posterior(renders, library))
    nearest = library[labels]
    return {
        "front": share_of(labels, front),
        "views": float(len(labels.unique())),
        "entropy": label_entropy(labels),
        "IQ": found.quality,
        "IV": found.variety,
        "order": circular_order_error(labels, len(library)),
        "psnr": float(psnr(renders, nearest).mean()),
    }
