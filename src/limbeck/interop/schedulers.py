"""What is known of diffusers' schedulers: the one table of their classes, how one is loaded, and where its nodes are."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, missing_extra, unknown
from limbeck.noise import VE, Process, RectifiedFlow, TrigFlow, check_decreasing

LARGEST_TABLE = 100_000  # a longer table of noise levels is a damaged file


@dataclass(frozen=True)
class Kind:
    """What a class of schedulers is.

    ``levels``: where its noise levels come from (a table of alphas_cumprod, EDM's sigmas, consistency models', a flow's,
    TrigFlow's angles). ``latents``: the variables that it steps: variance preserving, variance exploding, a flow's, an angle's.
    ``starts``: whether it can begin at a later node; one that cannot remembers earlier steps or counts them.
    ``fresh``: it adds noise on the way.
    """

    levels: Literal["table", "edm", "consistency", "flow", "angle"]
    latents: Literal["preserving", "exploding", "flow", "angle"]
    starts: bool = True
    fresh: bool = False


SCHEDULERS: dict[str, Kind] = {
    "DDIMScheduler": Kind("table", "preserving"),
    "DDPMScheduler": Kind("table", "preserving", fresh=True),
    "DPMSolverMultistepScheduler": Kind("table", "preserving"),
    "UniPCMultistepScheduler": Kind("table", "preserving"),
    "EulerDiscreteScheduler": Kind("table", "exploding"),
    "EulerAncestralDiscreteScheduler": Kind("table", "exploding", fresh=True),
    "HeunDiscreteScheduler": Kind("table", "exploding"),
    "EDMEulerScheduler": Kind("edm", "exploding"),
    "EDMDPMSolverMultistepScheduler": Kind("edm", "exploding"),
    "FlowMatchEulerDiscreteScheduler": Kind("flow", "flow"),
    "FlowMatchHeunDiscreteScheduler": Kind("flow", "flow"),
    "FlowMatchLCMScheduler": Kind("flow", "flow", starts=False, fresh=True),
    "PNDMScheduler": Kind("table", "preserving", starts=False),
    "LCMScheduler": Kind("table", "preserving", starts=False, fresh=True),
    "TCDScheduler": Kind("table", "preserving", starts=False, fresh=True),
    "DEISMultistepScheduler": Kind("table", "preserving", starts=False),
    "DPMSolverSinglestepScheduler": Kind("table", "preserving", starts=False),
    "LMSDiscreteScheduler": Kind("table", "exploding", starts=False),
    "CogVideoXDDIMScheduler": Kind("table", "preserving", starts=False),
    "CogVideoXDPMScheduler": Kind("table", "preserving", starts=False, fresh=True),
    "CMStochasticIterativeScheduler": Kind("consistency", "exploding", starts=False, fresh=True),
    "SCMScheduler": Kind("angle", "angle", starts=False, fresh=True),
}
"""By class name; subclasses are what their nearest ancestor here is."""


def kind_of(scheduler: Any) -> Kind:
    """What a diffusers scheduler is (an object). Raises LimbeckError where its class is not known."""
    for cls in type(scheduler).__mro__:
        if kind := SCHEDULERS.get(cls.__name__):
            config = scheduler.config
            fresh = str(config.get("algorithm_type", "")).startswith("sde") or bool(config.get("stochastic_sampling", False))
            if config.get("use_flow_sigmas", False):  # multistep schedulers can step flows too
                kind = replace(kind, levels="flow", latents="flow")
            return replace(kind, fresh=kind.fresh or fresh)
    raise LimbeckError(
        f"the noise of a {type(scheduler).__name__} is not known; those of {', '.join(SCHEDULERS)} are: save the pipeline "
        "with one of them, or wrap the network in limbeck.denoisers.Preconditioned(network, process, prediction)"
    )


def load_scheduler(path: Path | str) -> Any:
    """The scheduler of a diffusers pipeline's folder, of its scheduler's folder, or of a scheduler_config.json itself.

    No code is looked up but diffusers' own classes of :data:`SCHEDULERS`.
    Raises LimbeckError for a file that is missing or damaged, another class, and values that the class refuses.
    """
    file = _config_file(Path(path))
    try:
        config = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise LimbeckError(f"{file} is not readable JSON ({error}); restore it from the pipeline it belongs to") from None
    name = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(name, str):
        raise LimbeckError(f"{file} names no scheduler class; it needs an object with a _class_name, like DDIMScheduler")
    if name not in SCHEDULERS:
        raise unknown("scheduler class", name, SCHEDULERS)
    for key in ("num_train_timesteps", "original_inference_steps", "solver_order"):
        steps = config.get(key, 2)
        if type(steps) is not int or not 1 <= steps <= LARGEST_TABLE:
            raise LimbeckError(f"{file}: {key} is {steps!r}; give an integer from 1 to {LARGEST_TABLE}, usually 1000")
    try:
        import diffusers
    except ImportError:
        raise missing_extra("diffusers", "schedulers of diffusers need diffusers") from None
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise LimbeckError(f"diffusers {diffusers.__version__} has no {name}; update it: pip install -U 'limbeck[diffusers]'")
    try:
        return cls.from_config(config)
    except Exception as error:  # whatever a class raises on values that it never checks
        raise LimbeckError(f"{file}: {name} refuses it ({_first_line(error)}); correct the value, or leave it out") from None


def _config_file(path: Path) -> Path:
    candidates = [path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json", path]
    for file in candidates:
        if file.is_file():
            return file
    raise LimbeckError(f"{path} has no scheduler_config.json; give a pipeline's folder, its scheduler's, or the file itself")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def set_steps(scheduler: Any, n: int, **options: Any) -> Any:
    """``scheduler.set_timesteps(n, **options)``, with what it raises as a LimbeckError; returns the scheduler."""
    try:
        scheduler.set_timesteps(n, **options)
    except Exception as error:
        raise LimbeckError(f"a {type(scheduler).__name__} cannot take {n!r} steps ({_first_line(error)})") from None
    return scheduler


def scheduler_nodes(scheduler: Any) -> tuple[Process, Tensor]:
    """(the process in which a diffusers scheduler's latents live, its nodes as decreasing times of it, float64).

    Latents a x_0 + s e are variance preserving (TrigFlow with sigma_data 1 stands for every such schedule), variance
    exploding x_0 + sigma e (those of Euler's and Heun's methods on DDPM tables are x_t / a), or rectified flow's.
    Raises LimbeckError for schedulers that cannot start midway, without timesteps, and after steps were taken.
    """
    kind = kind_of(scheduler)
    if not kind.starts:
        able = ", ".join(name for name, k in SCHEDULERS.items() if k.starts)
        raise LimbeckError(f"cannot start a {type(scheduler).__name__} midway; use one of {able}")
    custom = getattr(scheduler, "custom_timesteps", False)
    if getattr(scheduler, "num_inference_steps", None) is None and not custom:
        raise LimbeckError("the scheduler has no timesteps yet; call scheduler.set_timesteps(n) first")
    if getattr(scheduler, "step_index", None) is not None:
        raise LimbeckError("the scheduler has taken steps already; call scheduler.set_timesteps(n) again before the jump")
    sigmas = step_levels(scheduler)
    times = torch.atan(sigmas) if kind.latents == "preserving" else sigmas
    times = check_decreasing(times, "the scheduler's noise levels")
    low, high = times[-1].item(), times[0].item()
    if kind.latents == "flow":
        return RectifiedFlow(t_min=low, t_max=high), times
    return (TrigFlow(t_min=low, t_max=high) if kind.latents == "preserving" else VE(low, high)), times


def step_levels(scheduler: Any) -> Tensor:
    """Noise levels s / a of the nodes of a scheduler whose timesteps are set (n,), float64; of a flow s itself."""
    if hasattr(scheduler, "sigmas"):
        count = len(scheduler.timesteps)
        return torch.as_tensor(scheduler.sigmas).double().cpu()[: count : scheduler.order]  # Heun's second calls repeat a node
    alphas = scheduler.alphas_cumprod[scheduler.timesteps.long().cpu()].double().cpu()
    return torch.sqrt((1 - alphas) / alphas)
