"""The border to diffusers, in both directions: their models, schedulers and pipelines as denoisers, students as pipelines."""

from limbeck.interop.models import CONVENTIONS, Convention, DiffusersNetwork
from limbeck.interop.schedules import Schedule, diffusers_denoiser, read_schedule

__all__ = ["CONVENTIONS", "Convention", "DiffusersNetwork", "Schedule", "diffusers_denoiser", "read_schedule"]
