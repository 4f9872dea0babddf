"""Score rules: where should this sample move? Distribution matching (any f-divergence, VSD) and score identity."""

from limbeck.rules.contract import (
    Pull,
    Sample,
    ScoreRule,
    Target,
    fixed_target,
    frozen,
    huber_surrogate,
    input_gradient,
    surrogate,
)
from limbeck.rules.divergences import DIVERGENCES, Divergence, density_ratio, divergence
from limbeck.rules.identity import ScoreIdentity
from limbeck.rules.matching import NORMALISERS, DistributionMatching, critic_lag

__all__ = [
    "DIVERGENCES",
    "NORMALISERS",
    "DistributionMatching",
    "Divergence",
    "Pull",
    "Sample",
    "ScoreIdentity",
    "ScoreRule",
    "Target",
    "critic_lag",
    "density_ratio",
    "divergence",
    "fixed_target",
    "frozen",
    "huber_surrogate",
    "input_gradient",
    "surrogate",
]
