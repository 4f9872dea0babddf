"""Schedulers of diffusers as processes: what x_t is, what the network answers, how it is told the noise, where it is asked."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError, unknown
from limbeck.interop.schedulers import kind_of, load_scheduler, set_steps, step_levels
from limbeck.noise import DDPM, VE, Process, RectifiedFlow, check_decreasing

# prediction_type -> what the network answers
ON_TABLES = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
ON_FLOWS = {"flow_prediction": "velocity", "epsilon": "eps", "sample": "x0"}
ON_EDM = {"epsilon": "edm", "v_prediction": "trigflow"}  # F with EDM's output scaling, and with its sign turned
SNAP = 1e-3  # a node this near to the timestep that the scheduler states is that timestep: sigmas are float32


@dataclass(frozen=True)
class Schedule:
    """What a scheduler says of the network that it was trained with: the arguments of :class:`Preconditioned`.

    ``noise_input`` tells the network the scheduler's own timesteps: table indices, 1000 times the time of a flow,
    ln(sigma) / 4 of EDM, 250 ln(sigma) of consistency models.
    """

    process: Process
    prediction: str
    noise_input: str
    sigma_data: float = 0.5


def read_schedule(scheduler: Any) -> Schedule:
    """The process and the prediction type of a diffusers scheduler (an object; its timesteps do not matter).

    A shift of a flow, a spacing of nodes, clipping of x0 are how that scheduler samples, not what the network was trained on:
    they do not enter here. Tables are the scheduler's own float32 numbers. A terminal signal of zero stays zero where the
    scheduler keeps it (DDIM), so that noise predicted there has no x0 and :meth:`Process.convert` says so; others put 2^-24
    in its place (Euler, DPM-Solver, UniPC).

    ``SCMScheduler`` stands for the flow network inside SANA-Sprint's pipeline: it sees x / (sigma_data (cos t + sin t)) at
    the time u = sin t / (cos t + sin t), which is rectified flow on latents in the scale of their autoencoder.

    Raises LimbeckError for schedulers and prediction types that are not known, and for values without a meaning.
    """
    kind, config = kind_of(scheduler), scheduler.config
    default = {"flow": "flow_prediction", "angle": "trigflow"}.get(kind.levels, "epsilon")
    prediction = str(config.get("prediction_type", default))
    if kind.levels == "flow":
        answer = _answer("prediction type of a flow", prediction, ON_FLOWS)
        steps = config.get("num_train_timesteps", 1000)
        if steps != 1000 or config.get("invert_sigmas", False):
            raise LimbeckError(
                f"a {type(scheduler).__name__} with num_train_timesteps={steps} and invert_sigmas="
                f"{config.get('invert_sigmas', False)} tells its network times of its own; only 1000 s, from noise to data, is known"
            )
        return Schedule(RectifiedFlow(), answer, "thousand")
    if kind.levels == "angle":
        _answer("prediction type of an SCMScheduler", prediction, {"trigflow": "velocity"})
        return Schedule(RectifiedFlow(), "velocity", "time")
    if kind.levels == "table" and not _continuous(config):
        return Schedule(_table(scheduler), _answer("prediction type", prediction, ON_TABLES), "time")
    return _exploding(scheduler, kind.levels, prediction)


def _exploding(scheduler: Any, levels: str, prediction: str) -> Schedule:
    config = scheduler.config
    low, high, sigma_data = config.get("sigma_min"), config.get("sigma_max"), config.get("sigma_data", 0.5)
    if levels == "table":  # Stable Video Diffusion: EDM's scalings for data of variance 1, on the table's levels or its own
        table, sigma_data = _table(scheduler), 1.0
        ends = table.sigma(torch.tensor([table.t_min, table.t_max], dtype=torch.float64)).tolist()
        low, high = ends[0] if low is None else low, ends[1] if high is None else high
    for name, value in (("sigma_min", low), ("sigma_max", high), ("sigma_data", sigma_data)):
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise LimbeckError(f"{name} of a {type(scheduler).__name__} is {value!r}; it must be a positive number")
    if not low < high:
        raise LimbeckError(f"sigma_min = {low} of a {type(scheduler).__name__} must be less than sigma_max = {high}")
    process = VE(float(low), float(high))
    if levels == "consistency":
        return Schedule(process, "consistency", "log_sigma_thousand", float(sigma_data))
    answer = _answer("prediction type of an EDM scheduler", prediction, ON_EDM)
    return Schedule(process, answer, "log_sigma", float(sigma_data))


def _continuous(config: Any) -> bool:
    """Whether Euler's scheduler tells its network ln(sigma) / 4 in place of table indices."""
    return config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"


def _table(scheduler: Any) -> DDPM:
    try:
        return DDPM(alphas_cumprod=torch.atleast_1d(scheduler.alphas_cumprod.double()))
    except LimbeckError as error:
        raise LimbeckError(f"the betas of this {type(scheduler).__name__} are no schedule: {error}") from None


def _answer(what: str, prediction: str, table: dict[str, str]) -> str:
    if prediction not in table:
        raise unknown(what, prediction, table)
    return table[prediction]


def load_schedule(path: Path | str) -> Schedule:
    """:func:`read_schedule` of a file: a pipeline's folder, its scheduler's, or scheduler_config.json. Raises LimbeckError."""
    return read_schedule(load_scheduler(path))


def nodes(scheduler: Any, n: int, **options: Any) -> Tensor:
    """The times, in the process of :func:`read_schedule`, at which a scheduler asks its network in n steps: (n,), float64.

    They decrease; solvers of :mod:`limbeck.samplers` take them. ``options`` go to ``set_timesteps`` (``mu`` of a dynamic
    shift). The scheduler itself is left as it is. Two things differ from its own loop: it may end at its lowest noise level
    rather than at clean data (``set_alpha_to_one=False``, ``final_sigmas_type="sigma_min"``), and some schedulers round what
    they tell the network (multistep ones to whole timesteps), while ``noise_input`` tells the exact time.

    Raises LimbeckError for numbers of steps that the scheduler refuses and for nodes that do not decrease.
    """
    fresh, schedule = set_steps(copy.deepcopy(scheduler), n, **options), read_schedule(scheduler)
    process, stated = schedule.process, torch.as_tensor(fresh.timesteps).double().cpu()
    if kind_of(fresh).levels == "angle":
        angle = stated[:-1].clamp(max=math.pi / 2)
        times = torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))
    elif not isinstance(process, DDPM):
        times = step_levels(fresh)
    else:
        times = torch.unique_consecutive(stated)  # Heun's and PNDM's second calls repeat a node
        if hasattr(fresh, "sigmas"):
            exact = process.time_of(step_levels(fresh))
            times = torch.where((exact - times).abs() < SNAP, times, exact)
    return check_decreasing(times, f"the nodes of the {type(scheduler).__name__}")


def diffusers_denoiser(network: nn.Module, scheduler: Any) -> Preconditioned:
    """A raw network (a :class:`DiffusersNetwork`) under a diffusers scheduler's process, as a denoiser."""
    read = read_schedule(scheduler)
    return Preconditioned(network, read.process, read.prediction, read.sigma_data, read.noise_input)
