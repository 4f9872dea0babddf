"""Prompts as conditions, by class of pipelines: what its own ``encode_prompt`` gives, under the names of the model's arguments."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.denoisers import Cond
from limbeck.interop.folders import quiet_libraries

Encode = Callable[[Any, list[str], dict[str, Any]], dict[str, Tensor | None]]  # (pipeline, prompts, settings) -> conditions


def _stable_diffusion(pipe: Any, prompts: list[str], settings: dict[str, Any]) -> dict[str, Tensor | None]:
    return {"encoder_hidden_states": pipe.encode_prompt(prompts, settings["device"], 1, False)[0]}


def _sdxl(pipe: Any, prompts: list[str], settings: dict[str, Any]) -> dict[str, Tensor | None]:
    text, _, pooled, _ = pipe.encode_prompt(prompts, device=settings["device"], do_classifier_free_guidance=False)
    if settings["null"] and pipe.config.get("force_zeros_for_empty_prompt", True):
        text, pooled = torch.zeros_like(text), torch.zeros_like(pooled)
    height, width = settings["size"]  # (original size, top left corner, target size)
    ids = torch.tensor([height, width, 0, 0, height, width], dtype=text.dtype, device=text.device)
    return {"encoder_hidden_states": text, "text_embeds": pooled, "time_ids": ids.expand(len(text), 6)}


def _sd3(pipe: Any, prompts: list[str], settings: dict[str, Any]) -> dict[str, Tensor | None]:
    how = {"device": settings["device"], "max_sequence_length": settings["tokens"], "do_classifier_free_guidance": False}
    text, _, pooled, _ = pipe.encode_prompt(prompts, prompts, prompts, **how)
    return {"encoder_hidden_states": text, "pooled_projections": pooled}


def _flux(pipe: Any, prompts: list[str], settings: dict[str, Any]) -> dict[str, Tensor | None]:
    text, pooled, _ = pipe.encode_prompt(prompts, device=settings["device"], max_sequence_length=settings["tokens"])
    return {"encoder_hidden_states": text, "pooled_projections": pooled}


def _masked(pipe: Any, prompts: list[str], settings: dict[str, Any]) -> dict[str, Tensor | None]:
    more = {}
    if "complex_human_instruction" in inspect.signature(pipe.encode_prompt).parameters and not settings["null"]:
        more["complex_human_instruction"] = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
    text, mask, _, _ = pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, device=settings["device"], max_sequence_length=settings["tokens"], **more
    )
    return {"encoder_hidden_states": text, "encoder_attention_mask": mask}


def _qwen(pipe: Any, prompts: list[str], settings: dict[str, Any]) -> dict[str, Tensor | None]:
    text, mask = pipe.encode_prompt(prompts, device=settings["device"], max_sequence_length=settings["tokens"])
    mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device) if mask is None else mask.long()
    return {"encoder_hidden_states": text, "encoder_hidden_states_mask": mask}


def _t5(pipe: Any, prompts: list[str], settings: dict[str, Any]) -> dict[str, Tensor | None]:
    how = {"device": settings["device"], "max_sequence_length": settings["tokens"], "do_classifier_free_guidance": False}
    return {"encoder_hidden_states": pipe.encode_prompt(prompts, **how)[0]}


@torch.no_grad()
def encode_prompts(
    encode: Encode,
    pipe: Any,
    prompts: Sequence[str],
    size: tuple[int, int],
    tokens: int | None = None,
    chunk: int = 16,
    said: Callable[[int], None] = lambda done: None,
) -> tuple[Cond, Cond]:
    """(conditions of the prompts (N, ...), the null condition of one sample) on the CPU, by the pipeline's own encode_prompt.

    ``size``: height and width in pixels. ``tokens``: longest text (None: what the pipeline's call takes). The null condition
    is the empty prompt, as the pipeline's guidance has it. Texts of several lengths are filled up with zeros, and masked where
    the model has a mask. Warns once where prompts are cut off. ``said`` hears how many are done.
    """
    tokens = longest(pipe) if tokens is None else tokens
    settings = {"device": pipe.text_encoder.device, "size": size, "tokens": tokens, "null": False}
    parts = []
    warn_of_long(pipe, prompts, tokens)
    with quiet_libraries():
        for i in range(0, len(prompts), chunk):
            some = list(prompts[i : i + chunk])
            parts.append(encode(pipe, some, settings))
            said(i + len(some))
        parts.append(encode(pipe, [""], {**settings, "null": True}))
    joined = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    kept = {name: value.cpu() for name, value in joined.items()}
    return {name: value[:-1].contiguous() for name, value in kept.items()}, {n: v[-1].clone() for n, v in kept.items()}


def _joined(parts: list[Tensor | None]) -> Tensor:
    values = [part for part in parts if part is not None]
    if values[0].ndim < 2 or len({v.shape[1] for v in values}) == 1:
        return torch.cat(values)
    most = max(v.shape[1] for v in values)
    return torch.cat([F.pad(v, (*[0, 0] * (v.ndim - 2), 0, most - v.shape[1])) for v in values])


def longest(pipe: Any) -> int:
    """The most tokens that a pipeline's call takes of a prompt."""
    parameter = inspect.signature(pipe.__call__).parameters.get("max_sequence_length")
    return int(pipe.tokenizer.model_max_length if parameter is None else parameter.default)


def warn_of_long(pipe: Any, prompts: Sequence[str], tokens: int) -> None:
    """Warn once where prompts are longer than what the longest of the pipeline's tokenizers keeps."""
    found = [t for name in ("tokenizer", "tokenizer_2", "tokenizer_3") if (t := getattr(pipe, name, None)) is not None]
    limits = [t.model_max_length if type(t).__name__.startswith("CLIP") else tokens for t in found]
    if not limits:
        return
    most, tokenizer = max(zip(limits, found, strict=True), key=lambda pair: pair[0])
    with quiet_libraries():
        lengths = [len(ids) for ids in tokenizer(list(prompts), truncation=False)["input_ids"]]
    if long := sum(length > most for length in lengths):
        warnings.warn(
            f"{long} of {len(prompts)} prompts have more than {most} tokens (the longest {max(lengths)}): what comes after is "
            "cut off",
            stacklevel=2,
        )


TEXTS: dict[str, Encode] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _sdxl,
    "StableDiffusion3Pipeline": _sd3,
    "FluxPipeline": _flux,
    "PixArtAlphaPipeline": _masked,
    "PixArtSigmaPipeline": _masked,
    "SanaPipeline": _masked,
    "QwenImagePipeline": _qwen,
    "WanPipeline": _t5,
    "CogVideoXPipeline": _t5,
}
"""By class of pipelines."""
