"""Does an object look different from every side, and right? Renders against a library of views of known objects.

Renders (B, ...) and library views (V, ...) are images in [-1, 1]; masks (B, 1, H, W) weigh pixels, 1 on the object. Entropies
are in nats, angles in degrees.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.metrics.samples import as_labels, as_pair, as_rows, distance_blocks

EDGE = 0.01  # a colour this close to 0 or 1 is clipped


class ViewEntropies(NamedTuple):
    """``quality`` IQ, the mean entropy of a view's posterior (low: each view is clear); ``variety`` IV, the entropy of their
    mean (high: the views differ); ``gain`` IG = (IV - IQ) / IQ, infinite where every view is certain (arXiv 2401.00909).
    """

    quality: float
    variety: float
    gain: float


def view_posterior(renders: Tensor, library: Tensor, std: float = 0.5) -> Tensor:
    """p(view | render), (B, V) float64: of a library view, equally likely beforehand, plus N(0, std^2) in every pixel.

    The larger std, the more a render may differ from its view and the less it says which. Raises `LimbeckError` for renders
    that do not fit the library and a std not above 0.
    """
    if not std > 0:
        raise LimbeckError(f"std is {std:g}: the posterior of views needs a noise above 0 in image units, e.g. 0.5")
    rows, views = as_pair(renders, library, names=("renders", "library"))
    squares = torch.cat([block.square() for block in distance_blocks(rows, views)])
    return torch.softmax(-squares / (2 * std**2), 1)


def view_entropies(posterior: Tensor) -> ViewEntropies:
    """IQ, IV and IG of the posteriors (B, V) of B views of one object. Raises `LimbeckError` for rows that are no law."""
    law = as_rows(posterior, "posterior")
    if posterior.ndim != 2 or bool((law < 0).any()) or not torch.allclose(law.sum(1), law.new_ones(len(law)), atol=1e-4):
        raise LimbeckError(f"a posterior of shape {tuple(posterior.shape)}: give (B, V), each row not negative with sum 1")
    quality, variety = _entropy(law).mean().item(), _entropy(law.mean(0, keepdim=True)).item()
    gain = (variety - quality) / quality if quality > 0 else float("inf") if variety > 0 else 0.0
    return ViewEntropies(quality, variety, gain)


def nearest_views(renders: Tensor, library: Tensor) -> Tensor:
    """The nearest library view of each render, (B,) indices.

    Of renders (n, V, ...) of whole objects and a library (K, V, ...): which object each became. Raises `LimbeckError` for renders
    that do not fit the library.
    """
    rows, views = as_pair(renders, library, names=("renders", "library"))
    return torch.cat([block.argmin(1) for block in distance_blocks(rows, views)])


def label_entropy(labels: Tensor) -> float:
    """The entropy of how often each label occurs among labels (B,), at most log B."""
    _, counts = as_labels(labels, len(labels), "labels").unique(return_counts=True)
    return _entropy(counts[None] / len(labels)).item()


def share_of(labels: Tensor, chosen: Tensor) -> float:
    """The share of labels (B,) of which ``chosen`` (V,) booleans holds: how many views are seen as the front."""
    labels = as_labels(labels, len(labels), "labels")
    if chosen.dtype != torch.bool or chosen.ndim != 1 or bool((labels < 0).any()) or int(labels.max()) >= len(chosen):
        raise LimbeckError(
            f"labels up to {int(labels.max())} do not fit a choice of shape {tuple(chosen.shape)}: give one boolean per view"
        )
    return chosen[labels].double().mean().item()


def circular_order_error(labels: Tensor, views: int) -> float:
    """Mean |label - place| of labels (B,) of a turntable's B views, in degrees, up to one rotation of the whole object.

    ``views`` of the library's own turntable. The true object has 0; one label everywhere has 90. Raises `LimbeckError` for
    labels outside the library.
    """
    labels = as_labels(labels, len(labels), "labels")
    if bool(((labels < 0) | (labels >= views)).any()):
        raise LimbeckError(f"labels {labels.tolist()} of {views} views: they go from 0 to {views - 1}")
    angle = labels.double() * 360 / views - torch.arange(len(labels), device=labels.device) * 360 / len(labels)
    turns = torch.cat([angle, angle + 180])  # the sum of circular distances is least at one of these
    away = (angle[None] - turns[:, None] + 180) % 360 - 180
    return away.abs().mean(1).min().item()


def saturation(images: Tensor, mask: Tensor | None = None) -> float:
    """The mean saturation of HSV, (max - min) / max over the colours of a pixel (0 for black), of images (B, 3, H, W)."""
    colour, weight = _colours(images, mask)
    top = colour.amax(1, keepdim=True)
    value = torch.where(top > 0, (top - colour.amin(1, keepdim=True)) / top.clamp(min=1e-12), 0.0)
    return ((value * weight).sum() / weight.sum()).item()


def saturation_ratio(images: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Saturation over the truth's on the same mask: above 1 is over-saturated. Raises `LimbeckError` for a truth that is grey."""
    true = saturation(truth, mask)
    if true == 0:
        raise LimbeckError("the truth is grey everywhere on the mask: a ratio of saturations needs colour")
    return saturation(images, mask) / true


def clipped_fraction(images: Tensor, mask: Tensor | None = None) -> float:
    """The share of colour values of images (B, 3, H, W) within 1 % of black or full."""
    colour, weight = _colours(images, mask)
    edge = ((colour < EDGE) | (colour > 1 - EDGE)).to(colour).mean(1, keepdim=True)
    return ((edge * weight).sum() / weight.sum()).item()


def render_distance(renders: Tensor) -> float:
    """The mean squared difference between two of n objects, over all pairs, of renders (n, V, ...) from the same V cameras."""
    rows = as_rows(renders, "renders", least=2)
    n, squares = len(rows), torch.cat([block.square() for block in distance_blocks(rows, rows)])
    return squares.sum().item() / (n * (n - 1) * rows.shape[1])


def _entropy(law: Tensor) -> Tensor:
    """In nats, (B,), of rows (B, V)."""
    return -torch.special.xlogy(law, law).sum(1)


def _colours(images: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in [0, 1], and the weights (B, 1, H, W) of their pixels, float64."""
    shape = (len(images), 1, *images.shape[2:])
    if images.ndim != 4 or images.shape[1] != 3 or (mask is not None and tuple(mask.shape) != shape):
        found = None if mask is None else tuple(mask.shape)
        raise LimbeckError(f"images {tuple(images.shape)} with a mask {found}: give (B, 3, H, W) and (B, 1, H, W)")
    colour = ((as_rows(images, "images") + 1) / 2).clamp(0, 1).reshape(images.shape)
    weight = colour.new_ones(shape) if mask is None else as_rows(mask, "mask").reshape(shape)
    if not bool((weight >= 0).all()) or float(weight.sum()) == 0:
        raise LimbeckError("the mask is empty or negative: no pixel of the object is left to be judged")
    return colour, weight
