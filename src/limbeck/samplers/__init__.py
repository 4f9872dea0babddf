"""Sampling: ODE and stochastic solvers, exact flow maps, few-step rollouts, experts by noise level, teleportation.

Solvers share one signature, ``solver(denoiser, x, times, cond=None, *, final=True, ...) -> x``: x is the state at times[0], the
denoiser is asked at every node, and the last step goes to clean data unless final=False (see :mod:`limbeck.samplers.ode`).
``SOLVERS`` maps their names. ``Rollout`` is few-step sampling that also trains, ``Chain`` few-step sampling whose steps have a
density; ``solve`` is the flow map to a tolerance; ``Teleported`` makes any solver skip its noisiest nodes by a Gaussian's
closed form.
"""

from collections.abc import Callable

from torch import Tensor

from limbeck.samplers.drift import Driftless, Undrifted
from limbeck.samplers.experts import Experts, load_experts
from limbeck.samplers.flow_map import solve
from limbeck.samplers.ode import ddim, dpm_solver_pp_2m, euler, heun
from limbeck.samplers.rollout import Renoise, Rollout, Start, Trajectory
from limbeck.samplers.steps import Noise, check_nodes, ddim_step, generator_noise
from limbeck.samplers.stochastic import ancestral, stochastic_edm
from limbeck.samplers.tcd import tcd
from limbeck.samplers.teleport import Jump, Teleported, WithFlowMap, choose_skip, teleport
from limbeck.samplers.transitions import Chain, log_prob
from limbeck.samplers.unipc import unipc

SOLVERS: dict[str, Callable[..., Tensor]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpm_solver_pp_2m": dpm_solver_pp_2m,
    "euler": euler,
    "heun": heun,
    "stochastic_edm": stochastic_edm,
    "tcd": tcd,
    "unipc": unipc,
}

__all__ = [
    "SOLVERS",
    "Chain",
    "Driftless",
    "Experts",
    "Jump",
    "Noise",
    "Renoise",
    "Rollout",
    "Start",
    "Teleported",
    "Trajectory",
    "Undrifted",
    "WithFlowMap",
    "ancestral",
    "check_nodes",
    "choose_skip",
    "ddim",
    "ddim_step",
    "dpm_solver_pp_2m",
    "euler",
    "generator_noise",
    "heun",
    "load_experts",
    "log_prob",
    "solve",
    "stochastic_edm",
    "tcd",
    "teleport",
    "unipc",
]
