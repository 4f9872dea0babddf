"""A head in Gaussian splats, learned from an exact image teacher over renders of the true one (:mod:`limbeck.tasks.renders`).

The prompt names one head of the library, or several that are equally likely, and the view roughly. The teacher knows pictures
of them from a few turntables and nothing of three dimensions; the truth is known from everywhere, so that what a scene became
is judged from cameras between those of the library.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.metrics.views import label_entropy, nearest_views, saturation_ratio, share_of
from limbeck.scenes import Cameras, angles, ball, orbit, render_head, save_gif, save_splats, save_strip, splats_from_points
from limbeck.scenes.scene import SplatScene
from limbeck.tasks.contract import Column, Figures, Picture, judgement, student_of
from limbeck.tasks.renders import RenderLibrary
from limbeck.tasks.scenes import SceneTask
from limbeck.training import Keyed

COLUMNS = {
    "psnr": Column("PSNR, dB", "higher"),
    "views": Column("Distinct views", "higher", "count"),
    "front": Column("Seen as the front", "", "percent"),
    "saturation": Column("Saturation / true", "", "number"),
    "objects": Column("Heads reached", "higher", "count"),
}
FRAMES = 24  # of a turntable
# Adam's step in each parameter over that in the opacities' logits: a run of hundreds of iterations, not of tens of thousands
RATES = {"means": 0.1, "log_scales": 0.3, "quaternions": 0.3, "logits": 1.0, "sh0": 0.4, "shN": 0.02}


@dataclass(frozen=True)
class HeadTask(SceneTask):
    """``library``: what the teacher knows; ``heads``: those that the prompt names; ``held_out``: cameras that judge."""

    library: Any = None
    heads: tuple[int, ...] = (0,)
    held_out: Any = None
    size: int = 48
    best: str | None = "error"
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def seen(self, student: Any, particle: int, cameras: Cameras) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of one particle, before the task's background."""
        which = torch.full((len(cameras),), particle)
        with torch.no_grad():
            (look,) = student(cameras, which, torch.full((len(cameras), 3), float(self.background)))
        return look.seen.image.clamp(-1, 1)

    def truth(self, head: int, cameras: Cameras) -> Tensor:
        """The true head from the same cameras."""
        return self.library.truth(head, cameras)

    def reached(self, images: Tensor) -> int:
        """Which of the prompt's heads the renders by the held-out cameras are nearest to."""
        errors = [(images - self.truth(head, self.held_out)).square().mean() for head in self.heads]
        return self.heads[int(torch.stack(errors).argmin())]

    def figures(self, images: Tensor, ring: Tensor) -> Figures:
        """Of renders of one object by the held-out cameras, and by the library's first turntable."""
        head = self.reached(images)
        true = render_head(self.library.objects[head], self.held_out, self.library.extent, self.library.background)
        labels = nearest_views(ring, self.library.images[head, : len(ring)])
        return {
            "psnr": psnr(images, true.image),
            "views": float(len(labels.unique())),
            "front": share_of(labels, self.library.front()[: len(ring)]),
            "saturation": saturation_ratio(images, true.image, true.opacity),
            "entropy": label_entropy(labels),
        }

    @property
    def ring(self) -> Cameras:
        """The library's turntable of the lowest elevation."""
        return self.library.cameras[: int((self.library.elevation == self.library.elevation[0]).sum())]

    def watched(self, method: Any) -> Figures:
        """PSNR and root mean square error of all particles, by the held-out cameras."""
        student, found = student_of(method), []
        for i in range(len(student)):
            images = self.seen(student, i, self.held_out)
            found.append((images - self.truth(self.reached(images), self.held_out)).square().mean())
        error = float(torch.stack(found).mean().sqrt())
        return {"error": error, "psnr": -20 * torch.tensor(error / 2).log10().item()}

    def judged(self, method: Any) -> dict[str, Any]:
        """Against the nearest picture that the teacher knows, which no scene need be consistent with."""
        student, each = student_of(method), []
        reached = set()
        for i in range(len(student)):
            images = self.seen(student, i, self.held_out)
            reached.add(self.reached(images))
            each.append(self.figures(images, self.seen(student, i, self.ring)))
        mean = {name: sum(row[name] for row in each) / len(each) for name in each[0]}
        first = self.heads[0]
        library, ring = self.library.images[first], self.library.images[first, : len(self.ring)]
        nearest = library[nearest_views(self.truth(first, self.held_out), library)]
        rows = {
            "nearest picture of the teacher": {**self.figures(nearest, ring), "objects": float(len(self.heads))},
            "student": {**mean, "objects": float(len(reached))},
        }
        headline = (
            f"{mean['psnr']:.1f} dB to the true head from cameras that the teacher's pictures do not hold; {mean['views']:.0f} of "
            f"{len(ring)} views distinct"
        )
        return judgement(rows, COLUMNS, headline)

    def album(self, method: Any) -> dict[str, Picture]:
        """True heads and the student's, from around."""
        student, around = student_of(method), turned(8, self.size)
        pictures = {}
        for i in range(len(student)):
            head = self.reached(self.seen(student, i, self.held_out))
            pair = torch.cat([self.truth(head, around), self.seen(student, i, around)])
            name = "scene" if len(student) == 1 else f"scene_{i}"
            pictures[name] = Picture(pair, len(around), "True head, and the scene", "Every 45 degrees, from the front.")
        return pictures

    def leave(self, folder: Path, method: Any, about: Mapping[str, Any]) -> None:
        """scene.ply (and scene_1.ply, ... of further particles), scene.json, samples/turntable.gif and strips."""
        student, around = student_of(method), turned(FRAMES, self.size)
        for i in range(len(student)):
            tail = f"_{i}" if i else ""
            save_splats(folder / f"scene{tail}.ply", student.scenes[i].detached())
            frames = self.seen(student, i, around)
            save_gif(folder / "samples" / f"turntable{tail}.gif", frames)
            true = self.truth(self.reached(self.seen(student, i, self.held_out)), around[::3])
            save_strip(folder / "samples" / f"strip{tail}.png", torch.cat([true, frames[::3]], 2))
        view = angles(around.position[:1])
        seen_from = {"elevation": float(view[1]), "distance": float(view[2]), "fovy": float(around.fovy[0])}
        text = json.dumps({**seen_from, "background": [float(self.background)] * 3}, indent=1)
        (folder / "scene.json").write_text(text + "\n")

    def exports(self) -> Mapping[str, Callable[[Any, Path], None]]:
        """The first particle as a PLY of Gaussian splats."""
        return {"ply": lambda student, place: save_splats(place, student.scenes[0].detached())}


def head_task(
    heads: int = 1,
    views: int = 36,
    elevations: tuple[float, ...] = (-10.0, 15.0, 40.0),
    size: int = 48,
    splats: int = 1500,
    width: float = 50.0,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> HeadTask:
    """Splats that become one of ``heads`` equally likely heads, from ``views`` x elevations pictures of ``size`` pixels.

    ``width``: a prompt for a view leaves the pictures within so many degrees of the camera.
    """
    if heads < 1:
        raise LimbeckError(f"heads={heads}: the prompt names at least 1")
    library = RenderLibrary.of_heads(heads, views, elevations, size, extent=None)
    everyone = tuple(range(heads))

    def cameras(u: Tensor, step: int) -> Cameras:
        return library.cameras[(u[:, 0] * len(library.cameras)).long()]

    def goal(at: Cameras) -> Cond:
        azimuth, elevation, _ = angles(at.position)
        return library.condition(len(at), everyone, azimuth, elevation, width)

    middle = (torch.arange(12) + 0.5 / (views / 12)) * 30 % 360
    held_out = orbit(middle, sum(elevations[:2]) / 2, width=size, height=size)
    return HeadTask(
        name="head", teacher=library.teacher(), shape=library.shape, cameras=cameras, goal=goal,
        scene=lambda seed: new_splats(splats, seed), background=(library.background + 1) / 2,
        sigma_data=float(library.images.std()), library=library, heads=everyone, held_out=held_out, size=size,
    )  # fmt: skip


def new_splats(count: int, seed: int, radius: float = 0.7) -> SplatScene:
    """Splats of uncertain grey in a ball."""
    draw = Keyed(seed, 0, torch.arange(count))
    points = ball(draw.uniform("points", (3,)).float(), radius)
    scene = SplatScene(splats_from_points(points, 0.4 + 0.2 * draw.uniform("colour", (3,)).float()))
    scene.rates = RATES
    return scene


def turned(count: int, size: int, elevation: float = 15.0) -> Cameras:
    """A turntable from the front."""
    azimuth = torch.arange(count) * 360.0 / count
    return orbit(azimuth, elevation, width=size, height=size)


def psnr(images: Tensor, truth: Tensor) -> float:
    """In dB, of images in [-1, 1]."""
    return -10 * torch.log10((images - truth).double().square().mean() / 4).item()
