"""Train the frozen feature net of the digits: writes digit_features.safetensors and .json into limbeck/tasks.

Run with one thread: OMP_NUM_THREADS=1 python scripts/make_digit_features.py
"""

import hashlib
import json
import platform
from pathlib import Path

import numpy
import safetensors.torch
import sklearn
import torch
from torch import Tensor, nn

from limbeck.metrics import bootstrap_floor, frechet_distance_of_moments, moments
from limbeck.tasks.digit_features import FEATURES_FILE, DigitFeatures, digit_split, load_digits

SEED = 0
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 2e-3
# Both spread the features beyond the ten class directions, so that whitening blows up the others less.
NOISE = 0.2
DROPOUT = 0.3


def train(images: Tensor, labels: Tensor, seed: int) -> DigitFeatures:
    """A classifier of the given digits, not yet whitened; in float64, so that machines agree on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DigitFeatures()
        batches = len(images) // BATCH
        optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
        steps = EPOCHS * batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(images))[: batches * BATCH].split(BATCH):
                x = images[batch] + NOISE * torch.randn(BATCH, 1, 8, 8)
                features = nn.functional.dropout(net.raw_features(x), DROPOUT)
                loss = nn.functional.cross_entropy(net.head(features), labels[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.requires_grad_(False).eval()


def whiten(net: DigitFeatures, images: Tensor) -> None:
    """Round the weights to float32, as stored, then set the whitening C^(-1/2) of the images' features."""
    net.float().double()
    mean, covariance = moments(net.raw_features(images))
    values, vectors = torch.linalg.eigh(covariance)
    print(f"standard deviations of the raw features: {values[0] ** 0.5:.3g} to {values[-1] ** 0.5:.3g}")
    net.mean.copy_(mean)
    net.whitening.copy_(vectors / values.sqrt() @ vectors.T)


def make() -> tuple[DigitFeatures, float]:
    """The net and its accuracy on the held-out digits."""
    images, labels = load_digits()
    kept, held_out = digit_split(labels)
    net = train(images[kept], labels[kept], SEED)
    whiten(net, images)
    hits = net.logits(images[held_out]).argmax(1) == labels[held_out]
    return net, hits.double().mean().item()


def frechet_floor(net: DigitFeatures) -> float:
    """The Frechet distance that 7188 samples read for noise alone: four per real digit of each class."""
    images, labels = load_digits()
    features = net.features(images)
    reference = moments(features)
    return bootstrap_floor(
        features,
        lambda sample, _: frechet_distance_of_moments(moments(sample), reference),
        repeats=200,
        seed=0,
        labels=labels,
        copies=4,
    )


def main(file: Path = FEATURES_FILE) -> None:
    torch.set_num_threads(1)
    net, accuracy = make()
    tensors = {name: tensor if name in ("mean", "whitening") else tensor.float() for name, tensor in net.state_dict().items()}
    content = safetensors.torch.save(tensors)
    record = {
        "script": "scripts/make_digit_features.py",
        "seed": SEED,
        "split": "train_test_split(test_size=0.2, stratify=labels, random_state=0) of scikit-learn",
        "held_out": 360,
        "held_out_accuracy": accuracy,
        "frechet_floor_of_7188": frechet_floor(net),
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
    file.write_bytes(content)
    text = json.dumps(record, indent=2)
    file.with_suffix(".json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
