"""Losses: pure functions on tensors and denoisers. Means over the elements of a sample, then over samples."""

from limbeck.losses.adversarial import discriminator_loss, generator_loss, logit_accuracy, r1_finite_difference
from limbeck.losses.consistency import consistency_loss, pseudo_huber, squared
from limbeck.losses.denoising import WEIGHTS, denoising_loss, denoising_target, importance_weight

__all__ = [
    "WEIGHTS",
    "consistency_loss",
    "denoising_loss",
    "denoising_target",
    "discriminator_loss",
    "generator_loss",
    "importance_weight",
    "logit_accuracy",
    "pseudo_huber",
    "r1_finite_difference",
    "squared",
]
