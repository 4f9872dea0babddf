"""Denoisers D(x_t, t, cond) -> x0: preconditioned networks, closed forms, guidance, and views in other processes.

Closed forms are exact: :class:`GaussianDenoiser` (any covariance; its probability flow too), :class:`MixtureDenoiser` and
:class:`FiniteSetDenoiser` (a data set's own optimal denoiser, or its kernel density estimate).
"""

from limbeck.denoisers.closed_form import ClosedForm, predict
from limbeck.denoisers.derivative import derivative
from limbeck.denoisers.explained import Explained, explained_by
from limbeck.denoisers.files import build_denoiser, denoiser_config, load_denoiser, save_denoiser, save_student
from limbeck.denoisers.finite import FiniteSetDenoiser
from limbeck.denoisers.fit import explained_variance, fit_mixture
from limbeck.denoisers.foreign import Exported, ForeignNetwork, load_exported, third_parameter
from limbeck.denoisers.gaussian import GaussianDenoiser
from limbeck.denoisers.guidance import ClassifierFree, guided, null_cond
from limbeck.denoisers.mixture import MixtureDenoiser
from limbeck.denoisers.moments import Moments
from limbeck.denoisers.preconditioned import NOISE_INPUTS, SCALINGS, Preconditioned
from limbeck.denoisers.protocol import (
    Cond,
    Denoiser,
    InProcess,
    Negated,
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
    "Explained",
    "Exported",
    "FiniteSetDenoiser",
    "ForeignNetwork",
    "GaussianDenoiser",
    "InProcess",
    "MixtureDenoiser",
    "Moments",
    "Negated",
    "Preconditioned",
    "Reconditioned",
    "Rescaled",
    "build_denoiser",
    "check_denoiser",
    "denoiser_config",
    "derivative",
    "explained_by",
    "explained_variance",
    "fit_mixture",
    "guided",
    "in_process",
    "load_denoiser",
    "load_exported",
    "null_cond",
    "predict",
    "save_denoiser",
    "save_student",
    "third_parameter",
    "times_like",
]
