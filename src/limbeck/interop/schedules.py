"""Schedulers of diffusers as processes: what x_t is, what the network answers, and how it is told the noise."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError, unknown
from limbeck.noise import DDPM, VE, Process, RectifiedFlow

TABLES = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
    "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler",
)  # fmt: skip
"""Schedulers over a table of alphas_cumprod."""
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class Schedule:
    """What a scheduler says of the network that it was trained with: the arguments of :class:`Preconditioned`.

    ``noise_input`` tells the network the scheduler's own timesteps: table indices, 1000 sigma of a flow, ln(sigma) / 4 of EDM.
    """

    process: Process
    prediction: str
    noise_input: str
    sigma_data: float = 0.5


def read_schedule(scheduler: Any) -> Schedule:
    """The process and the prediction type of a diffusers scheduler (an object; its timesteps do not matter).

    A shift of a flow or a spacing of nodes is how that scheduler samples, not what the network was trained on: it does not
    enter here. Raises LimbeckError for schedulers and prediction types that are not known.
    """
    names, config = {kind.__name__ for kind in type(scheduler).__mro__}, scheduler.config
    prediction = str(config.get("prediction_type", "epsilon"))
    if names & {*FLOWS} or config.get("use_flow_sigmas", False):
        return Schedule(RectifiedFlow(), "velocity", "thousand")
    if names & {*EDM}:
        kinds = {"epsilon": "edm", "v_prediction": "trigflow"}
        if prediction not in kinds:
            raise unknown("prediction type of an EDM scheduler", prediction, kinds)
        try:
            low, high, sigma_data = (float(config[name]) for name in ("sigma_min", "sigma_max", "sigma_data"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise LimbeckError(f"the EDM scheduler's sigma_min, sigma_max and sigma_data must be numbers: {error!r}") from None
        return Schedule(VE(low, high), kinds[prediction], "log_sigma", sigma_data)
    if not names & {*TABLES}:
        raise LimbeckError(
            f"the noise of a {type(scheduler).__name__} is not known; those of {', '.join((*TABLES, *FLOWS, *EDM))} are: save "
            "the pipeline with one of them, or wrap the network in limbeck.denoisers.Preconditioned(network, process, prediction)"
        )
    if prediction not in PREDICTIONS:
        raise unknown("prediction type", prediction, PREDICTIONS)
    return Schedule(DDPM(alphas_cumprod=scheduler.alphas_cumprod.double()), PREDICTIONS[prediction], "time")


def diffusers_denoiser(network: nn.Module, scheduler: Any) -> Preconditioned:
    """A raw network (a :class:`DiffusersNetwork`) under a diffusers scheduler's process, as a denoiser."""
    read = read_schedule(scheduler)
    return Preconditioned(network, read.process, read.prediction, read.sigma_data, read.noise_input)
