"""Denoisers D(x_t, t, cond) -> x0: preconditioned networks, closed forms, guidance, and views in other processes."""

from limbeck.denoisers.guidance import ClassifierFree, guided, null_cond
from limbeck.denoisers.preconditioned import NOISE_INPUTS, SCALINGS, Preconditioned
from limbeck.denoisers.protocol import (
    Cond,
    Denoiser,
    InProcess,
    Reconditioned,
    Rescaled,
    check_denoiser,
    in_process,
    times_like,
)

__all__ = [
    "NOISE_INPUTS",
    "SCALINGS",
    "ClassifierFree",
    "Cond",
    "Denoiser",
    "InProcess",
    "Preconditioned",
    "Reconditioned",
    "Rescaled",
    "check_denoiser",
    "guided",
    "in_process",
    "null_cond",
    "times_like",
]
