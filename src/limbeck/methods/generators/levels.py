"""At which noise levels a score method compares scores and trains its critic: time laws by name."""

import math

import torch

from limbeck.errors import LimbeckError
from limbeck.noise import DDPM, InSigma, Karras, LogNormal, Process, TimeLaw, Uniform, UniformInteger


def level_laws(
    process: Process, score: str, critic: str, low: float, high: float, mean: float, std: float
) -> tuple[TimeLaw, TimeLaw]:
    """(law of the student's times, law of the critic's), quantile functions of u in [0, 1).

    ``score``: karras, levels of sigma = s/a in [low, high] spaced with rho 7; uniform, the process's own time between those
    two levels (the indices of a DDPM table, and only those); critic, the critic's law. ``critic``: lognormal,
    ln sigma ~ N(mean, std^2) (of a rectified flow: t = sigmoid(N(mean, std^2))); score, the student's law; process, the
    student's spacing over all levels of the process. Raises LimbeckError where each is to be the other's, where no index lies
    between the levels, and for Karras' spacing up to sigma = inf.
    """
    if (score, critic) == ("critic", "score"):
        raise LimbeckError("score_law='critic' and critic_law='score' name each other; give one of them a law of its own")
    normal = InSigma(LogNormal(mean, std), process)
    if score == "critic":
        return normal, normal
    law = _spaced(score, process, low, high)
    if critic == "process":
        ends = process.sigma(torch.tensor([process.t_min, process.t_max], dtype=torch.float64)).tolist()
        return law, _spaced(score, process, *ends)
    return law, law if critic == "score" else normal


def _spaced(spacing: str, process: Process, low: float, high: float) -> TimeLaw:
    if spacing != "karras":
        return _uniform(process, low, high)
    if not math.isfinite(high):
        raise LimbeckError("no level lies at sigma = inf, where this process ends; set score_law to uniform, not karras")
    return InSigma(Karras(low, high), process)


def _uniform(process: Process, low: float, high: float) -> TimeLaw:
    edges = process.time_of(torch.tensor([low, high], dtype=torch.float64)).clamp(process.t_min, process.t_max)
    first, last = edges.tolist()
    if isinstance(process, DDPM):
        return UniformInteger(math.ceil(first - 1e-6), math.floor(last + 1e-6))
    return Uniform(first, last)
