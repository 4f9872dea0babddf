"""What the scene methods distil: an image teacher, cameras around something, and scenes that are to become what it asks for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.scenes import (
    NUMBERS,
    Cameras,
    Seen,
    SplatScene,
    Viewpoint,
    angles,
    ball,
    save_gif,
    save_scene,
    save_splats,
    save_strip,
    splats_from_points,
)
from limbeck.tasks.contract import student_of
from limbeck.training import Keyed, TensorSource

CAMERA_NUMBERS = 16  # a critic's camera: c2w, row by row
FRAMES = 24  # of a turntable
# Adam's step in each parameter over that in the opacities' logits: for runs of hundreds of iterations, not of tens of thousands
RATES = {"means": 0.1, "log_scales": 0.4, "quaternions": 0.3, "logits": 1.0, "sh0": 0.4, "shN": 0.02}


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
    facts: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    best: str | None = None

    @torch.no_grad()
    def looked_at(self, student: Any, particle: int, cameras: Cameras) -> Seen:
        """What cameras see of one particle of a student, before the task's background."""
        rows = torch.full((len(cameras),), particle, device=cameras.c2w.device)
        behind = torch.as_tensor(self.background, device=rows.device, dtype=cameras.c2w.dtype).expand(len(cameras), 3)
        (look,) = student(cameras, rows, behind)
        return look.seen

    def seen(self, student: Any, particle: int, cameras: Cameras) -> Tensor:
        """The same as images (B, 3, H, W) in [-1, 1], where the cameras are."""
        return self.looked_at(student, particle, cameras).image.clamp(-1, 1).to(cameras.c2w)

    def leave(self, folder: Path, method: Any, about: Mapping[str, Any]) -> None:
        """Of splats: scene.ply (and scene_1.ply, ... of further particles), scene.json, samples/turntable.gif and strips."""
        student, around = student_of(method), self.around(FRAMES)
        _, elevation, distance = angles(around.position[:1])
        behind: Any = tuple(torch.as_tensor(self.background).expand(3).tolist())
        viewpoint = Viewpoint(float(elevation), float(distance), float(around.fovy[0]), behind)
        for i in range(len(student)):
            splats, tail = student.scenes[i].detached(), f"_{i}" if i else ""
            if i == 0:
                save_scene(folder, splats, viewpoint)
            else:
                save_splats(folder / f"scene{tail}.ply", splats)
            frames = self.seen(student, i, around)
            save_gif(folder / "samples" / f"turntable{tail}.gif", frames)
            save_strip(folder / "samples" / f"strip{tail}.png", frames[::3])

    def around(self, count: int) -> Cameras:
        """A turntable from the front, for those who look."""
        raise NotImplementedError

    def exports(self) -> Mapping[str, Callable[[Any, Path], None]]:
        """The first particle as a PLY of Gaussian splats."""
        return {"ply": lambda method, place: save_splats(place, student_of(method).scenes[0].detached())}


def check_encoder(task: SceneTask, images: Tensor) -> None:
    """Raise LimbeckError unless the task's encoder makes what its teacher knows of pictures (B, 3, H, W)."""
    with torch.no_grad():
        found = tuple(task.encode(images[:1]).shape[1:])
    if found != tuple(task.shape):
        raise LimbeckError(
            f"renders of {tuple(images.shape[1:])} become {found}, but the teacher's data are {tuple(task.shape)}: give cameras of "
            "another size, or an encoder to that shape"
        )


def new_splats(count: int, seed: int, radius: float = 0.7) -> SplatScene:
    """Splats of uncertain grey in a ball."""
    draw = Keyed(seed, 0, torch.arange(count))
    points = ball(draw.uniform("points", (3,)).float(), radius)
    scene = SplatScene(splats_from_points(points, 0.4 + 0.2 * draw.uniform("colour", (3,)).float()))
    scene.rates = RATES
    return scene
