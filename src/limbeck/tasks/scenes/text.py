"""A prompt in Gaussian splats, by any text-to-image pipeline of diffusers: its denoiser is the teacher, its autoencoder the encoder.

The teacher is told the prompt for the view ("..., front view"), a critic the prompt alone and the camera. Nothing is known of what
should come out, so a run is judged by what it looks like; figures say only whether the scene has a shape and its views differ.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.denoisers import Cond, check_denoiser
from limbeck.errors import LimbeckError
from limbeck.interop.latents import encoded_with_gradient
from limbeck.interop.pipelines import Pipeline, open_pipeline
from limbeck.scenes import VIEWS, CameraLaw, Cameras, angles, orbit, view_labels, view_prompts
from limbeck.tasks.contract import Column, Figures, Picture, judgement, student_of
from limbeck.tasks.scenes.task import SceneTask, new_splats
from limbeck.training.diagnostics import diversity

FRONT = 30.0  # half-width in degrees of what is called front, and of what is called back
COLUMNS = {"covered": Column("Covered by the scene", unit="percent"), "variety": Column("Difference between views", "higher")}


@dataclass(frozen=True)
class TextTask(SceneTask):
    """``render``: pixels of a side of what is rendered (and then enlarged to the pipeline's size)."""

    render: int = 64

    def around(self, count: int) -> Cameras:
        """A turntable, a little above."""
        azimuth = torch.arange(count) * 360.0 / count
        return orbit((azimuth + 180) % 360 - 180, 15.0, 1.6, width=self.render, height=self.render)

    def watched(self, method: Any) -> Figures:
        """The share of the picture that particle 0 covers, and the rms difference between neighbouring views."""
        seen = self.looked_at(student_of(method), 0, self.around(8))
        return {"covered": float(seen.opacity.mean()), "variety": float(diversity(seen.image))}

    def judged(self, method: Any) -> dict[str, Any]:
        """Those figures; there is no truth to compare with."""
        figures = self.watched(method)
        return judgement({"student": figures}, COLUMNS, "Judge it by its turntable", ["No truth is known for a prompt."])

    def album(self, method: Any) -> dict[str, Picture]:
        """Every particle from around."""
        student, around = student_of(method), self.around(8)
        parts = torch.cat([self.seen(student, i, around) for i in range(len(student))])
        return {"scene": Picture(parts, len(around), "The scene", "Every 45 degrees, from the front; a row is a particle.")}


@dataclass(frozen=True)
class TextOptions:
    """What a person may say of the task."""

    model: str | None = None
    """The folder of a text-to-image pipeline of diffusers; nothing is downloaded."""
    prompt: str | None = None
    """What the scene is to show; the view is added."""
    critic_model: str | None = None
    """The folder of another pipeline with the same latents, on which the critic's adapters are built (default: the model)."""
    render: int | None = None
    """Pixels of a side that are rendered and enlarged to the pipeline's size (default: 64)."""
    splats: int | None = None
    """Gaussians of a scene (default: 4000)."""


OPTIONS = TextOptions
PREFERRED: dict[str, dict[str, Any]] = {
    "prolificdreamer": {"critic_kind": "adapters", "batch": 1, "iterations": 10_000, "critic_weight": "eps", "sparsity": 1.0},
}


def text_task(
    model: Any = None,
    prompt: str | None = None,
    critic_model: Any = None,
    render: int = 64,
    splats: int = 4000,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> TextTask:
    """Splats that are to look like a prompt; ``model`` and ``critic_model`` may be pipeline objects too.

    Raises LimbeckError without a model or a prompt, for pipelines that make no pictures from text, and for a critic's pipeline
    with latents of another shape or scale.
    """
    if model is None or not prompt:
        raise LimbeckError(
            "the task text needs --model (model=), the folder of a text-to-image pipeline, and --prompt (prompt=)"
        )
    pipeline = open_pipeline(model, device=device)
    if not pipeline.texts or pipeline.frames is not None or not pipeline.has("vae"):
        raise LimbeckError(f"a {pipeline.kind} makes no pictures from text in a latent space, which the task text needs")
    told, null = pipeline.encode_text([*view_prompts(prompt, torch.arange(len(VIEWS))), prompt])
    told = {name: value.to(device) for name, value in told.items()}
    number_type = getattr(torch, dtype)
    teacher = pipeline.denoiser(null).to(device, number_type).requires_grad_(False)
    vae = pipeline.component("vae", number_type).to(device).requires_grad_(False).eval()
    size = pipeline.size

    def encode(images: Tensor) -> Tensor:
        large = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        return encoded_with_gradient(vae, large).to(images)

    def goal(cameras: Cameras) -> Cond:
        azimuth, elevation, _ = angles(cameras.position)
        labels = view_labels(azimuth, elevation, FRONT, FRONT)
        return {name: value[labels] for name, value in told.items()}

    def cond(cameras: Cameras) -> Cond:
        return {name: value[-1:].expand(len(cameras), *value.shape[1:]) for name, value in told.items()}

    task = TextTask(
        name="text", teacher=teacher, shape=pipeline.shape, encode=encode, goal=goal, cond=cond, render=render,
        cameras=lambda u, step: CameraLaw()(u, render, render), background=1.0, sigma_data=1.0, options=PREFERRED,
        scene=lambda seed: new_splats(splats, seed, 0.5).to(device, number_type), facts={"origin": "given"},
        critic=None if critic_model is None else other_denoiser(pipeline, critic_model, device).to(device, number_type),
    )  # fmt: skip
    check_denoiser(teacher, torch.zeros(1, *pipeline.shape, device=device, dtype=number_type), cond(task.around(1)))
    return task


def other_denoiser(pipeline: Pipeline, model: Any, device: str) -> Any:
    """The denoiser of another pipeline, which must have the same latents. Raises LimbeckError."""
    other = open_pipeline(model, device=device, height=pipeline.size[0], width=pipeline.size[1])
    if other.shape != pipeline.shape:
        raise LimbeckError(
            f"the critic's pipeline has latents {other.shape}, the teacher's {pipeline.shape}: they must be of one shape"
        )
    scales = [p.described("vae")[1].get("scaling_factor") for p in (pipeline, other)]
    if scales[0] != scales[1]:
        raise LimbeckError(
            f"the teacher's autoencoder scales its latents by {scales[0]}, the critic's by {scales[1]}: they are not the same latents"
        )
    return other.denoiser()
