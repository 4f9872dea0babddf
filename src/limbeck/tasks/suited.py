"""Options of methods that suit a pretrained network: noise levels inside the schedule it was trained on, and careful rates."""

from typing import Any

import torch

from limbeck.interop import Schedule
from limbeck.noise import DDPM, VE, Process, RectifiedFlow, linear_grid

Suited = dict[str, dict[str, Any]]
LOW, HIGH = 0.02, 0.98  # shares of the process's time within which scores are compared, as DMD2 does
STEADY = 15.0  # where eps is predicted, x0 = (x - s eps) / a multiplies its error by sigma: start no noisier (Stable Diffusion: 14.6)
RATE, ADAPTERS = 1e-5, 1e-4
WEIGHTS = {"eps": "eps", "v": "v", "velocity": "velocity", "x0": "min_snr_5"}


def first_time(schedule: Schedule) -> float:
    """Where one-step students start: the end of the schedule; where eps is predicted the last time (index) up to sigma = 15."""
    process = schedule.process
    if schedule.prediction != "eps":
        return float(process.t_max)
    if not isinstance(process, DDPM):
        return min(float(process.t_max), float(process.time_of(torch.tensor(STEADY, dtype=torch.float64))))
    indices = torch.arange(len(process.table), dtype=torch.float64)
    return float(indices[process.sigma(indices) <= STEADY][-1])


def levels(process: Process, times: torch.Tensor) -> tuple[float, ...]:
    """sigma at these times; of the schedule's end, a rounding error inside it."""
    times = times.double()
    return tuple((process.sigma(times) * torch.where(times == process.t_max, 1 - 1e-9, 1.0)).tolist())


def suited_options(
    schedule: Schedule, shift: float = 1.0, guidance: float = 1.0, images: bool = False, boundary: float | None = None
) -> Suited:
    """Options by method for a network under this schedule.

    ``shift``: of a flow's sampler. ``guidance``: w with which students are taught. ``images``: are there data? ``boundary``:
    the time at which one of two experts takes over.
    """
    process, first = schedule.process, first_time(schedule)
    rates: dict[str, Any] = {"student": {"lr": RATE}, "critic": {"lr": 2 * RATE}}
    size = {"batch": 16, "iterations": 1000}
    (begin,) = levels(process, torch.tensor([first]))
    # of tables, samplers elsewhere begin with N(0, I)
    start: dict[str, Any] = {"begin": "unit"} if isinstance(process, DDPM) else {}
    scores: dict[str, Any] = {"sigmas": (begin,), **start, **compared(schedule, first)}
    both = {"guidance": guidance, "critic_guidance": guidance}
    own = {"guidance": guidance, **size, **rates, **scores}
    told = "log_sigma" if schedule.noise_input == "log_sigma" else "log_sigma_thousand"  # networks that count to 1000
    adapters = {**own, "critic": {"lr": ADAPTERS}, "score_law": "uniform"}
    found: Suited = {
        "dmd": own,
        "f-distill": {**own, "discriminator": {"lr": 2 * RATE}},
        "compose": own,
        "disback": own,
        "sid": {**own, **both, "critic_training_guidance": guidance},
        "sim": {**own, **both, "critic_training_guidance": guidance},
        "sfd": {**own, **both, "critic_training_guidance": guidance},
        "swiftbrush": {**adapters, **both},
        "snoopi": {name: value for name, value in adapters.items() if name != "guidance"},
        "tdm": {**own, **trajectory(schedule, first)},
        "phased-dmd": {**own, **phases(process, first, shift, boundary)},
        "hyper-sd": {
            "guidance_low": guidance, "guidance_high": guidance, **size, **rates, **start, "discriminator": {"lr": 2 * RATE},
            **({} if isinstance(process, VE) else {"schedule": "time"}), "sigma_high": min(begin, 80.0),
        },
        "rcm": {
            "guidance": guidance, **size, **rates, **consistent(process, begin),
            # forward mode needs layers that diffusers' networks do not promise, and their float32 times coarse differences
            "jvp": "discrete", "h": 0.05, **({} if images else {"scm_weight": 0.0, "dmd_weight": 1.0}),
        },
        "ict": {**size, "student": {"lr": ADAPTERS}, "c_noise": told},
        "pso": {**size, "student": {"lr": ADAPTERS}},
    }  # fmt: skip
    return {name: {key: value for key, value in options.items() if value is not None} for name, options in found.items()}


def compared(schedule: Schedule, first: float) -> dict[str, Any]:
    """Where scores are compared and critics learn: uniformly in the process's time between two shares of it."""
    process = schedule.process
    if isinstance(process, VE):
        low, high = max(process.t_min, 0.00323), min(process.t_max, 72.05)  # 20 and 980 of 1000 Karras levels
        return {"score_low": low, "score_high": high, "critic_law": "score"}
    steps = len(process.table) if isinstance(process, DDPM) else process.t_max  # indices 20 and 980 of 1000
    low, high = levels(process, torch.tensor([LOW * steps, min(HIGH * steps, first)], dtype=torch.float64))
    return {
        "score_low": low, "score_high": high, "score_law": "uniform", "critic_law": "score",
        "critic_weight": WEIGHTS.get(schedule.prediction, "edm"),
    }  # fmt: skip


def trajectory(schedule: Schedule, first: float) -> dict[str, Any]:
    """TDM's grid of four steps from the start."""
    process = schedule.process
    if isinstance(process, VE):
        return {"grid_low": 0.05}
    steps = round(first) + 1 if isinstance(process, DDPM) else 1000
    end = torch.tensor([min(first, 0.999 * process.t_max)], dtype=torch.float64)
    return {"grid": "raw", "total_steps": steps, "margin_high": 0.01 * process.t_max, "score_high": levels(process, end)[0]}


def consistent(process: Process, begin: float) -> dict[str, Any]:
    """rCM's noise levels, which it counts in sigma_data (of latents near 1): inside a table nearly always, flows have no end."""
    most = min(begin / 1.5, 20.0)
    found: dict[str, Any] = {"sigma_max": most, "rollout_start": most}
    return {**found, "scm_std": 1.2, "dmd_std": 1.0} if isinstance(process, DDPM) else found


def phases(process: Process, first: float, shift: float, boundary: float | None) -> dict[str, Any]:
    """Phased DMD's four steps and two phases; a phase ends where one expert of the teacher does."""
    if isinstance(process, VE):
        times = process.time_of(torch.tensor([first, first / 3, first / 10, first / 30], dtype=torch.float64))
    else:
        times = linear_grid(4, 1.0, 0.0, shift) * first
    cut = 2
    if boundary is not None:
        cut = 1 + int((times[1:] - boundary).abs().argmin())
        own = (
            boundary * cut / ((4 - cut) * (1 - boundary))
        )  # the shift that puts the boundary there: schedulers know such times
        times = linear_grid(4, 1.0, 0.0, own) * first
    sigmas = levels(process, times)
    shifted = isinstance(process, RectifiedFlow) and shift != 1
    return {"sigmas": sigmas, "boundaries": (sigmas[cut],), **({"time_shift": shift} if shifted else {})}
