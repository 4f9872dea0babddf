"""Score rules: where should this sample move? Distribution matching (any f-divergence, VSD), score identity and implicit matching."""

from limbeck.rules.contract import (
    Pull,
    Sample,
    ScoreRule,
    Target,
    evaluating,
    fixed_target,
    frozen,
    huber_surrogate,
    input_gradient,
    surrogate,
)
from limbeck.rules.divergences import DIVERGENCES, Divergence, density_ratio, divergence
from limbeck.rules.identity import WEIGHTS, ScoreIdentity
from limbeck.rules.implicit import DISTANCES, ScoreImplicit
from limbeck.rules.matching import NORMALISERS, DistributionMatching, critic_lag

__all__ = [
    "DISTANCES",
    "DIVERGENCES",
    "NORMALISERS",
    "WEIGHTS",
    "DistributionMatching",
    "Divergence",
    "Pull",
    "Sample",
    "ScoreIdentity",
    "ScoreImplicit",
    "ScoreRule",
    "Target",
    "critic_lag",
    "density_ratio",
    "divergence",
    "evaluating",
    "fixed_target",
    "frozen",
    "huber_surrogate",
    "input_gradient",
    "surrogate",
]
