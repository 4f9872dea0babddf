"""What a pipeline of diffusers is asked for: prompts, classes and pictures, encoded once and kept."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.interop.pipelines import Pipeline
from limbeck.tasks.folder import as_images, load_pictures
from limbeck.tasks.prompt_files import captions_of, read_prompts
from limbeck.tasks.tensor_cache import cached_tensors, digest_of
from limbeck.training.progress import Progress


def read_inputs(pipeline: Pipeline, data: Any, prompts: Any) -> tuple[Tensor | None, Tensor | None, list[str] | None]:
    """(pictures at the pipeline's size or None, their labels, what is asked for in words)."""
    if not pipeline.texts and prompts is not None:
        raise LimbeckError(f"a {pipeline.kind} is not asked in words; leave the prompts out")
    if data is None:
        if pipeline.texts and prompts is None:
            raise LimbeckError(f"a {pipeline.kind} is asked in words; give --prompts FILE.txt (prompts=), one per line")
        return None, None, None if prompts is None else read_prompts(prompts)
    if (pipeline.frames or 1) > 1:
        raise LimbeckError("data are pictures, but this pipeline makes videos; leave --data out, or set num_frames to 1")
    if isinstance(data, (str, Path)):
        found = load_pictures(data, pipeline.size)
        images, labels, files = found.images, found.labels, found.files
    else:
        images, labels, files = as_images(data), None, ()
        if tuple(images.shape[2:]) != pipeline.size:
            raise LimbeckError(f"the pictures are {tuple(images.shape[2:])}, the pipeline's {pipeline.size}; resize them")
    channels = 3 if pipeline.has("vae") else pipeline.shape[0]
    if images.shape[1] == 1 < channels:
        images = images.expand(-1, channels, -1, -1)
    if images.shape[1] != channels:
        raise LimbeckError(f"the pictures have {images.shape[1]} channels, the pipeline's {channels}; convert them")
    if not pipeline.texts:
        return images, labels, None
    if prompts is not None and files:
        raise LimbeckError("pictures have their captions beside them, NAME.txt beside NAME.png; leave --prompts out, or --data")
    captions = captions_of(files) if files else read_prompts(prompts or [])
    if len(captions) != len(images):
        raise LimbeckError(f"{len(images)} pictures and {len(captions)} prompts; give one for each picture")
    return images, None, captions


def conditions(
    pipeline: Pipeline, captions: list[str] | None, labels: Tensor | None, quiet: bool
) -> tuple[Cond | None, Cond | None]:
    """(the conditions of all rows, the null condition of texts)."""
    if captions is not None:
        parts = [pipeline.digest("text_encoder", "tokenizer"), pipeline.kind, json.dumps(captions)]
        parts += [repr((pipeline.size, pipeline.tokens, str(pipeline.text_dtype)))]

        def encoded() -> dict[str, Tensor]:
            with Progress("encode prompts", len(captions), quiet=quiet) as bar:
                cond, null = pipeline.encode_text(captions, lambda done: bar.advance(done, {}))
            return {**{f"cond.{n}": v for n, v in cond.items()}, **{f"null.{n}": v for n, v in null.items()}}

        kept, _ = cached_tensors("prompts", parts, encoded, quiet)
        cond, null = ({n[5:]: v for n, v in kept.items() if n.startswith(p)} for p in ("cond.", "null."))
        return cond, null
    if not pipeline.classes:
        return None, None
    if labels is not None and int(labels.max()) >= pipeline.classes:
        raise LimbeckError(f"the data have {int(labels.max()) + 1} classes, the pipeline {pipeline.classes}")
    return {"label": torch.arange(pipeline.classes) if labels is None else labels}, None


def latents_of(pipeline: Pipeline, images: Tensor, quiet: bool) -> Tensor:
    """What the network sees of pictures; encoded once, and kept."""
    if not pipeline.has("vae"):
        return images

    def encoded() -> dict[str, Tensor]:
        with Progress("encode pictures", len(images), quiet=quiet) as bar:
            return {"latents": pipeline.encode(images, lambda done: bar.advance(done, {}))}

    return cached_tensors("latents", [pipeline.digest("vae"), digest_of(images)], encoded, quiet)[0]["latents"]
