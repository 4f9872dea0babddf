"""A head in Gaussian splats, learned from an exact image teacher over renders of the true one (:mod:`limbeck.tasks.scenes.renders`).

The prompt names one head of the library, or several that are equally likely, and the view roughly. The teacher knows pictures
of them from a few turntables and nothing of three dimensions; the truth is known from everywhere, so that what a scene became
is judged from cameras between those of the library.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.metrics import label_entropy, nearest_views, psnr, saturation_ratio, share_of
from limbeck.scenes import Cameras, angles, heads, orbit, render_head
from limbeck.tasks.contract import Column, Figures, Picture, judgement, student_of
from limbeck.tasks.scenes.renders import CLOSE, RenderLibrary
from limbeck.tasks.scenes.task import SceneTask, new_splats

COLUMNS = {
    "psnr": Column("PSNR, dB", "higher"),
    "views": Column("Distinct views", "higher", "count"),
    "front": Column("Seen as the front", "", "percent"),
    "saturation": Column("Saturation / true", "", "number"),
    "objects": Column("Heads reached", "higher", "count"),
}
ELEVATIONS, DISTANCE = (-10.0, 15.0, 40.0), 1.75
JUDGES = 12  # cameras that judge: between the library's in azimuth and in elevation
SPLATS: dict[str, Any] = {"iterations": 800, "guidance": 1.0, "student": {"lr": 0.05, "decay": "cosine"}}
PREFERRED: dict[str, dict[str, Any]] = {
    "prolificdreamer": {**SPLATS, "late": (0.02, 0.3)},
    "esd": {**SPLATS, "batch": 12},
}


@dataclass(frozen=True)
class HeadTask(SceneTask):
    """``library``: what the teacher knows; ``heads``: those that the prompt names; ``held_out``: cameras that judge."""

    library: Any = None
    heads: tuple[int, ...] = (0,)
    held_out: Any = None
    size: int = 48
    best: str | None = "error"

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
            "psnr": float(psnr(images[None], true.image[None])),
            "views": float(len(labels.unique())),
            "front": share_of(labels, self.library.front()[: len(ring)]),
            "saturation": saturation_ratio(images, true.image, true.opacity),
            "entropy": label_entropy(labels),
        }

    @property
    def ring(self) -> Cameras:
        """The library's turntable of the lowest elevation."""
        tilt = self.library.elevation
        return self.library.cameras[: int(((tilt - tilt[0]).abs() < CLOSE).sum())]

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
        student, around = student_of(method), self.around(8)
        pictures = {}
        for i in range(len(student)):
            head = self.reached(self.seen(student, i, self.held_out))
            pair = torch.cat([self.truth(head, around), self.seen(student, i, around)])
            name = "scene" if len(student) == 1 else f"scene_{i}"
            pictures[name] = Picture(pair, len(around), "True head, and the scene", "Every 45 degrees, from the front.")
        return pictures

    def around(self, count: int) -> Cameras:
        """A turntable at the middle elevation."""
        return seen_from(torch.arange(count) * 360.0 / count, ELEVATIONS[1], self.size)


@dataclass(frozen=True)
class HeadOptions:
    """What a person may say of the task."""

    heads: int | None = None
    """Heads that the prompt may mean, equally likely (default: 1); with several, give several --particles."""
    views: int | None = None
    """Views of a turntable that the teacher knows, at each of three elevations (default: 36)."""
    size: int | None = None
    """Pixels of a side (default: 48)."""
    splats: int | None = None
    """Gaussians of a scene (default: 1500)."""
    view_width: float | None = None
    """A prompt for a view leaves the pictures within so many degrees of the camera (default: 5, the nearest one)."""
    front_share: float | None = None
    """The prompt says nothing of the view, and so much of what the teacher knows shows the front: 0.5 provokes a face on every side."""


OPTIONS = HeadOptions


def head_task(
    heads: int = 1,
    views: int = 36,
    size: int = 48,
    splats: int = 1500,
    view_width: float = 5.0,
    front_share: float | None = None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> HeadTask:
    """Splats that become one of ``heads`` equally likely heads; further arguments as in :class:`HeadOptions`.

    Raises LimbeckError for less than one head or two splats.
    """
    if heads < 1:
        raise LimbeckError(f"heads={heads}: the prompt names at least 1")
    library = pictures_of_heads(heads, views, size)
    everyone = tuple(range(heads))

    def cameras(u: Tensor, step: int) -> Cameras:
        return library.cameras[(u[:, 0].cpu() * len(library.cameras)).long()].to(device)

    def goal(at: Cameras) -> Cond:
        azimuth, elevation, _ = angles(at.position)
        if front_share is None:
            told = library.condition(len(at), everyone, azimuth, elevation, view_width)
        else:
            told = library.condition(len(at), everyone, front_share=front_share)
        return {name: value.to(device) for name, value in told.items()}

    between = (torch.arange(JUDGES) * (views // JUDGES or 1) + 0.5) * 360 / views
    held_out = seen_from(between, sum(ELEVATIONS[:2]) / 2, size)
    return HeadTask(
        name="head", teacher=library.teacher().to(device), shape=library.shape, cameras=cameras, goal=goal,
        scene=lambda seed: new_splats(splats, seed).to(device, getattr(torch, dtype)), background=(library.background + 1) / 2,
        sigma_data=float(library.images.std()), options=PREFERRED, facts={"origin": "closed form", "reference": "the true head"},
        library=library, heads=everyone, held_out=held_out, size=size,
    )  # fmt: skip


def pictures_of_heads(count: int, views: int, size: int) -> RenderLibrary:
    """What the teacher knows: heads in perspective, large in the picture, from three turntables."""
    azimuth = (torch.arange(views) * 360.0 / views).repeat(len(ELEVATIONS))
    cameras = seen_from(azimuth, torch.tensor(ELEVATIONS).repeat_interleave(views), size)
    objects = tuple(heads(count))
    images = torch.stack([render_head(head, cameras).image for head in objects])
    return RenderLibrary(images, cameras, objects, None)


def seen_from(azimuth: Tensor, elevation: Tensor | float, size: int) -> Cameras:
    """Upright cameras around the origin."""
    return orbit((azimuth + 180) % 360 - 180, elevation, DISTANCE, width=size, height=size)
