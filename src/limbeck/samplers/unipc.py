"""UniPC, the multistep solver that corrects each state with the denoiser call that it makes there anyway."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, times_like
from limbeck.errors import unknown
from limbeck.samplers.steps import check_nodes, ddim_step

VARIANTS = ("bh1", "bh2")


def unipc(
    denoiser: Denoiser,
    x: Tensor,
    times: Sequence[float] | Tensor,
    cond: Cond | None = None,
    *,
    variant: str = "bh2",
    corrector: bool = True,
    lower_order_final: bool = False,
    final: bool = True,
) -> Tensor:
    """UniPC of order 2, data prediction (arXiv 2302.04867), in lambda = ln(a / s).

    The predictor is of second order (the first step of first), the corrector raises each step's order by one at no further
    call: the state at a node is corrected with D there, while D itself stays that of the predicted state. ``variant``: B(h) =
    -h ("bh1") or e^-h - 1 ("bh2"). ``lower_order_final`` makes the last step to times[-1] of first order, for few steps that
    end there (final=False). The state at times[-1] is not corrected: that needs a call there. One denoiser call per step.
    Equals diffusers' UniPCMultistepScheduler.
    """
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    process, nodes = denoiser.process, check_nodes(denoiser.process, times)
    lam = [math.nan, *(-torch.log(process.sigma(nodes))).tolist()]  # lam[i + 1] at node i
    residual: Callable[..., Tensor | float] | None = None  # what the last step added to ``base``, first order from its node
    older: Tensor | None = None
    base = x
    for i, (t, t_to) in enumerate(pairwise(nodes)):
        x0 = denoiser(x, times_like(x, t), cond)
        if residual is not None and corrector:
            x = base + residual(ahead=x0)
        if lower_order_final and i == len(nodes) - 2:
            older = None
        residual = partial(_residual, lam[i : i + 3], process.a(t_to).item(), variant, x0, older)
        base = ddim_step(process, x, x0, t, t_to)
        x, older = base + residual(), x0
    return denoiser(x, times_like(x, nodes[-1]), cond) if final else x


def _residual(
    lam: Sequence[float], a_to: float, variant: str, x0: Tensor, older: Tensor | None, ahead: Tensor | None = None
) -> Tensor | float:
    """What a step adds to the one of first order: -a_to B(h) times a weighted sum of slopes of D over lambda.

    ``lam`` at the node before, at the step's two ends; ``x0`` D at its start, ``older`` before, ``ahead`` at its end.
    """
    h = lam[2] - lam[1]
    B = -h if variant == "bh1" else math.expm1(-h)
    if not math.isfinite(B):  # a step from where no signal is left
        return 0.0
    if older is None:
        return 0.0 if ahead is None else -a_to * B / 2 * (ahead - x0)
    r = (lam[0] - lam[1]) / h
    slope = (older - x0) / r
    if ahead is None:
        return -a_to * B / 2 * slope
    behind, forward = _corrector_weights(-h, B, r)
    return -a_to * B * (behind * slope + forward * (ahead - x0))


def _corrector_weights(g: float, B: float, r: float) -> tuple[float, float]:
    """Of the slope to the node before (at r steps) and to the one ahead (at 1): exact for D quadratic in lambda; g = -h."""
    first, second = g * _phi(2, g) / B, 2 * g * _phi(3, g) / B
    behind = (second - first) / (r - 1)
    return behind, first - behind


def _phi(k: int, g: float) -> float:
    """phi_k(g) = integral over u in [0, 1] of e^((1 - u) g) u^(k - 1) / (k - 1)!: phi_0 = e^g."""
    if abs(g) < 0.3:  # the recursion cancels here
        return sum(g**j / math.factorial(j + k) for j in range(14))
    value = math.expm1(g) / g
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / g
    return value
