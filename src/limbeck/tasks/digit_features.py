"""The frozen feature net behind every Frechet figure on scikit-learn's 8x8 digits.

`digit_features.safetensors` holds a small convolutional classifier, made by `scripts/make_digit_features.py`;
`digit_features.json` beside it says from which seed and split, its held-out accuracy and its sha256.
"""

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError

FEATURES_FILE = Path(__file__).with_name("digit_features.safetensors")


def load_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: images (1797, 1, 8, 8), float32 in [-1, 1], and labels (1797,), int64."""
    from sklearn.datasets import load_digits as load

    digits = load()
    images = torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.as_tensor(digits.target, dtype=torch.int64)


def digit_split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the 1437 digits that the classifier was trained on, and of the 360 held out (seed 0)."""
    from sklearn.model_selection import train_test_split

    train, held_out = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return torch.tensor(train), torch.tensor(held_out)


class DigitFeatures(nn.Module):
    """A classifier of 8x8 digits whose 32 penultimate features are whitened on the real data.

    Over the 1797 real digits the features have mean 0 and covariance I (divided by N - 1), so that every
    direction counts alike and the Frechet distance to the real digits needs no other reference. Weights are
    float32 numbers, held and used in float64: figures agree between machines.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(512, 32),
            nn.SiLU(),
        )
        self.head = nn.Linear(32, 10)
        self.register_buffer("mean", torch.zeros(32))
        self.register_buffer("whitening", torch.eye(32))
        self.double()

    def raw_features(self, x: Tensor) -> Tensor:
        """The features (N, 32) before whitening, float64, of images (N, 1, 8, 8) in [-1, 1] (not clamped)."""
        if x.shape[1:] != (1, 8, 8):
            raise LimbeckError(f"images have shape {tuple(x.shape)}: the digits' feature net takes (N, 1, 8, 8)")
        return self.body(x.to(self.mean.dtype))

    def features(self, x: Tensor) -> Tensor:
        """The whitened features (N, 32), float64, of images (N, 1, 8, 8); differentiable in x."""
        return (self.raw_features(x) - self.mean) @ self.whitening

    def logits(self, x: Tensor) -> Tensor:
        """The logits (N, 10), float64, of images (N, 1, 8, 8); differentiable in x."""
        return self.head(self.raw_features(x))

    def forward(self, x: Tensor) -> Tensor:
        """:meth:`logits`: called as a network, it is the classifier."""
        return self.logits(x)


def load_digit_features(file: Path = FEATURES_FILE) -> DigitFeatures:
    """The frozen net, in eval mode on the CPU.

    Raises `LimbeckError` when the file or the json beside it is missing, or when the file's sha256 is not the
    one that the json records.
    """
    record = file.with_suffix(".json")
    if missing := [path for path in (file, record) if not path.is_file()]:
        raise LimbeckError(f"{missing[0]} is missing: reinstall limbeck")
    content = file.read_bytes()
    found, recorded = hashlib.sha256(content).hexdigest(), json.loads(record.read_text())["sha256"]
    if found != recorded:
        raise LimbeckError(f"{file} has the sha256 {found}, recorded is {recorded}: reinstall limbeck")
    net = DigitFeatures()
    net.load_state_dict(safetensors.torch.load(content))
    return net.requires_grad_(False).eval()
