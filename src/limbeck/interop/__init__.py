"""The border to diffusers, in both directions: their models, schedulers and pipelines as denoisers, students as pipelines."""

from limbeck.interop.conventions import CONVENTIONS, Convention, convention_of
from limbeck.interop.models import DiffusersNetwork
from limbeck.interop.schedules import Schedule, diffusers_denoiser, read_schedule

__all__ = [
    "CONVENTIONS",
    "Convention",
    "DiffusersNetwork",
    "Schedule",
    "convention_of",
    "diffusers_denoiser",
    "read_schedule",
]
