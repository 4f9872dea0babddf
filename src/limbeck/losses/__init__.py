"""Losses: pure functions on tensors and denoisers. Means over the elements of a sample, then over samples."""

from limbeck.losses.adversarial import discriminator_loss, generator_loss, logit_accuracy, r1_finite_difference
from limbeck.losses.consistency import FromZero, consistency_loss, consistency_pair, pseudo_huber, squared
from limbeck.losses.continuous import (
    TANGENT_NORMALISERS,
    WARMUPS,
    angle,
    consistency_tangent,
    continuous_loss,
    normalise_tangent,
    trig_velocity,
)
from limbeck.losses.denoising import WEIGHTS, denoising_errors, denoising_loss, denoising_target, importance_weight
from limbeck.losses.graph import check_teacher_logits, high_frequency_loss, low_frequency_loss
from limbeck.losses.knowledge import dist_loss, dkd_loss, kd_loss
from limbeck.losses.preference import clipped, customisation_loss, denoising_ratios, pair_loss, ranked
from limbeck.losses.ranking import (
    check_logits,
    decreasing_weights,
    effective_picks,
    pl_log_likelihood,
    pld_loss,
    ranking_weights,
    teacher_ranking,
)
from limbeck.losses.score_entropy import score_entropy

__all__ = [
    "TANGENT_NORMALISERS",
    "WARMUPS",
    "WEIGHTS",
    "FromZero",
    "angle",
    "check_logits",
    "check_teacher_logits",
    "clipped",
    "consistency_loss",
    "consistency_pair",
    "consistency_tangent",
    "continuous_loss",
    "customisation_loss",
    "decreasing_weights",
    "denoising_errors",
    "denoising_loss",
    "denoising_ratios",
    "denoising_target",
    "discriminator_loss",
    "dist_loss",
    "dkd_loss",
    "effective_picks",
    "generator_loss",
    "high_frequency_loss",
    "importance_weight",
    "kd_loss",
    "logit_accuracy",
    "low_frequency_loss",
    "normalise_tangent",
    "pair_loss",
    "pl_log_likelihood",
    "pld_loss",
    "pseudo_huber",
    "r1_finite_difference",
    "ranked",
    "ranking_weights",
    "score_entropy",
    "squared",
    "teacher_ranking",
    "trig_velocity",
]
