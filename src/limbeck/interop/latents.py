"""Autoencoders of diffusers: pictures and videos to the latents that networks are trained on, and back, scaled as pipelines do."""

from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError

VIDEO = ("AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLCogVideoX")
FRAMES_FIRST = ("AutoencoderKLCogVideoX",)  # whose latents are (N, F, C, H, W)
PICTURES = ("AutoencoderKLQwenImage",)  # made for videos, used for pictures: (N, C, H, W)


def reduction(kind: str, config: dict[str, Any]) -> tuple[int, int]:
    """(space, time): how many pixels, and frames after the first, one latent stands for. ``config`` is the autoencoder's."""
    if kind == "AutoencoderDC":
        return 2 ** (len(config["encoder_block_out_channels"]) - 1), 1
    if kind == "AutoencoderKLWan":
        return int(config.get("scale_factor_spatial") or 8), int(config.get("scale_factor_temporal") or 4)
    if kind == "AutoencoderKLQwenImage":
        return 2 ** len(config["temperal_downsample"]), 2 ** sum(config["temperal_downsample"])
    if kind == "AutoencoderKLCogVideoX":
        return 2 ** (len(config["block_out_channels"]) - 1), int(config.get("temporal_compression_ratio") or 4)
    if kind == "AutoencoderKL":
        return 2 ** (len(config["block_out_channels"]) - 1), 1
    raise LimbeckError(
        f"how a {kind} scales its latents is not known; known are AutoencoderKL, AutoencoderDC, {', '.join(VIDEO)}: encode your "
        "pictures yourself and give latents to limbeck.tasks.own_task"
    )


def _scaling(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, scale) of latents = scale (z - shift), per channel, broadcastable over z (N, C, ...)."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    scale = config.get("scaling_factor") or 1.0
    if mean is not None and std is not None:
        shape = (1, -1, *[1] * (like.ndim - 2))
        return like.new_tensor(mean).view(shape), scale / like.new_tensor(std).view(shape)
    return like.new_tensor(config.get("shift_factor") or 0.0), like.new_tensor(scale)


@torch.no_grad()
def encoded(vae: Any, x: Tensor) -> Tensor:
    """The latents of pictures (N, C, H, W) or videos (N, C, F, H, W) in [-1, 1]: the posterior's mean, scaled."""
    return encoded_with_gradient(vae, x)


def encoded_with_gradient(vae: Any, x: Tensor) -> Tensor:
    """The same, for those who change the pictures by what becomes of their latents."""
    kind = type(vae).__name__
    x = x.to(vae.dtype)
    if kind in VIDEO and x.ndim == 4:
        x = x[:, :, None]
    answer = vae.encode(x)
    z = answer.latent_dist.mode() if hasattr(answer, "latent_dist") else answer.latent
    shift, scale = _scaling(vae, z)
    z = scale * (z - shift)
    if kind in PICTURES:
        return z[:, :, 0]
    return z.movedim(1, 2) if kind in FRAMES_FIRST else z


@torch.no_grad()
def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Pictures (N, C, H, W) or videos (N, C, F, H, W), not clamped, of latents as :func:`encoded` gives them."""
    kind = type(vae).__name__
    z = latents.to(vae.dtype)
    if kind in FRAMES_FIRST:
        z = z.movedim(1, 2)
    elif kind in PICTURES:
        z = z[:, :, None]
    shift, scale = _scaling(vae, z)
    x: Tensor = vae.decode(z / scale + shift).sample
    return x[:, :, 0] if kind in PICTURES else x
