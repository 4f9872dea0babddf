"""What the claims on digits share: flat images, a split by seed, small classifiers, and their figures."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from limbeck.tasks import load_digits
from limbeck.training import Loop, LoopOptions, Method, TensorSource


@lru_cache(maxsize=1)
def flat_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: (1797, 64) in [-1, 1], labels (1797,)."""
    images, labels = load_digits()
    return images.flatten(1), labels


def shuffled(seed: int) -> Tensor:
    """A permutation of the digits' numbers."""
    return torch.randperm(len(flat_digits()[0]), generator=torch.Generator().manual_seed(seed))


def mlp(hidden: int, seed: int) -> nn.Sequential:
    """64 -> hidden -> 10 with ReLU, weights of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def trained(method: Method, x: Tensor, labels: Tensor, iterations: int, batch: int, seed: int) -> Method:
    """The method after its loop over (x, labels)."""
    Loop(method, TensorSource(x, {"label": labels}), LoopOptions(iterations, batch, seed=seed), quiet=True).train()
    return method


@torch.no_grad()
def accuracy(module: nn.Module, x: Tensor, labels: Tensor) -> float:
    """The share of inputs of which the label's logit is the highest, in per cent."""
    return 100 * float((module.eval()(x).argmax(1) == labels).double().mean())
