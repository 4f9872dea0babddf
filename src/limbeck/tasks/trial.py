"""A teacher tried on a person's images before anything is trained: does it answer, and does it denoise?"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import NOISE_INPUTS, Cond, Denoiser, ForeignNetwork, Preconditioned, Rescaled, check_denoiser
from limbeck.errors import LimbeckError
from limbeck.networks import NETWORKS
from limbeck.noise import PREDICTIONS
from limbeck.tasks.named import said


def tried(denoiser: Denoiser, images: Tensor, cond: Cond | None) -> Cond | None:
    """The conditions that the teacher takes, after it answered two images as a denoiser does.

    Labels that its network does not take are left out, with a warning; more warnings where it answers the same input
    differently, or denoises worse than no network would. Raises LimbeckError where it fails.
    """
    inner = _inner(denoiser)
    network = getattr(inner, "network", None)
    if cond is not None and not _takes_labels(network):
        warnings.warn("the teacher takes no labels: the classes of the data are not used", stacklevel=3)
        cond = None
    label = None if cond is None else cond["label"]
    rows = [0, -1] if label is None else [int(label.argmin()), int(label.argmax())]
    x, two = images[rows], None if label is None else {"label": label[rows]}
    try:
        _answer(denoiser, x, two, inner)
    except LimbeckError:
        raise
    except Exception as error:  # whatever a person's network raises
        labels = "" if two is None else f" with the labels {two['label'].tolist()}"
        raise LimbeckError(
            f"the teacher failed on images {tuple(x.shape)}{labels}: {said(error)}; is it called as (x, t), (x, t, label) or "
            "(x, t, cond), and are image size and classes those that it was trained for?"
        ) from error
    some = images[:64], None if cond is None else {"label": cond["label"][:64]}
    if denoising_ratio(denoiser, *some) != denoising_ratio(denoiser, *some):
        warnings.warn(
            "the teacher answers the same input differently: is there dropout in it, or noise of its own?", stacklevel=3
        )
    if (ratio := denoising_ratio(denoiser, *some)) > 1.1:
        warnings.warn(
            f"the teacher denoises your images worse than no network would ({ratio:.3g} times the squared error of shrinking "
            "them towards their mean); check its weights, prediction, process, noise_input and data_range"
            + better_declaration(denoiser, *some),
            stacklevel=3,
        )
    return cond


def _inner(denoiser: Any) -> Any:
    return denoiser.denoiser if isinstance(denoiser, Rescaled) else denoiser


def _takes_labels(network: Any) -> bool:
    if isinstance(network, ForeignNetwork):
        return network.third is not None
    own: bool = isinstance(network, tuple(NETWORKS.values()))
    return not own or getattr(network, "null", None) is not None


def _answer(denoiser: Denoiser, x: Tensor, cond: Cond | None, inner: Any) -> None:
    try:
        check_denoiser(denoiser, x, cond)
    except (IndexError, RuntimeError, TypeError):
        network = getattr(inner, "network", None)
        counted = isinstance(inner, Preconditioned) and (inner.noise_input == "thousand" or inner.process.t_max > 2)
        if not counted or not isinstance(network, ForeignNetwork) or network.time is not None:
            raise
        network.time = torch.int64  # tables of time steps are looked up by integers
        try:
            check_denoiser(denoiser, x, cond)
        except Exception:
            network.time = None
        else:
            return
        raise


@torch.no_grad()
def denoising_ratio(denoiser: Denoiser, images: Tensor, cond: Cond | None = None) -> float:
    """Mean squared error of D(x + sigma e) over that of m + v / (v + sigma^2) (x + sigma e - m), m and v the images' mean
    and variance: the geometric mean over sigma^2 = v / 16, v / 4 and v. Below 1 the denoiser knows more than two numbers."""
    mean, variance = images.mean(), images.double().var().item()
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).to(images)
    total = 0.0
    for share in (1 / 4, 1 / 2, 1):
        sigma = share * math.sqrt(variance)
        t = denoiser.process.time_of(torch.full((len(images),), sigma, dtype=torch.float64, device=images.device))
        shrunk = mean + variance / (variance + sigma**2) * (images + sigma * eps - mean)
        answer = denoiser(denoiser.process.add_noise(images, eps, t), t, cond)
        total += math.log(_error(answer, images) / _error(shrunk, images)) / 3
    return math.exp(total) if math.isfinite(total) else math.inf


def _error(answer: Tensor, images: Tensor) -> float:
    return float((answer - images).double().square().mean()) + 1e-30


def better_declaration(denoiser: Denoiser, images: Tensor, cond: Cond | None) -> str:
    """ "; ... would fit": the prediction and noise input under which a network denoises the images best, if it then does."""
    inner = _inner(denoiser)
    if not isinstance(inner, Preconditioned) or not isinstance(inner.network, ForeignNetwork):
        return ""
    best, name = 0.9, ""
    for prediction in PREDICTIONS:
        for noise_input in NOISE_INPUTS:
            other: Any = Preconditioned(inner.network, inner.process, prediction, inner.sigma_data, noise_input)
            if isinstance(denoiser, Rescaled):
                other = Rescaled(other, denoiser.scale, denoiser.shift)
            try:
                ratio = denoising_ratio(other, images, cond)
            except Exception:  # a network may refuse a time outside its table
                continue
            if ratio < best:
                best, name = ratio, f"; prediction {prediction} with noise input {noise_input} would fit ({best:.2g} times)"
    return name
