"""f-divergences D_f(p || q) = E_q f(r), r = p/q (p teacher, q student): their weight h(r) = r^2 f''(r) on the score difference.

grad D_f = -E_q[h(r) (S_p - S_q) dx_t/dtheta] for every f (f-distill, arXiv 2502.15681, Theorem 1 and Table 1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import unknown


@dataclass(frozen=True)
class Divergence:
    """f (convex, f(1) = 0) and h(r) = r^2 f''(r), elementwise on r > 0."""

    f: Callable[[Tensor], Tensor]
    h: Callable[[Tensor], Tensor]


DIVERGENCES: dict[str, Divergence] = {
    "rkl": Divergence(lambda r: -torch.log(r), torch.ones_like),
    "sf": Divergence(lambda r: (r + 1) * torch.log(0.5 + 0.5 / r), lambda r: 1 / (1 + r)),
    "js": Divergence(lambda r: r * torch.log(r) - (r + 1) * torch.log((r + 1) / 2), lambda r: r / (1 + r)),
    "sh": Divergence(lambda r: 1 - torch.sqrt(r), lambda r: torch.sqrt(r) / 4),
    "kl": Divergence(lambda r: r * torch.log(r), lambda r: r),
    "jf": Divergence(lambda r: (r - 1) * torch.log(r), lambda r: 1 + r),
    "neyman": Divergence(lambda r: (1 - r) ** 2 / r, lambda r: 2 / r),
}


def divergence(name: str) -> Divergence:
    """The divergence of that name: rkl (= DMD), sf, js, sh, kl, jf, neyman."""
    if name not in DIVERGENCES:
        raise unknown("divergence", name, DIVERGENCES)
    return DIVERGENCES[name]


def density_ratio(logits: Tensor) -> Tensor:
    """r = exp(l) of a softplus discriminator's logit, (B,) or (B, heads) averaged first; l in [-10, 10], r in [0.1, 20]."""
    logits = logits.detach().double()
    if logits.ndim > 1:
        logits = logits.flatten(1).mean(1)
    return torch.exp(logits.clamp(-10, 10)).clamp(0.1, 20)
