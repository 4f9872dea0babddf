"""The border to diffusers, in both directions: their models, schedulers and pipelines as denoisers, students as pipelines."""

from limbeck.interop.conventions import CONVENTIONS, Convention, convention_of
from limbeck.interop.models import DiffusersNetwork
from limbeck.interop.negative import negative_prompt
from limbeck.interop.schedulers import SCHEDULERS, Kind, kind_of, load_scheduler, scheduler_nodes
from limbeck.interop.schedules import Schedule, diffusers_denoiser, load_schedule, nodes, read_schedule
from limbeck.interop.teleport import teleport_scheduler, teleported

__all__ = [
    "CONVENTIONS",
    "SCHEDULERS",
    "Convention",
    "DiffusersNetwork",
    "Kind",
    "Schedule",
    "convention_of",
    "diffusers_denoiser",
    "kind_of",
    "load_schedule",
    "load_scheduler",
    "negative_prompt",
    "nodes",
    "read_schedule",
    "scheduler_nodes",
    "teleport_scheduler",
    "teleported",
]
