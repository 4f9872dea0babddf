"""The exact denoiser of Gaussian data, and a denoiser that counts its calls."""

import pytest
import torch

from limbeck.noise import spread


class Gaussian:
    """E[x_0 | x_t] for x_0 ~ N(mean, sd^2)."""

    def __init__(self, process, mean: float = 0.3, sd: float = 0.7):
        self.process, self.mean, self.sd = process, mean, sd
        self.null: dict[str, torch.Tensor] = {}

    def __call__(self, x_t, t, cond=None):
        a, s = self.process.a(t), self.process.s(t)
        gain = a * self.sd**2 / ((a * self.sd) ** 2 + s**2)
        return self.mean + spread(gain, x_t) * (x_t - spread(a * self.mean, x_t))


class Labelled:
    """x_t / 2 + offset[label], with label 2 for "no condition"; ``calls`` keeps the labels of every call."""

    def __init__(self, process):
        self.process, self.null, self.calls = process, {"label": torch.tensor(2)}, []
        self.offset = torch.tensor([1.0, -3.0, 0.25], dtype=torch.float64)

    def __call__(self, x_t, t, cond=None):
        labels = cond["label"]
        self.calls.append(labels.tolist())
        return x_t / 2 + spread(self.offset[labels], x_t)


@pytest.fixture(scope="session")
def gaussian():
    return Gaussian


@pytest.fixture(scope="session")
def labelled():
    return Labelled
