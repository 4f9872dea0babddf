"""Teleportation for diffusers' schedulers: a stock scheduler that starts at one of its own later nodes.

A scheduler is read, not wrapped: its class says in which variables its latents live, ``set_timesteps`` what its nodes are.

    scheduler.set_timesteps(25)
    latents = scheduler.init_noise_sigma * torch.randn(shape)
    latents, timesteps, jump = teleport_scheduler(scheduler, gaussian, latents, skip=6)
    for t in timesteps: ...                       # the pipeline's own loop, scheduler.step and all
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond, Denoiser, GaussianDenoiser, in_process
from limbeck.errors import LimbeckError
from limbeck.noise import VE, Process, RectifiedFlow, TrigFlow, check_decreasing
from limbeck.samplers.teleport import Jump, teleport

# in which variables a scheduler keeps its latents, by the name of its class
PRESERVING = ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
EXPLODING = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
)
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
STOCHASTIC = ("DDPMScheduler", "EulerAncestralDiscreteScheduler")


def scheduler_nodes(scheduler: Any) -> tuple[Process, Tensor]:
    """(the process in which a diffusers scheduler's latents live, its nodes as decreasing times of it).

    Latents a x_0 + s e are variance preserving (TrigFlow with sigma_data 1 stands for every such schedule), variance
    exploding x_0 + sigma e (those of Euler's and Heun's methods on DDPM tables are x_t / a), or rectified flow's.
    Raises LimbeckError for other schedulers, without timesteps, and after steps were taken.
    """
    names = {kind.__name__ for kind in type(scheduler).__mro__}
    if not names & {*PRESERVING, *EXPLODING, *FLOW}:
        raise LimbeckError(
            f"cannot start a {type(scheduler).__name__} midway; use one of {', '.join((*PRESERVING, *EXPLODING, *FLOW))}"
        )
    custom = getattr(scheduler, "custom_timesteps", False)
    if getattr(scheduler, "num_inference_steps", None) is None and not custom:
        raise LimbeckError("the scheduler has no timesteps yet; call scheduler.set_timesteps(n) first")
    if getattr(scheduler, "step_index", None) is not None:
        raise LimbeckError("the scheduler has taken steps already; call scheduler.set_timesteps(n) again before the jump")
    order, count = scheduler.order, len(scheduler.timesteps)
    if hasattr(scheduler, "sigmas"):
        sigmas = torch.as_tensor(scheduler.sigmas).double().cpu()[:count:order]  # Heun's second calls repeat a node
    else:
        alphas = scheduler.alphas_cumprod[scheduler.timesteps.long().cpu()].double().cpu()
        sigmas = torch.sqrt((1 - alphas) / alphas)
    flow = bool(names & {*FLOW}) or bool(scheduler.config.get("use_flow_sigmas", False))
    times = torch.atan(sigmas) if names & {*PRESERVING} and not flow else sigmas
    times = check_decreasing(times, "the scheduler's noise levels")
    low, high = times[-1].item(), times[0].item()
    if flow:
        return RectifiedFlow(t_min=low, t_max=high), times
    return (TrigFlow(t_min=low, t_max=high) if names & {*PRESERVING} else VE(low, high)), times


def teleport_scheduler(
    scheduler: Any,
    gaussian: GaussianDenoiser,
    latents: Tensor,
    skip: int | None = None,
    tol: float = 1e-3,
    *,
    sigma: float | None = None,
    reference: Denoiser | None = None,
    data: Tensor | None = None,
    cond: Cond | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Jump]:
    """Start a diffusers scheduler at a later node: (latents there, the timesteps that remain, what was done).

    ``scheduler`` with its timesteps set and no step taken; ``latents`` (B, ...) at the first of them, in its own scaling
    (init_noise_sigma times noise); ``gaussian`` the statistics of what is sampled (pixels, or the autoencoder's latents), in
    any process. The node is chosen as in :func:`teleport`; ``sigma`` is s / a. The scheduler's begin index is set, so that
    its own loop over the returned timesteps goes on from there, multistep methods from order 1 as at any start.

    Warns before schedulers that add noise. Guidance is not seen here: with it, give statistics of guided samples or of the
    class. Raises LimbeckError as :func:`scheduler_nodes` and :func:`teleport` do.
    """
    process, times = scheduler_nodes(scheduler)
    config: Callable[..., Any] = scheduler.config.get
    sde = str(config("algorithm_type", "")).startswith("sde") or bool(config("stochastic_sampling", False))
    if sde or {kind.__name__ for kind in type(scheduler).__mro__} & {*STOCHASTIC}:
        warnings.warn("teleportation is deterministic: the nodes it leaves out receive no fresh noise", stacklevel=2)
    seen = None if reference is None else in_process(reference, process)
    choice = {"sigma": sigma, "reference": seen, "data": data, "cond": cond, "generator": generator}
    there, _, jump = teleport(gaussian.moved_to(process), latents, times, skip, tol, **choice)  # type: ignore[arg-type]
    begin = jump.skip * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return there, scheduler.timesteps[begin:], jump
