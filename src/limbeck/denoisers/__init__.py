"""Denoisers D(x_t, t, cond) -> x0: preconditioned networks, closed forms, guidance, and views in other processes.

Closed forms are exact: :class:`GaussianDenoiser` (any covariance; its probability flow too), :class:`MixtureDenoiser` and
:class:`FiniteSetDenoiser` (a data set's own optimal denoiser, or its kernel density estimate).
"""

from limbeck.denoisers.closed_form import ClosedForm, predict
from limbeck.denoisers.finite import FiniteSetDenoiser
from limbeck.denoisers.fit import explained_variance, fit_mixture
from limbeck.denoisers.gaussian import GaussianDenoiser
from limbeck.denoisers.guidance import ClassifierFree, guided, null_cond
from limbeck.denoisers.mixture import MixtureDenoiser
from limbeck.denoisers.moments import Moments
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
    "ClosedForm",
    "Cond",
    "Denoiser",
    "FiniteSetDenoiser",
    "GaussianDenoiser",
    "InProcess",
    "MixtureDenoiser",
    "Moments",
    "Preconditioned",
    "Reconditioned",
    "Rescaled",
    "check_denoiser",
    "explained_variance",
    "fit_mixture",
    "guided",
    "in_process",
    "null_cond",
    "predict",
    "times_like",
]
