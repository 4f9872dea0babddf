"""scikit-learn's 1,797 real digits, 8x8, ten classes: a class-conditional EDM teacher made in about a minute."""

from dataclasses import replace

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Preconditioned
from limbeck.networks import ResidualMLP
from limbeck.noise import VE
from limbeck.tasks.digit_features import load_digit_features, load_digits
from limbeck.tasks.digit_rewards import DIGIT_REWARDS
from limbeck.tasks.task import Evaluator, Task
from limbeck.tasks.teacher import TeacherOptions, cached_teacher
from limbeck.training import TensorSource

SHAPE = (1, 8, 8)
SIGMA_DATA = 0.5
# Twice as long makes a better teacher (Frechet distance 0.34 instead of 0.69) that one-step students follow less far.
TEACHER = TeacherOptions(iterations=1500)


def digits_evaluator(images: Tensor, labels: Tensor) -> Evaluator:
    """7,188 samples, four per training label (exact class counts), in the library's frozen digit features."""
    net = load_digit_features().to(images)

    def accuracy(x: Tensor, cond: Cond) -> float:
        with torch.no_grad():
            return float((net.logits(x).argmax(1) == cond["label"]).double().mean())

    return Evaluator(net.features, images, 4 * len(labels), {"label": labels.repeat(4)}, accuracy)


def digits(
    seed: int = 0, *, device: str = "cpu", dtype: str = "float32", quiet: bool = False, teacher: TeacherOptions | None = None
) -> Task:
    """The task; trains its teacher at the first call and caches it. ``seed`` is the teacher's."""
    images, labels = load_digits()
    source = TensorSource(images, {"label": labels})
    network = lambda: ResidualMLP(SHAPE, width=256, blocks=4, classes=10)  # noqa: E731
    options = replace(teacher or TEACHER, seed=seed)
    model, facts = cached_teacher("digits", lambda: Preconditioned(network(), VE(), "edm", SIGMA_DATA), source, options, quiet)
    real = images.to(device, getattr(torch, dtype))
    evaluator = digits_evaluator(real, labels.to(device))
    placed = TensorSource(images.to(real.dtype), {"label": labels})
    return Task(
        "digits", model.to(real), placed, SHAPE, evaluator, SIGMA_DATA, network, facts=facts, rewards=dict(DIGIT_REWARDS)
    )
