"""Adversarial losses on logits, real = large; the logit of the softplus discriminator is log p_real / p_fake."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import unknown

Logits = Callable[[Tensor], Tensor]


def discriminator_loss(real: Tensor, fake: Tensor, kind: str = "softplus") -> Tensor:
    """softplus: mean softplus(-real) + mean softplus(fake); hinge: mean relu(1 - real) + mean relu(1 + fake)."""
    if kind == "softplus":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    raise unknown("adversarial loss", kind, ["softplus", "hinge"])


def generator_loss(fake: Tensor, kind: str = "softplus") -> Tensor:
    """softplus: mean softplus(-fake) (non-saturating); hinge: -mean fake."""
    if kind == "softplus":
        return F.softplus(-fake).mean()
    if kind == "hinge":
        return -fake.mean()
    raise unknown("adversarial loss", kind, ["softplus", "hinge"])


def r1_finite_difference(logits: Logits, x: Tensor, noise: Tensor, delta: float = 0.1) -> Tensor:
    """mean |l(x) - l(x + delta noise)|^2, a scalar: delta^2 E |dl/dx|^2 to first order, without double backward (R1).

    ``x`` real samples, ``noise`` standard normal like x. Divide by delta^2 to compare with R1's E |dl/dx|^2.
    """
    return (logits(x) - logits(x + delta * noise)).square().mean()


def logit_accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of logits on the right side of 0, for logs."""
    return torch.cat([(real > 0).flatten(), (fake < 0).flatten()]).double().mean()
