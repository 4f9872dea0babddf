"""A pipeline of diffusers, on disk or in memory, as a task: its prompts or classes, its latents, and pictures to judge.

Prompts and pictures are encoded once and kept (LIMBECK_CACHE); text encoders and autoencoders are not held while a student is
trained. Without pictures of one's own, students are judged against samples of the teacher, drawn once and kept as well.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, check_denoiser
from limbeck.errors import LimbeckError
from limbeck.interop import DiffusersNetwork
from limbeck.interop.pipelines import Pipeline, open_pipeline
from limbeck.noise import DDPM, VE, Process, ddpm_grid, linear_grid
from limbeck.samplers import Experts
from limbeck.tasks.diffusers_inputs import conditions, latents_of, read_inputs
from limbeck.tasks.features import image_features, whitened
from limbeck.tasks.own import named_features, sampled_range
from limbeck.tasks.suited import suited_options
from limbeck.tasks.task import Evaluator, Task, side_by_side_frames
from limbeck.tasks.tensor_cache import cached_tensors, digest_of
from limbeck.training import TensorSource
from limbeck.training.options import check_arguments
from limbeck.training.progress import Progress

REFERENCE_SEED = 2**31 - 2  # the teacher's samples that others are judged against: not those that it is judged by
NOISE = 1024  # rows of a source without data and conditions


@dataclass(frozen=True)
class DiffusersOptions:
    """What there is to say of a pipeline."""

    model: str | None = None
    """The folder of a diffusers pipeline (or of a bare UNet2DModel with its scheduler); nothing is downloaded."""
    prompts: str | None = None
    """FILE.txt, one prompt per line, or FILE.json, a list of them."""
    data: Path | None = None
    """A folder of pictures (one subfolder per class for labels)."""
    height: int | None = None
    """Of the pictures, in pixels (default: the pipeline's own)."""
    width: int | None = None
    """Of the pictures, in pixels (default: the pipeline's own)."""
    num_frames: int | None = None
    """Of videos (default: the pipeline's own)."""
    guidance_embedding: float | None = None
    """The scale that networks with an embedding of it (Flux) are told, always (default: 3.5)."""
    teacher_guidance: float | None = None
    """w with which the teacher samples, and students are taught (default: 1)."""
    teacher_nodes: int | None = None
    """Noise levels of your teacher's Heun sampler (default: 18)."""
    tokens: int | None = None
    """Longest prompt, where the pipeline leaves a choice (default: its own)."""
    text_dtype: str | None = None
    """float32 (default), bfloat16 or float16: what text encoders run in."""
    judged: int | None = None
    """Samples of an evaluation (default: 256)."""
    judged_batch: int | None = None
    """How many of them are made at once (default: 32)."""
    features: str | None = None
    """MODULE:FUNCTION, images (N, C, H, W) in [-1, 1] -> features (N, D) for the Frechet distance."""


OPTIONS = DiffusersOptions


def diffusers_task(
    model: Any,
    prompts: Any = None,
    data: Any = None,
    *,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    guidance_embedding: float = 3.5,
    teacher_guidance: float = 1.0,
    teacher_nodes: int = 18,
    tokens: int | None = None,
    text_dtype: str = "float32",
    judged: int = 256,
    judged_batch: int = 32,
    features: Any = None,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> Task:
    """The task of distilling a pipeline; the options are those of :class:`DiffusersOptions`.

    ``model``: a folder or a pipeline object (whose network is the teacher itself: it is frozen). ``prompts``: a file or a list.
    ``data``: a folder of pictures, or a tensor (N, C, H, W) in [-1, 1]; asked in words, each NAME.png has its caption in
    NAME.txt (of a tensor: ``prompts``, one each). Raises LimbeckError for what does not fit.
    """
    if judged < 2 or judged_batch < 1:
        raise LimbeckError(
            f"judged={judged} and judged_batch={judged_batch}: an evaluation needs at least 2 samples, made 1 at once"
        )
    if text_dtype not in ("float32", "bfloat16", "float16"):
        raise LimbeckError(f"text_dtype={text_dtype!r}: choose float32, bfloat16 or float16")
    number_type = getattr(torch, dtype)
    pipeline = open_pipeline(
        model, height=height, width=width, num_frames=num_frames, guidance=guidance_embedding, tokens=tokens,
        text_dtype=getattr(torch, text_dtype), device=device,
    )  # fmt: skip
    images, labels, captions = read_inputs(pipeline, data, prompts)
    cond, null = conditions(pipeline, captions, labels, quiet)
    teacher = pipeline.denoiser(null).to(device, number_type)
    latents = None if images is None else latents_of(pipeline, images, quiet).to(number_type)
    asked = None if cond is None else {name: _typed(v, number_type) for name, v in cond.items()}
    source = TensorSource(latents, asked, None if asked or latents is not None else NOISE)
    check_denoiser(teacher, torch.zeros(2, *pipeline.shape, device=device, dtype=number_type), _rows(asked, 2, device))
    times = None if isinstance(teacher.process, VE) else lambda n: teacher_times(pipeline, teacher.process, n)
    blank = torch.zeros(1, *pipeline.shape, device=device, dtype=number_type)
    drafted = Evaluator(
        _seen_features(features, blank), blank, judged, _rows(asked, judged), chunk=judged_batch,
        decode=pipeline.decode if pipeline.has("vae") else None,
    )  # fmt: skip
    task = Task(
        "diffusers", teacher, source, pipeline.shape, drafted, 0.5, fresh_network(teacher), teacher_nodes, sampled_range(teacher),
        {"origin": "given", "reference": "the teacher's samples" if latents is None else "the data"},
        options=_suited(pipeline, teacher_guidance, latents is not None), teacher_times=times, teacher_guidance=teacher_guidance,
    )  # fmt: skip
    if latents is None:
        key = [_digest(pipeline), digest_of(*(asked or {}).values()), repr((pipeline.shape, judged, teacher_nodes)), dtype]
        key += [repr((teacher_guidance, guidance_embedding, torch.__version__))]
        kept, _ = cached_tensors("samples", key, lambda: _teachers_samples(task, quiet), quiet)
        latents, images = kept["latents"].to(number_type), kept.get("images", kept["latents"])
    assert images is not None
    rows = spread_rows(len(latents), min(judged, len(latents)))
    evaluator = _evaluator(task.evaluator, latents[rows].to(blank), images[rows].to(number_type), features)
    if not quiet:
        print(_said(pipeline, source, evaluator, task), file=sys.stderr)
    sigma_data = float(latents.double().std())
    return replace(task, evaluator=evaluator, sigma_data=sigma_data)


def diffusers_task_from_options(model: Any = None, **options: Any) -> Task:
    """`diffusers_task` from what a run's config.yaml or the command line says."""
    if model is None:
        raise LimbeckError("the task diffusers needs --model (model=), the folder of a pipeline")
    check_arguments(diffusers_task, options, "options of the task 'diffusers'")
    return diffusers_task(model, **options)


def preferred(model: Any = None, teacher_guidance: float = 1.0, data: Any = None, **options: Any) -> dict[str, dict[str, Any]]:
    """Method options that suit a pipeline, by method; only its scheduler is read."""
    if model is None:
        return {}
    sizes = {name: options[name] for name in ("height", "width", "num_frames") if name in options}
    return _suited(open_pipeline(model, **sizes), teacher_guidance, data is not None)


def _suited(pipeline: Pipeline, guidance: float, images: bool) -> dict[str, dict[str, Any]]:
    boundary = pipeline.settings.get("boundary_ratio") if pipeline.has("transformer_2") else None
    found = suited_options(pipeline.schedule, pipeline.shift, guidance, images, boundary)
    if pipeline.frames is not None:
        frames = pipeline.shape[0 if pipeline.kind == "CogVideoXPipeline" else 1]
        found["rcm"]["frames"] = frames
    return found


def teacher_times(pipeline: Pipeline, process: Process, nodes: int) -> Tensor:
    """The nodes of the teacher's sampler, as its scheduler places them: trailing indices of a table, shifted times of a flow."""
    if isinstance(process, DDPM):
        return ddpm_grid(nodes, len(process.table))
    return linear_grid(nodes, process.t_max, 0.0, pipeline.shift)


def fresh_network(teacher: Any) -> Callable[[], nn.Module]:
    """Makes networks of the teacher's architecture with new weights."""
    inner: Any = teacher.experts[0][2] if isinstance(teacher, Experts) else teacher
    network: DiffusersNetwork = inner.network

    def made() -> nn.Module:
        model: Any = network.model
        return DiffusersNetwork(type(model).from_config(model.config), network.null, network.fixed)

    return made


def _teachers_samples(task: Task, quiet: bool) -> dict[str, Tensor]:
    evaluator, sampler = task.evaluator, task.teacher_sampler(task.teacher_nodes)
    with Progress("sample the teacher", evaluator.count, quiet=quiet) as bar:
        done = 0

        def counted(z: Tensor, *rest: Any) -> Tensor:
            nonlocal done
            x = sampler(z, *rest)
            bar.advance(done := done + len(z), {})
            return x

        latents = evaluator.sample(counted, seed=REFERENCE_SEED)
    if evaluator.decode is None:
        return {"latents": latents}
    return {"latents": latents, "images": evaluator.decode(latents)}


def _seen_features(features: Any, like: Tensor) -> Callable[[Tensor], Tensor]:
    given = image_features if features is None else named_features(features)
    if isinstance(given, nn.Module):
        given = given.to(like).eval()
    return lambda x: _of_frames(given, x)


def _of_frames(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Features of pictures; of videos those of the first, the middle and the last frame."""
    if x.ndim != 5:
        return features(x)
    width = x.shape[-1]
    return torch.cat([features(frame) for frame in side_by_side_frames(x).split(width, -1)], 1)


def _evaluator(drafted: Evaluator, latents: Tensor, images: Tensor, features: Any) -> Evaluator:
    images = images.clamp(-1, 1)
    if (count := len(images)) <= (numbers := drafted.features(images[:2]).shape[1]):
        warnings.warn(
            f"{count} samples are judged in {numbers} features: their Frechet distances are mostly noise; give --judged {4 * numbers}"
            " (judged=) or more",
            stacklevel=3,
        )
    seen = whitened(drafted.features, images) if features is None else drafted.features
    return replace(drafted, features=seen, real=latents, images=images)


def _digest(pipeline: Pipeline) -> str | None:
    return pipeline.digest("unet", "transformer", "model", "scheduler", "vae")


def _typed(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _rows(cond: Mapping[str, Tensor] | None, count: int, device: str | None = None) -> Cond | None:
    """``count`` of the rows, see :func:`spread_rows`."""
    if cond is None:
        return None
    return {name: value[spread_rows(len(value), count)].to(device or value.device) for name, value in cond.items()}


def spread_rows(size: int, count: int) -> Tensor:
    """``count`` of ``size`` rows, spread evenly (data may be sorted); from the beginning again where there are fewer."""
    rows = torch.arange(count)
    return rows * size // count if count <= size else rows % size


def _said(pipeline: Pipeline, source: TensorSource, evaluator: Evaluator, task: Task) -> str:
    what = "prompts" if pipeline.texts else "classes" if pipeline.classes else "no conditions"
    rows = f"{source.size} {what}" if what != "no conditions" else what
    return (
        f"diffusers: {pipeline.kind}, {' x '.join(map(str, pipeline.shape))}, {rows}; judged by {evaluator.count} samples against "
        f"{task.facts['reference']}"
    )
