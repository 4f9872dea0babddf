"""Denoisers D(x_t, t, cond) -> x0: preconditioned networks, closed forms, guidance, and views in other processes."""

from limbeck.denoisers.files import build_denoiser, denoiser_config, load_denoiser, save_denoiser
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
    "build_denoiser",
    "check_denoiser",
    "denoiser_config",
    "guided",
    "in_process",
    "load_denoiser",
    "null_cond",
    "save_denoiser",
    "times_like",
]
