"""The producer: n scenes as one module, and what cameras see of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.scenes import Cameras
from limbeck.scenes.scene import Seen
from limbeck.tasks.scenes.task import SceneTask


class Look(NamedTuple):
    """What some rows of a batch see of their scene."""

    rows: Tensor
    seen: Seen


class Particles(nn.Module):
    """Scenes of one kind that are looked at one by one; ``particles(cameras, which, background)`` gives a :class:`Look` for each.

    ``which`` (B,): the scene that each camera looks at; ``background`` (B, 3) in [0, 1].
    """

    def __init__(self, scenes: list[nn.Module]):
        super().__init__()
        self.scenes = nn.ModuleList(scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def rates(self) -> Mapping[str, float]:
        """Factors of the learning rate by parameter, as the scenes name them."""
        return getattr(self.scenes[0], "rates", {})

    def forward(self, cameras: Cameras, which: Tensor, background: Tensor) -> list[Look]:
        places = [(i, (which == i).nonzero()[:, 0]) for i in which.unique().tolist()]
        return [Look(rows, self.scenes[i](cameras[rows], background[rows])) for i, rows in places]


class Together(nn.Module):
    """The same for a module that holds n scenes and renders all of them at once."""

    def __init__(self, scenes: nn.Module, count: int):
        super().__init__()
        self.scenes, self.count = scenes, count

    def __len__(self) -> int:
        return self.count

    @property
    def rates(self) -> Mapping[str, float]:
        """Factors of the learning rate by parameter, as the scenes name them."""
        return getattr(self.scenes, "rates", {})

    def forward(self, cameras: Cameras, which: Tensor, background: Tensor) -> list[Look]:
        return [Look(torch.arange(len(which), device=which.device), self.scenes(cameras, background, which=which))]


def particles_of(task: SceneTask, count: int, seed: int) -> Any:
    """``count`` new scenes of a task; particle i of a seed starts as the task's scene of seed + i."""
    if task.together is not None:
        return Together(task.together(count, seed), count)
    return Particles([task.scene(seed + i) for i in range(count)])


def pictures(looks: list[Look]) -> Tensor:
    """The images (B, 3, H, W) in [-1, 1] of all rows, in their order."""
    order = torch.cat([look.rows for look in looks]).argsort()
    return torch.cat([look.seen.image for look in looks])[order]
