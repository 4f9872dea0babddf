"""A person's own teacher and pictures as a task; see `own_task`."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Cond, Denoiser
from limbeck.errors import LimbeckError
from limbeck.networks import ResidualMLP, UNet, build_network
from limbeck.noise import Process
from limbeck.tasks.features import image_features, whitened
from limbeck.tasks.folder import Pictures, as_images, as_labels, load_pictures
from limbeck.tasks.named import imported, made, said
from limbeck.tasks.own_teacher import Declared, as_denoiser, parsed_range, read_teacher
from limbeck.tasks.task import Evaluator, Task
from limbeck.tasks.trial import tried
from limbeck.training import TensorSource
from limbeck.training.options import check_arguments

JUDGED = 4096  # most samples and most real images of an evaluation
LEAST = 2048


def own_task(
    teacher: Any,
    data: Any,
    labels: Any = None,
    features: Any = None,
    *,
    network: str | None = None,
    prediction: str | None = None,
    process: Process | str | None = None,
    noise_input: str | None = None,
    data_range: str | tuple[float, float] = (-1.0, 1.0),
    null_label: int | None = None,
    sigma_data: float | None = None,
    image_size: int | None = None,
    teacher_nodes: int = 18,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> Task:
    """The task of distilling a person's teacher, judged on their pictures.

    ``teacher``: a denoiser (limbeck.denoisers), a torch.nn.Module called as (x, t), (x, t, label) or (x, t, cond), or what
    `read_teacher` reads: FILE (with ``network`` for bare weights) or MODULE:FUNCTION. Of a network that is no denoiser the
    person says: ``prediction`` (edm, trigflow, x0, eps, v, velocity, score), ``process`` (ve, vp, cosine, ddpm, flow,
    trigflow; options as "flow:shift=3"), ``noise_input``, what it is given as t (a name in
    :data:`limbeck.denoisers.NOISE_INPUTS`; default: the process's own time, or log_sigma and angle for edm and trigflow), and
    ``null_label``, the label without a class, if it has one. Time 0 is clean data everywhere: a flow that runs the other way
    is wrapped in a module that gives its network 1 - t and negates the answer. ``data_range``: the range of the teacher's
    images.

    ``data``: images (N, C, H, W) in [-1, 1] or uint8, or the path of a folder or file (`load_pictures`), with ``labels``
    (N,). ``image_size``: cut and resize a folder's pictures. ``sigma_data``: their standard deviation (None: measured).
    ``features``: (N, C, H, W) -> (N, D) for the Frechet distance, or MODULE:FUNCTION, used as they are; None:
    `image_features`, whitened on the data. If they (or MODULE) have ``accuracy`` (images, cond) -> share of samples that
    show their class, it is reported.

    The real images judged against are all, or 4096 spread evenly. An evaluation draws 4 samples per real image, but at most
    4096 and at least 2048 (more copies of few images), in the real classes' exact proportions.
    ``teacher_nodes``: noise levels of the teacher's Heun sampler, from sigma = 80 to 0.002 inside the process's range.
    Raises LimbeckError for what it cannot use; warns where the teacher denoises the data worse than no network would.
    """
    if teacher is None:
        raise LimbeckError(
            "data without a teacher: give --teacher (teacher=), your trained network; `limbeck.tasks.cached_teacher` trains a "
            "small one on your images"
        )
    if data is None:
        raise LimbeckError(
            "a teacher without data: give --data (data=): the figures need real images, also where the method does not"
        )
    pictures = given_pictures(data, labels, image_size)
    images, number_type = pictures.images, getattr(torch, dtype)
    if len(images) < 2:
        raise LimbeckError("one image is no data set; give at least two, better some hundred")
    sigma_data = float(images.double().std()) if sigma_data is None else sigma_data
    if not sigma_data > 0:
        raise LimbeckError(f"the standard deviation of the data is {sigma_data:g}: all pictures are one flat colour")
    time = None
    if isinstance(teacher, (str, Path)):
        teacher, time = read_teacher(teacher, network)
    elif network is not None:
        raise LimbeckError("network= is for a teacher given as a file of weights; leave it out")
    declared = Declared(prediction, process, noise_input, parsed_range(data_range), null_label)
    denoiser: Any = as_denoiser(teacher, declared, sigma_data, time)
    if isinstance(denoiser, nn.Module):
        denoiser = denoiser.eval().to(device, number_type)
    images = images.to(number_type)
    labelled = None if pictures.labels is None else {"label": pictures.labels.to(device)}
    placed = images.to(device)
    cond = tried(denoiser, placed, labelled)
    shape, count = tuple(images.shape[1:]), len(pictures.classes) if cond else 0
    task = Task(
        "own",
        denoiser,
        TensorSource(images, None if cond is None else {"label": cond["label"].cpu()}),
        shape,
        own_evaluator(placed, cond, features),
        sigma_data,
        new_network(denoiser, shape, count),
        teacher_nodes,
        sampled_range(denoiser),
        {"origin": "given"},
    )
    if not quiet:
        classes = f"{count} classes" if cond else "no classes"
        print(
            f"own: {len(images)} images {' x '.join(map(str, shape))}, {classes}, sigma_data {sigma_data:.3g}; judged by "
            f"{task.evaluator.count} samples against {len(task.evaluator.real)} images",
            file=sys.stderr,
        )
    return task


@dataclass(frozen=True)
class OwnOptions:
    """What a person may say of their own teacher and data."""

    teacher: str | None = None
    """Your own teacher: NAME.safetensors (+ .json), a .pt2 or .pt file, or MODULE:FUNCTION."""
    data: Path | None = None
    """A folder of pictures (one subfolder per class for labels)."""
    network: str | None = None
    """MODULE:CLASS of the teacher's network, for a bare state dict."""
    prediction: str | None = None
    """What your network predicts: edm, x0, eps, v, velocity, score."""
    process: str | None = None
    """Its noising process: ve, vp, cosine, ddpm, flow, trigflow; options as in flow:shift=3."""
    noise_input: str | None = None
    """How it is told the noise: time, thousand, sigma, log_sigma, log_sigma_thousand, angle."""
    data_range: str | None = None
    """The range of its images: "-1,1" (default), "0,1" or LOW,HIGH."""
    null_label: int | None = None
    """The label that means "no class" to your network, if one does."""
    sigma_data: float | None = None
    """The data's standard deviation (default: measured)."""
    image_size: int | None = None
    """Cut the centre square of every picture and resize it to N x N."""
    teacher_nodes: int | None = None
    """Noise levels of your teacher's Heun sampler (default: 18)."""
    features: str | None = None
    """MODULE:FUNCTION, images (N, C, H, W) in [-1, 1] -> features (N, D) for the Frechet distance."""


OPTIONS = OwnOptions
# keywords that no command line has, for objects in memory
FURTHER = tuple(name for name in inspect.signature(own_task).parameters if name not in ("device", "dtype", "quiet"))


def own_task_from_options(teacher: Any = None, data: Any = None, **options: Any) -> Task:
    """`own_task` from what a run's config.yaml or the command line says."""
    check_arguments(own_task, options, "options of the task 'own'")
    return own_task(teacher, data, **options)


def given_pictures(data: Any, labels: Any, image_size: int | None) -> Pictures:
    """A person's pictures: a path (`load_pictures`), or a tensor (`as_images`) with its labels.

    Raises LimbeckError for what these refuse, and for a size or labels where they are not wanted.
    """
    if isinstance(data, (str, Path)):
        found = load_pictures(data, image_size)
    elif image_size is not None:
        raise LimbeckError("image_size is for folders of pictures; resize a tensor yourself")
    else:
        found = Pictures(as_images(data))
    if labels is None:
        return found
    if found.labels is not None:
        raise LimbeckError(f"{data} has classes of its own; leave labels out")
    given = as_labels(labels, len(found.images))
    return Pictures(found.images, given, tuple(str(k) for k in range(int(given.max()) + 1)))


def own_evaluator(real: Tensor, cond: Cond | None, features: Any = None) -> Evaluator:
    """The judge of a person's images; which, how many and in what features: `own_task`."""
    accuracy, named = None, features
    features = named_features(features)
    if isinstance(named, str):
        accuracy = getattr(sys.modules[named.partition(":")[0]], "accuracy", None)
    count = min(len(real), JUDGED)
    rows = torch.arange(count, device=real.device) * len(real) // count
    judged, copies = real[rows], max(1, min(4, JUDGED // count), -(-LEAST // count))
    cond = None if cond is None else {name: value[rows].repeat(copies) for name, value in cond.items()}
    if features is None:
        return Evaluator(whitened(image_features, judged), judged, copies * count, cond)
    if isinstance(features, nn.Module):
        features = features.to(real).eval()
    try:
        with torch.no_grad():
            found = features(judged[:2])
    except Exception as error:  # a person's code
        raise LimbeckError(f"the features failed on images {tuple(judged[:2].shape)}: {said(error)}") from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise LimbeckError(f"the features answered {shape} for 2 images; they must be a tensor (N, D)")
    return Evaluator(features, judged, copies * count, cond, getattr(features, "accuracy", None) or accuracy)


def named_features(features: Any) -> Any:
    """Features named as MODULE:FUNCTION or MODULE:CLASS, imported; others as they are."""
    if not isinstance(features, str):
        return features
    named = imported(features, "the features")
    return made(named, features, "the features") if isinstance(named, type) else named


def sampled_range(denoiser: Denoiser, low: float = 0.002, high: float = 80.0) -> tuple[float, float]:
    """[low, high] of sigma inside the range of the denoiser's process, and of the process of a rescaled one's data."""
    process, scale = denoiser.process, getattr(denoiser, "scale", 1.0)
    ends = process.sigma(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
    least, most = float(ends[0]) / min(scale, 1.0), float(ends[1]) / max(scale, 1.0)
    return max(low, least * (1 + 1e-6)), min(high, most * (1 - 1e-6))  # no rounding may leave the range


def new_network(denoiser: Any, shape: tuple[int, ...], classes: int) -> Callable[[], nn.Module]:
    """Makes networks for students that start from nothing: of the teacher's kind where it is one of the library's, else a
    small U-Net (an MLP where height or width is no multiple of 4)."""
    config = getattr(getattr(getattr(denoiser, "denoiser", denoiser), "network", None), "config", None)
    if isinstance(config, Mapping) and "kind" in config:
        return lambda: build_network(config)
    if shape[1] % 4 or shape[2] % 4:
        return lambda: ResidualMLP(shape, classes=classes)
    return lambda: UNet(shape, classes=classes)
