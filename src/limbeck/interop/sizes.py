"""How large the pictures and videos of a pipeline are, in pixels and frames, and how its flow is shifted for that size."""

import math
from collections.abc import Mapping
from typing import Any

from limbeck.errors import LimbeckError

PACKED = {"FluxPipeline": 128, "QwenImagePipeline": 128}  # 2 x 2 latents are a token, and their side is the pipeline's own
VIDEOS = {"WanPipeline": (480, 832, 81)}  # height, width, frames, where the network's config does not say


def pixels(kind: str, config: Mapping[str, Any], factor: int, height: int | None, width: int | None) -> tuple[int, int]:
    """(height, width) of a class of pipelines whose network has this config; given ones win.

    ``factor``: pixels per latent. Raises LimbeckError where nothing says the size, and for sizes that do not fit.
    """
    side = config.get("sample_size") or PACKED.get(kind)
    sides: tuple[int | None, int | None] = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
    if kind in VIDEOS:
        sides = VIDEOS[kind][0] // factor, VIDEOS[kind][1] // factor
    elif "sample_height" in config:
        sides = config["sample_height"], config["sample_width"]
    high, wide = (given or factor * (n or 0) for given, n in zip((height, width), sides, strict=True))
    if high < 1 or wide < 1:
        raise LimbeckError(f"the {kind} does not say how large its pictures are; give height and width (--height, --width)")
    least = 2 * factor if kind in PACKED else factor
    if high % least or wide % least:
        raise LimbeckError(f"{high} x {wide} pixels: this pipeline makes pictures whose sides are multiples of {least}")
    return high, wide


def frames(kind: str, config: Mapping[str, Any], factor: int, given: int | None) -> int:
    """The frames of a video; ``factor``: frames after the first that one latent stands for. Raises LimbeckError for others."""
    count = given or (VIDEOS[kind][2] if kind in VIDEOS else int(config.get("sample_frames", 1)))
    if count < 1 or (count - 1) % factor:
        near = max(round((count - 1) / factor), 0) * factor + 1
        raise LimbeckError(
            f"num_frames={count}: this pipeline makes 1, {factor + 1}, {2 * factor + 1}, ... frames; e.g. {near}"
        )
    return count


def sampled_shift(config: Mapping[str, Any], tokens: int) -> float:
    """The flow shift that a scheduler with this config samples with for pictures of so many tokens (1: none)."""
    if not config.get("use_dynamic_shifting"):
        flow = config.get("flow_shift") if config.get("use_flow_sigmas") else config.get("shift")
        return float(flow or 1.0)
    slope = (config["max_shift"] - config["base_shift"]) / (config["max_image_seq_len"] - config["base_image_seq_len"])
    mu = config["base_shift"] + slope * (tokens - config["base_image_seq_len"])
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
