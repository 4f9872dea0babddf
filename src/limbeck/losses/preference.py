"""Preference losses on pairs: raise one sample's likelihood relative to another's, both relative to a reference.

The log-ratios rho (B,) come from the transitions of a sampler (online) or from denoising errors (offline). Special cases:
with human-labelled pairs at all times the offline form is Diffusion-DPO (arXiv 2311.12908), the online form on a many-step
model is D3PO (arXiv 2311.13231).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import LimbeckError, unknown


def pair_loss(rho_w: Tensor, rho_l: Tensor, beta: float, form: str = "sigmoid") -> Tensor:
    """sigmoid: -log sigmoid(beta (rho_w - rho_l)) (DPO); hinge: relu(1 - beta (rho_w - rho_l)). Shape (B,).

    Winner w and loser l; a pair whose two ratios are both 0 loses log 2 (or 1) and has no gradient.
    """
    margin = beta * (rho_w - rho_l)
    if form == "sigmoid":
        return -F.logsigmoid(margin)
    if form == "hinge":
        return F.relu(1 - margin)
    raise unknown("form of the pair loss", form, ["sigmoid", "hinge"])


def ranked(rho_a: Tensor, rho_b: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """(rho_w, rho_l) of pairs (a, b), each (B,): ``sign`` 1 where a won, -1 where b won, 0 for a tie, whose ratios become 0."""
    zero = torch.zeros_like(rho_a)
    w = torch.where(sign > 0, rho_a, torch.where(sign < 0, rho_b, zero))
    l = torch.where(sign > 0, rho_b, torch.where(sign < 0, rho_a, zero))
    return w, l


def clipped(rho_w: Tensor, rho_l: Tensor, eps: float, kind: str | None = "symmetric") -> tuple[Tensor, Tensor]:
    """Log-ratios held where exp(rho) lies in [1 - eps, 1 + eps]; outside they are constant and have no gradient.

    symmetric: on both sides, also where a ratio left in the wrong direction (PSO's code); ppo: the winner's from above and
    the loser's from below alone, so that a ratio on the wrong side is still brought back; None: not at all.
    Raises LimbeckError unless 0 < eps < 1.
    """
    if kind is None:
        return rho_w, rho_l
    if not 0 < eps < 1:
        raise LimbeckError(
            f"ratios are clipped to [1 - eps, 1 + eps] with 0 < eps < 1, not eps={eps:g}; clip=None clips nothing"
        )
    low, high = math.log1p(-eps), math.log1p(eps)
    if kind == "symmetric":
        return rho_w.clamp(low, high), rho_l.clamp(low, high)
    if kind == "ppo":
        return rho_w.clamp(max=high), rho_l.clamp(min=low)
    raise unknown("clip", kind, ["symmetric", "ppo"])


def denoising_ratios(d_w: Tensor, d_l: Tensor, ref_w: Tensor, ref_l: Tensor, kappa: float = 1.0) -> tuple[Tensor, Tensor]:
    """(rho_w, rho_l) from denoising errors: d_ref(x^w) - d(x^w) and kappa (d_ref(x^l) - d(x^l)), each (B,).

    The bound on log-likelihood that Diffusion-DPO compares; ``kappa`` < 1 pushes losers away less.
    """
    return ref_w - d_w, kappa * (ref_l - d_l)


def customisation_loss(d_w: Tensor, d_l: Tensor, beta: float, kappa: float, prior: float) -> Tensor:
    """relu(1 - beta (kappa d(x^l) - d(x^w))) + prior d(x^l): no reference; the last term keeps x^l, the model's own, fitted. (B,)."""
    return pair_loss(-d_w, -kappa * d_l, beta, "hinge") + prior * d_l
