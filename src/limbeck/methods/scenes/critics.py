"""Who knows the score of the renders: its closed form over what is there, a network with a camera, or adapters on the teacher."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, FiniteSetDenoiser, Preconditioned
from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import trained_copy
from limbeck.methods.scenes.options import SceneOptions
from limbeck.networks import ResidualMLP
from limbeck.noise import Process
from limbeck.tasks.scenes.task import CAMERA_NUMBERS, SceneTask


def exact_critic(renders: Tensor, process: Process) -> FiniteSetDenoiser:
    """The exact denoiser of the law of ``renders`` (n, *shape), equally likely: scenes are points, so their law is a finite set."""
    return FiniteSetDenoiser(renders, process)


def same_camera(camera: Tensor, cameras: Tensor) -> Cond:
    """{"prior": log weights (B, n)}: of n renders those from a row's own camera. ``camera`` (B,) and ``cameras`` (n,): their numbers."""
    same = camera[:, None] == cameras
    return {"prior": torch.where(same, 0.0, -torch.inf).double()}


def network_critic(task: SceneTask, options: SceneOptions) -> nn.Module:
    """A new network that is told the camera."""
    network = ResidualMLP(task.shape) if task.network is None else task.network()
    return Preconditioned(camera_told(network), task.teacher.process, "edm", task.sigma_data)


def adapter_critic(task: SceneTask, options: SceneOptions) -> nn.Module:
    """Low-rank adapters on the teacher's network, or the task's other one, which is told the camera; it starts as its base."""
    o = options
    critic = trained_copy(task.teacher if task.critic is None else task.critic, o.critic_rank, o.adapter_alpha, o.critic_layers)
    if not isinstance(getattr(critic, "network", None), nn.Module):
        raise LimbeckError(
            f"adapters need the network of a {type(critic).__name__}, which has none; choose critic_kind='network'"
        )
    critic.network = camera_told(critic.network)
    return critic


CRITICS = {"network": network_critic, "adapters": adapter_critic}


def camera_told(network: nn.Module) -> nn.Module:
    """The network with a condition more, "camera" (B, 16), which changes nothing until it is trained.

    Raises LimbeckError for networks whose noise embedding is not known.
    """
    if isinstance(getattr(network, "conditioning", None), nn.Module):
        network.conditioning = CameraConditioning(network.conditioning)
        return network
    if hasattr(network, "wrapped"):
        return CameraLabel(network)
    raise LimbeckError(
        f"where a {type(network).__name__} could be told the camera is not known: it has neither a `conditioning` nor a diffusers model"
    )


class CameraEmbedding(nn.Module):
    """16 -> width -> width; the last layer starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(CAMERA_NUMBERS, width), nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, camera: Tensor) -> Tensor:
        return self.second(nn.functional.silu(self.first(camera.to(self.first.weight))))


class CameraConditioning(nn.Module):
    """The embedding of noise and label of :class:`limbeck.networks.conditioning.Conditioning`, with the camera's added."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner
        self.camera = CameraEmbedding(len(inner.second.weight)).to(inner.second.weight)

    @property
    def null(self) -> Mapping[str, Tensor]:
        """What stands for "no condition" per sample."""
        return {**(self.inner.null or {}), "camera": self.camera.first.weight.new_zeros(CAMERA_NUMBERS)}

    def forward(self, c_noise: Tensor, cond: Cond | None, allowed: Any = ()) -> Tensor:
        rest, camera = _apart(cond)
        e = self.inner(c_noise, rest, allowed)
        if camera is None:
            camera = e.new_zeros(len(c_noise), CAMERA_NUMBERS)
        told = self.camera(camera)
        return e + (told if e.ndim == 2 else told[:, None])


class CameraLabel(nn.Module):
    """A diffusers model whose class embedding, which it must not have yet, is the camera's."""

    def __init__(self, network: Any):
        super().__init__()
        from limbeck.interop.models import DiffusersNetwork

        model = network.wrapped
        if getattr(model, "class_embedding", None) is not None or not hasattr(model, "time_embedding"):
            raise LimbeckError(
                f"a {type(model).__name__} has no free class embedding for the camera; choose critic_kind='network'"
            )
        last = model.time_embedding.linear_2.weight
        model.class_embedding = CameraEmbedding(len(last)).to(last)
        null = network.null and {**network.null, "label": torch.zeros(CAMERA_NUMBERS)}
        self.inner = DiffusersNetwork(model, null, network.fixed)

    @property
    def null(self) -> Mapping[str, Tensor] | None:
        """What stands for "no condition" per sample."""
        if self.inner.null is None:
            return None
        return {"camera" if name == "label" else name: value for name, value in self.inner.null.items()}

    def forward(self, x: Tensor, timestep: Tensor, cond: Cond | None = None) -> Tensor:
        rest, camera = _apart(cond)
        if rest is None and camera is None:
            return self.inner(x, timestep)
        if camera is None:
            camera = x.new_zeros(len(x), CAMERA_NUMBERS)
        return self.inner(x, timestep, {**(rest or {}), "label": camera})


def _apart(cond: Cond | None) -> tuple[Cond | None, Tensor | None]:
    """The conditions without the camera, and the camera."""
    if cond is None:
        return None, None
    return {name: value for name, value in cond.items() if name != "camera"} or None, cond.get("camera")
