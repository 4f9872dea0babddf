"""One reverse step of discrete diffusion, factorised over places: Euler's and Tweedie's.

Both take ratios s (B, L, S), s_{i,y} = p_t(x with x_i := y) / p_t(x), with 1 at y = x_i, and return probabilities (B, L, S)
of the next symbol *before* clipping: where a step is too large for its ratios some are negative (:func:`settled`).
Euler: Lou, Meng and Ermon, arXiv 2310.16834, Sec. 4; Tweedie: ibid., Theorem 4.2.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import LimbeckError, unknown
from limbeck.samplers.discrete.graphs import Graph
from limbeck.samplers.discrete.schedules import Schedule

Kernel = Callable[[Graph, Schedule, Tensor, Tensor, Tensor, Tensor], Tensor]
LARGE = 0.05  # share of probability below zero at which a step counts as too large


def euler(graph: Graph, schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """1[y = x_i] + (t - to) rate(t) R, where R_y = Q(y, x_i) s_y and the row sums to 0. x (B, L), t and to ()."""
    r = (t - to) * schedule.rate(t) * graph.jumps(x) * s
    return r + F.one_hot(x, graph.symbols) * (1 - r.sum(-1, keepdim=True))


def tweedie(graph: Graph, schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """The exact posterior of each place by itself, where s is exact: exp(-d Q) s times P(x_i after d | y)."""
    d = schedule.total(t) - schedule.total(to)
    return graph.stagger(s, x, d) * graph.arrive(x, d)


KERNELS: dict[str, Kernel] = {"euler": euler, "tweedie": tweedie}


def kernel_named(name: str) -> Kernel:
    """A kernel by name. Raises LimbeckError for unknown names."""
    if name not in KERNELS:
        raise unknown("kernel", name, KERNELS)
    return KERNELS[name]


def settled(graph: Graph, p: Tensor, final: bool = False) -> Tensor:
    """Probabilities: negative ones become 0, the rest sums to 1. ``final``: without MASK, so that nothing stays masked."""
    p = p.clamp(min=0)
    if final and graph.mask is not None:
        p = p * (torch.arange(graph.symbols, device=p.device) != graph.mask)
    total = p.sum(-1, keepdim=True)
    if not bool((total > 0).all()):
        raise LimbeckError("a place has no symbol with positive probability; are the scores finite, and above 0 somewhere?")
    return p / total


def lost(p: Tensor, x: Tensor) -> float:
    """The mean, over the places that could jump, of the probability below zero that :func:`settled` throws away."""
    stays = p.gather(-1, x[..., None])[..., 0]
    moving = (p * (1 - F.one_hot(x, p.shape[-1]))).ne(0).any(-1)
    below = (p.clamp(max=0).sum(-1).neg() * moving).sum() / moving.sum().clamp(min=1)
    return float(below) if stays.numel() else 0.0
