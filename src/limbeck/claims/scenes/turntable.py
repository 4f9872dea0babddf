"""A voxel scene that learns a head on a turntable from a prompt that says little of the view; how its sides are judged."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.claims.claim import Figures
from limbeck.claims.scenes.voxels import EXTENT, SIZE, grids, voxel_task
from limbeck.denoisers import Cond
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
from limbeck.tasks.scenes.renders import RenderLibrary
from limbeck.tasks.scenes.task import SceneTask


def on_turntable(u: Tensor, step: int) -> Cameras:
    """Cameras at elevation 0, one at random in each of equal parts of the circle."""
    azimuth = (torch.arange(len(u)) + u[:, 0]) * 360 / len(u)
    return orbit(torch.where(azimuth > 180, azimuth - 360, azimuth), width=SIZE, height=SIZE)


def clouds(count: int, seed: int) -> VolumeScene:
    """Voxels no larger than the picture, nearly alike from every side: what they become is the rule's doing."""
    return grids(count, seed, noise=0.1, radius=EXTENT / 2, samples=12)


def turntable_task(library: RenderLibrary, goal: Callable[[Cameras], Cond | None]) -> SceneTask:
    """The library's teacher, told ``goal``, before a voxel scene on a turntable."""
    task = voxel_task(library, None)
    return replace(task, name="turntable", cameras=on_turntable, goal=goal, scene=lambda seed: clouds(1, seed), together=clouds)


def view_figures(renders: Tensor, library: Tensor, front: Tensor) -> Figures:
    """Of one object's renders (V, 3, H, W) by the library's cameras: see :mod:`limbeck.metrics.views`."""
    labels, found = nearest_views(renders, library), view_entropies(view_posterior(renders, library))
    return {
        "front": share_of(labels, front),
        "views": float(len(labels.unique())),
        "entropy": label_entropy(labels),
        "IQ": found.quality,
        "IV": found.variety,
        "order": circular_order_error(labels, len(library)),
        "psnr": float(psnr(renders, library[labels]).mean()),
    }
