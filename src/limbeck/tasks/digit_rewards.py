"""Rewards on the digits: a linear classifier of its own, which shares nothing with the features that judge samples."""

from functools import lru_cache

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.tasks.digit_features import load_digits

PENALTY = 0.05  # inverse strength of the regulariser: 94 % of held-out digits, logits of moderate size


@lru_cache(maxsize=1)
def linear_classifier() -> tuple[Tensor, Tensor]:
    """(weight (10, 64), bias (10,)), float64: scikit-learn's logistic regression on every second digit in [-1, 1]."""
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits()
    fitted = LogisticRegression(C=PENALTY, max_iter=1000).fit(images[::2].flatten(1).double().numpy(), labels[::2].numpy())
    return torch.from_numpy(fitted.coef_).double(), torch.from_numpy(fitted.intercept_).double()


def log_probabilities(x: Tensor) -> Tensor:
    """log p(class | x) of images (B, 1, 8, 8) by the linear classifier, (B, 10), differentiable."""
    weight, bias = (value.to(x) for value in linear_classifier())
    return torch.log_softmax(x.flatten(1) @ weight.T + bias, 1)


def class_reward(x: Tensor, cond: Cond | None = None) -> Tensor:
    """log p(requested class | x), (B,)."""
    if cond is None or "label" not in cond:
        raise LimbeckError("the reward 'class' needs the label that each sample was asked for")
    return log_probabilities(x).gather(1, cond["label"].clamp(max=9)[:, None])[:, 0]


def even_reward(x: Tensor, cond: Cond | None = None) -> Tensor:
    """p(an even digit | x), (B,), whatever was asked for."""
    return log_probabilities(x)[:, ::2].exp().sum(1)


def ink_reward(x: Tensor, cond: Cond | None = None) -> Tensor:
    """Mean brightness, (B,): unbounded, so that over-optimisation can be seen."""
    return x.flatten(1).mean(1)


DIGIT_REWARDS = {"class": class_reward, "even": even_reward, "ink": ink_reward}
