"""Discrete diffusion on sequences: graphs, noise schedules, scores of several network families, kernels, learned steps.

A state is x (B, L), int64, over S symbols; on an absorbing graph one of them is MASK. Times are in [0, 1], 1 is noise. A
score is called as score(x, t (B,)) -> log s (B, L, S). Randomness is given by the caller as uniform numbers (:class:`Clock`).
``Enumerated`` is all of it without randomness, for few symbols and short sequences.
"""

from limbeck.samplers.discrete.clock import Clock, Uniforms, generator_uniforms
from limbeck.samplers.discrete.exact import Enumerated
from limbeck.samplers.discrete.graphs import Absorbing, Graph, Uniform, perturbed
from limbeck.samplers.discrete.kernels import KERNELS, euler, lost, settled, tweedie
from limbeck.samplers.discrete.laws import (
    ChainPosterior,
    chain_law,
    countdown,
    countdown_chain,
    countdown_errors,
    cyclic_chain,
    sequences,
    unigram_entropy,
)
from limbeck.samplers.discrete.learned import LearnedSteps, Score, Step, end_of, scaled_score, teacher_times, walk
from limbeck.samplers.discrete.schedules import Geometric, Linear, LogLinear, Schedule, uniform_times
from limbeck.samplers.discrete.scores import CleanPredictor, LogScores, masked_language_model

__all__ = [
    "KERNELS",
    "Absorbing",
    "ChainPosterior",
    "CleanPredictor",
    "Clock",
    "Enumerated",
    "Geometric",
    "Graph",
    "LearnedSteps",
    "Linear",
    "LogLinear",
    "LogScores",
    "Schedule",
    "Score",
    "Step",
    "Uniform",
    "Uniforms",
    "chain_law",
    "countdown",
    "countdown_chain",
    "countdown_errors",
    "cyclic_chain",
    "end_of",
    "euler",
    "generator_uniforms",
    "lost",
    "masked_language_model",
    "perturbed",
    "scaled_score",
    "sequences",
    "settled",
    "teacher_times",
    "tweedie",
    "uniform_times",
    "unigram_entropy",
    "walk",
]
