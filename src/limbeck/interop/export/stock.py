"""The pipelines of diffusers as a student meets them: what each can be told of its steps, and how it walks them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, Preconditioned
from limbeck.errors import unknown
from limbeck.interop.export.steps import Steps
from limbeck.samplers import generator_noise

CLOSE = 1e-4
"""Largest difference of a stock pipeline's sample from the student's, relative to the sample's size."""


@dataclass(frozen=True)
class Stock:
    """A pipeline class: the ``component`` that is the network, and how its loop treats the scheduler.

    ``told``: which of timesteps, sigmas and eta a call may name. ``scales``: is the first noise multiplied by the
    scheduler's init_noise_sigma, and if so "after" or "before" the time steps are set ("": never). ``even``: does it hand the
    scheduler sigmas 1, ..., 1/K? ``unguided``: the arguments that switch guidance off. ``lora``: can it load adapters?
    ``seeded``: does each step draw from the generator that the call was given? ``takes``: other classes whose folders are
    written as this one. ``tag``: what the hub calls it.
    """

    name: str
    component: str
    told: frozenset[str] = frozenset()
    scales: str = ""
    even: bool = False
    unguided: Mapping[str, Any] = field(default_factory=dict)
    lora: bool = False
    seeded: bool = False
    takes: tuple[str, ...] = ()
    tag: str = "text-to-image"


def _stock(name: str, component: str, told: str = "", **more: Any) -> Stock:
    return Stock(name, component, frozenset(told.split()), **more)


_OFF: dict[str, Any] = {"guidance_scale": 1.0}
_LATENT: dict[str, Any] = {"scales": "after", "unguided": _OFF, "seeded": True}
PIPELINES: dict[str, Stock] = {
    one.name: one
    for one in (
        _stock(
            "ConsistencyModelPipeline", "unet", "timesteps", scales="before", seeded=True, tag="unconditional-image-generation",
            takes=("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "ScoreSdeVePipeline", "KarrasVePipeline"),
        ),
        _stock("DiTPipeline", "transformer", unguided=_OFF, tag="unconditional-image-generation"),
        _stock("StableDiffusionPipeline", "unet", "timesteps sigmas eta", lora=True, **_LATENT),
        _stock("StableDiffusionXLPipeline", "unet", "timesteps sigmas eta", lora=True, **_LATENT),
        _stock("PixArtAlphaPipeline", "transformer", "timesteps sigmas eta", **_LATENT),
        _stock("PixArtSigmaPipeline", "transformer", "timesteps sigmas eta", **_LATENT),
        _stock("CogVideoXPipeline", "transformer", "timesteps eta", lora=True, tag="text-to-video", **_LATENT),
        _stock("StableDiffusion3Pipeline", "transformer", "sigmas", unguided=_OFF, lora=True),
        _stock("FluxPipeline", "transformer", "sigmas", even=True, lora=True),
        _stock("SanaPipeline", "transformer", "sigmas", unguided=_OFF, lora=True, seeded=True),
        _stock("QwenImagePipeline", "transformer", "sigmas", even=True, unguided={"true_cfg_scale": 1.0}, lora=True),
        _stock("WanPipeline", "transformer", unguided=_OFF, lora=True, tag="text-to-video"),
    )
}  # fmt: skip
"""By class name: what a student can be written as."""


def stock_pipeline(name: str) -> Stock:
    """What is known of a pipeline class, or of the one that its folder is written as. Raises LimbeckError for others."""
    for one in PIPELINES.values():
        if name == one.name or name in one.takes:
            return one
    raise unknown("pipeline class to export to", name, [n for one in PIPELINES.values() for n in (one.name, *one.takes)])


@dataclass(frozen=True)
class Plan:
    """A stock pipeline and scheduler with which a student's samples come out.

    ``call``: the arguments that ``pipe(...)`` must be given; ``difference``: that of the rehearsal, relative.
    """

    pipeline: Stock
    scheduler: str
    config: Mapping[str, Any]
    call: Mapping[str, Any]
    difference: float = float("nan")


class _Toy(nn.Module):
    """A network that tells apart neighbouring time steps, for rehearsals."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        return 0.6 * torch.tanh(x) + 0.3 * torch.cos(0.05 * c_noise.float()).view(-1, *(1 for _ in x.shape[1:]))


def rehearse(plan: Plan, steps: Steps, prediction: str, noise_input: str, sigma_data: float) -> float:
    """The largest difference between the student's steps and the stock loop around a toy network, relative to the sample.

    Both begin with the same generator. This is the proof that a plan is right: times, tables, starts and noise.
    """
    import diffusers

    toy, z = _Toy(), torch.zeros(2, 3, 4, 4)
    denoiser = Preconditioned(toy, steps.process, prediction, sigma_data, noise_input)
    draw = generator_noise(z, torch.Generator().manual_seed(0))
    ours = steps(denoiser, draw(0), noise=draw)
    scheduler = getattr(diffusers, plan.scheduler)(**plan.config)
    generator = torch.Generator().manual_seed(0)
    theirs = walk(plan, scheduler, lambda x, t: toy(x, t.expand(len(x))), generator, z)
    worst = (ours - theirs).abs().max() / ours.abs().max().clamp(min=1)
    return float(worst)


def walk(plan: Plan, scheduler: Any, network: Any, generator: torch.Generator, like: Tensor) -> Tensor:
    """The loop of a stock pipeline, as its source has it: set time steps, scale the first noise, call, step."""
    stock, K = plan.pipeline, int(plan.call.get("num_inference_steps", 0))
    x = torch.randn(like.shape, generator=generator)
    if stock.scales == "before":
        x = x * scheduler.init_noise_sigma
    set_steps(scheduler, plan, K)
    if stock.scales == "after":
        x = x * scheduler.init_noise_sigma
    more = {"eta": plan.call["eta"]} if "eta" in plan.call else {}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        if "generator" in scheduler.step.__code__.co_varnames:
            more["generator"] = generator
        x = scheduler.step(network(scaled, t), t, x, **more, return_dict=False)[0]
    return x


def set_steps(scheduler: Any, plan: Plan, K: int) -> None:
    """Set a scheduler's time steps as a call of the plan's pipeline does."""
    for name in ("timesteps", "sigmas"):
        if name in plan.call:
            scheduler.set_timesteps(**{name: plan.call[name]})
            return
    if plan.pipeline.even:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / K, K))
    else:
        scheduler.set_timesteps(K)


__all__ = ["CLOSE", "PIPELINES", "Plan", "Stock", "rehearse", "set_steps", "stock_pipeline", "walk"]
