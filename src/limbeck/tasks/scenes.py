"""What the scene methods distil: an image teacher, cameras around something, and scenes that are to become what it asks for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.scenes import NUMBERS, Cameras
from limbeck.training import TensorSource

CAMERA_NUMBERS = 16  # a critic's camera: c2w, row by row


def no_condition(cameras: Cameras) -> Cond | None:
    """What is told of cameras where there is nothing to tell."""
    return None


def unchanged(images: Tensor) -> Tensor:
    """Pictures as they are: the teacher's data are pixels."""
    return images


def camera_vector(cameras: Cameras) -> Tensor:
    """c2w row by row, (B, 16): what a trained critic is told of a camera. Zeros stand for none."""
    return cameras.c2w.flatten(1)


@dataclass(frozen=True)
class SceneTask:
    """``teacher``: a denoiser of what ``encode`` makes of renders, (B, 3, H, W) in [-1, 1] -> (B, *shape), with gradient.

    ``cameras``: (uniform numbers (C, ``numbers``), iteration) -> C cameras. ``scene``: seed -> a new
    :class:`limbeck.scenes.scene.Scene`; ``together``: (n, seed) -> one module that holds n scenes, called with ``which=`` (B,) too
    (None: n of ``scene``). ``goal``: what the teacher is told of cameras (a prompt for each view); ``negative``: what
    its guidance leads away from (None: its null condition). ``cond``: what a trained critic is told beside the camera (the
    prompt without the view). ``network``: makes a network of the teacher's data for a critic of its own (None: a small one).
    """

    name: str
    teacher: Any
    shape: tuple[int, ...]
    cameras: Callable[[Tensor, int], Cameras]
    scene: Callable[[int], nn.Module]
    goal: Callable[[Cameras], Cond | None] = no_condition
    negative: Callable[[Cameras], Cond | None] = no_condition
    cond: Callable[[Cameras], Cond | None] = no_condition
    encode: Callable[[Tensor], Tensor] = unchanged
    background: float | tuple[float, float, float] = 1.0
    """Grey or colour in [0, 1] behind what is rendered."""
    together: Callable[[int, int], nn.Module] | None = None
    network: Callable[[], nn.Module] | None = None
    critic: Any = None
    """The denoiser on which a critic with adapters is built (None: the teacher)."""
    numbers: int = NUMBERS
    sigma_data: float = 0.5
    wing: str = "scenes"
    source: TensorSource = field(default_factory=lambda: TensorSource(None, size=1))
    facts: dict[str, Any] = field(default_factory=dict)


def check_encoder(task: SceneTask, images: Tensor) -> None:
    """Raise LimbeckError unless the task's encoder makes what its teacher knows of pictures (B, 3, H, W)."""
    with torch.no_grad():
        found = tuple(task.encode(images[:1]).shape[1:])
    if found != tuple(task.shape):
        raise LimbeckError(
            f"renders of {tuple(images.shape[1:])} become {found}, but the teacher's data are {tuple(task.shape)}: give cameras of "
            "another size, or an encoder to that shape"
        )
