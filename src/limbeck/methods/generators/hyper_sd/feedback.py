"""Human feedback on clean predictions: differentiable rewards with a hinge, and a loss against the image they came from.

L_I is the training loss of a frozen network (the paper's: instance segmentation) on the image's annotations.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import Ingredients
from limbeck.methods.generators.hyper_sd.options import HyperSDOptions
from limbeck.tasks import Reward, imported


class Feedback:
    """The rewards and the structure loss that the options name, tried on the task's example.

    Raises LimbeckError for unknown names, for a reward or loss that is not one number per sample, and for one without gradient.
    """

    def __init__(self, parts: Ingredients, options: HyperSDOptions):
        self.options = options
        self.rewards: dict[str, Reward] = {name: parts.rewarded(name) for name in options.rewards}
        self.structure: Any = imported(options.structure, "structure loss") if options.structure else None
        if "reward" in options.then and not self:
            there = ", ".join(parts.rewards) or "none"
            raise LimbeckError(f"the reward stage has nothing to maximise; name rewards (the task's: {there}) and their hinges")
        x = parts.example.detach().clone().requires_grad_()
        with torch.enable_grad():
            for name, reward in self.rewards.items():
                _check(f"reward {name!r}", reward(x, parts.cond), len(x))
            if self.structure is not None:
                _check(f"structure loss {options.structure!r}", self.structure(x, parts.example, parts.cond), len(x))

    def __bool__(self) -> bool:
        return bool(self.rewards) or self.structure is not None

    def aesthetic(self, x: Tensor, cond: Cond | None) -> tuple[Tensor, dict[str, Tensor]]:
        """(L_aes of predictions x (B, ...), each reward's mean)."""
        loss, logs = x.new_zeros(()), {}
        for (name, reward), alpha in zip(self.rewards.items(), self.options.hinges, strict=True):
            r = reward(x, cond)
            loss = loss + F.relu(alpha - r).mean()  # (8)
            logs[f"reward {name}"] = r.detach().mean()
        return loss, logs

    def structural(self, x: Tensor, image: Tensor, cond: Cond | None) -> Tensor:
        """L_percep of predictions x of images, both (B, ...)."""
        return self.structure(x, image, cond).mean()  # (8)


def _check(what: str, value: Tensor, batch: int) -> None:
    if tuple(value.shape) != (batch,):
        raise LimbeckError(
            f"the {what} answered {tuple(value.shape)} for {batch} samples; it must return one number per sample"
        )
    if value.grad_fn is None:
        raise LimbeckError(
            f"the {what} has no gradient with respect to the samples (it detaches them, or runs under no_grad); make it "
            "differentiable, or use pso, which needs only its values"
        )
