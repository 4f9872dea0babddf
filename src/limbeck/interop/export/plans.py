"""Which stock scheduler walks a student's steps: candidates by process, each rehearsed before it is believed.

==================  ===========================  ==================================================================
process             between the steps            scheduler
==================  ===========================  ==================================================================
DDPM table          fresh, from N(0, I)          LCMScheduler whose skip connection is switched off
DDPM table          ode, from N(0, I)            DDIMScheduler; EulerDiscreteScheduler where the steps are uneven
DDPM table          ode, from s N(0, I)          EulerDiscreteScheduler (its own variable is x_t / a)
DDPM table          tcd                          TCDScheduler whose entry 0 is clean
flow                fresh                        FlowMatchEulerDiscreteScheduler, stochastic_sampling
flow                ode                          FlowMatchEulerDiscreteScheduler
VE (edm,            fresh                        CMStochasticIterativeScheduler: sigma_min 0 is EDM's scaling, and the
consistency)                                     least noisy time iCT's
==================  ===========================  ==================================================================

The times go into the scheduler's configuration where it can hold them, else into the call. Three ways to make them fit: a table
cut behind its first used entry (betas given one by one) lets a scheduler begin there; of a flow, a shift and the terminal sigma
together give every row of times that begins with 1 and is even up to a shift; of VE, rho moves the second level.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from limbeck.errors import LimbeckError
from limbeck.interop.export.grids import rho_of, shifts
from limbeck.interop.export.steps import Steps
from limbeck.interop.export.stock import CLOSE, Plan, Stock, rehearse
from limbeck.noise import DDPM, VE, RectifiedFlow

NAMES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
_TABLE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
_FINE = 1_000_000  # entries of a consistency scheduler's own grid, where it is told its times by number


def plan_export(
    steps: Steps,
    stock: Stock,
    prediction: str,
    noise_input: str,
    sigma_data: float = 0.5,
    base: Mapping[str, Any] | None = None,
) -> Plan:
    """The stock scheduler and the call that repeat the student's samples in a pipeline.

    ``prediction``, ``noise_input`` and ``sigma_data`` are those of the student's :class:`limbeck.denoisers.Preconditioned`;
    ``base``: the configuration of the teacher's scheduler. Raises LimbeckError with the reason where none does.
    """
    if steps.K == 1:
        steps = replace(steps, kind="ode")
    _check_kind(steps)
    process = type(steps.process)
    if process is DDPM:
        made = _tables(steps, stock, prediction, noise_input, base or {})
    elif process is RectifiedFlow:
        made = _flows(steps, stock, prediction, noise_input)
    elif process is VE:
        made = _exploding(steps, stock, prediction, noise_input, sigma_data)
    else:
        raise LimbeckError(
            f"no stock scheduler samples the process {process.__name__}; those of tables (DDPM), flows and VE are: export the "
            "network with `--to torch-export` or `--to onnx`"
        )
    tried = []
    for candidate in made:
        difference = rehearse(candidate, steps, prediction, noise_input, sigma_data)
        if difference <= CLOSE:
            return replace(candidate, difference=difference)
        tried.append(f"{candidate.scheduler} (off by {difference:.1e})")
    raise LimbeckError(
        f"{stock.name} cannot repeat {steps.K} steps of the kind {steps.kind!r} at the times {_short(steps.times)}: "
        + (f"tried {', '.join(tried)}" if tried else f"its call takes {', '.join(sorted(stock.told)) or 'no time steps'}")
        + ". Train at times that are even (the last of them one step above clean data), or export with `--to torch-export`"
    )


def _check_kind(steps: Steps) -> None:
    if steps.kind == "fixed":
        raise LimbeckError(
            "no stock scheduler brings the first noise in again at every step (renoise 'fixed'); train with renoise 'fresh' or 'ode'"
        )
    if steps.noise_scale != 1:
        raise LimbeckError(f"no stock scheduler scales its noise, here by {steps.noise_scale:g}; train with noise_scale 1")


# -- tables -----------------------------------------------------------------------------------------------------------


def _tables(steps: Steps, stock: Stock, prediction: str, noise_input: str, base: Mapping[str, Any]) -> Iterator[Plan]:
    process: Any = steps.process
    if prediction not in NAMES or noise_input != "time":
        raise LimbeckError(
            f"schedulers of tables know networks that answer {', '.join(NAMES)} to an index, not {prediction!r} told "
            f"{noise_input!r}; export with `--to torch-export`"
        )
    whole = [round(t) for t in steps.times]
    exact = all(abs(t - n) < 1e-6 for t, n in zip(steps.times, whole, strict=True))
    if not exact and not (steps.kind == "ode" and "sigmas" in stock.told and stock.scales):
        levels = process.sigma(torch.tensor(whole, dtype=torch.float64)).tolist()
        raise LimbeckError(
            f"the student was trained at the times {_short(steps.times)}, but {stock.name} counts whole entries of its table; "
            f"the nearest are {whole}: train with sigmas {_short(levels)}"
        )
    full = {name: base[name] for name in _TABLE if name in base} or _cut(process, len(process.table))
    cut = _cut(process, whole[0] + 1)
    own = {"prediction_type": NAMES[prediction], "clip_sample": False, "steps_offset": 1}  # Stable Diffusion asks for 1
    if steps.kind in ("ddim", "ancestral"):
        raise LimbeckError(f"chains of the kind {steps.kind!r} are not exported; train with sampler 'renoise', or with eta 0")
    if steps.kind == "tcd":
        yield from _tcd(steps, stock, whole, own)
    elif steps.begins_with_z and exact:
        yield from _from_unit(steps, stock, whole, own, (full, cut))
    elif steps.kind == "fresh":
        raise LimbeckError(
            f"LCMScheduler begins with N(0, I), the student with s = {_s(steps):.6g} times that, and no other stock scheduler "
            "draws fresh noise; train with begin 'unit'"
        )
    if steps.kind == "ode" and stock.scales:
        yield from _euler(steps, stock, whole, exact, own, (full, cut))


def _from_unit(
    steps: Steps, stock: Stock, whole: list[int], own: Mapping[str, Any], tables: tuple[Mapping[str, Any], ...]
) -> Iterator[Plan]:
    """LCM or DDIM from N(0, I)."""
    alone = {**stock.unguided, "num_inference_steps": steps.K}
    for table in tables:
        known = int(table["num_train_timesteps"])
        if steps.kind == "ode":
            yield Plan(
                stock, "DDIMScheduler", {**table, **own, "set_alpha_to_one": True, "timestep_spacing": "trailing"}, alone
            )
        else:
            yield Plan(stock, "LCMScheduler", {**table, **own, **_lcm(known)}, alone)
    if "timesteps" in stock.told and steps.kind == "fresh":
        config = {**tables[0], **own, **_lcm(int(tables[0]["num_train_timesteps"]))}
        yield Plan(stock, "LCMScheduler", config, {**stock.unguided, "timesteps": whole})


def _lcm(known: int) -> dict[str, Any]:
    """LCM's own grid is the whole table, and its skip connection, 1 / (4 t^2 scaling^2 + 1), vanishes."""
    return {"original_inference_steps": known, "timestep_scaling": 1e8}


def _euler(
    steps: Steps, stock: Stock, whole: list[int], exact: bool, own: Mapping[str, Any], tables: tuple[Mapping[str, Any], ...]
) -> Iterator[Plan]:
    """Euler's method in x_t / a is deterministic DDIM; its first noise is s z ("trailing") or z ("leading")."""
    spacing = "leading" if steps.start == "unit" else "trailing"
    kept = {"prediction_type": own["prediction_type"], "steps_offset": own["steps_offset"], "timestep_spacing": spacing}
    if exact and spacing == "trailing":
        for table in tables:
            yield Plan(stock, "EulerDiscreteScheduler", {**table, **kept}, {**stock.unguided, "num_inference_steps": steps.K})
    told: dict[str, Any] = {"timesteps": whole} if exact else {"sigmas": [*steps.levels, 0.0]}
    if stock.told.issuperset(told):
        yield Plan(stock, "EulerDiscreteScheduler", {**tables[0], **kept}, {**stock.unguided, **told})


def _tcd(steps: Steps, stock: Stock, whole: list[int], own: Mapping[str, Any]) -> Iterator[Plan]:
    low = math.floor((1 - steps.eta) * whole[-1])
    if "eta" not in stock.told:
        raise LimbeckError(f"TCDScheduler is told eta by each call, which {stock.name} does not pass on; sample with eta 0")
    if not steps.begins_with_z:
        raise LimbeckError(
            f"TCDScheduler begins with N(0, I), the student with {_s(steps):.6g} times that; train with begin 'unit'"
        )
    if low < 1:
        raise LimbeckError(
            f"eta = {steps.eta:g} jumps to entry 0 of the table, where TCDScheduler also ends and keeps its noise; use an eta "
            f"of at most {1 - 1 / whole[-1]:.4g}"
        )
    for length in (whole[0] + 1, len(steps.process.table)):  # type: ignore[attr-defined]
        table = _cut(steps.process, length, clean=True)
        config = {**table, **own, "original_inference_steps": length}
        for told in ({"num_inference_steps": steps.K}, {"timesteps": whole}):
            yield Plan(stock, "TCDScheduler", config, {**stock.unguided, **told, "eta": steps.eta})


def _cut(process: Any, length: int, clean: bool = False) -> dict[str, Any]:
    """A scheduler's table with the first entries of the process's, beta by beta; ``clean``: entry 0 is without noise."""
    kept = process.table[:length].clone()
    if clean:
        kept[0] = 1.0
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    return {"num_train_timesteps": length, "trained_betas": (1 - kept / before).tolist()}


# -- flows ------------------------------------------------------------------------------------------------------------


def _flows(steps: Steps, stock: Stock, prediction: str, noise_input: str) -> Iterator[Plan]:
    if prediction != "velocity" or noise_input != "thousand":
        raise LimbeckError(
            f"schedulers of flows know networks that answer the velocity to 1000 sigma, not {prediction!r} told {noise_input!r}; "
            "export with `--to torch-export`"
        )
    if steps.kind not in ("fresh", "ode"):
        raise LimbeckError(f"schedulers of flows draw fresh noise or none, not that of {steps.kind!r}; sample with eta 0")
    if not steps.begins_with_z:
        raise LimbeckError(
            f"flow pipelines begin with N(0, I), the student with s = {_s(steps):.6g} times that; let its first level be inf "
            "(all noise), or train with begin 'unit'"
        )
    sigmas = [1 / (1 + 1 / level) for level in steps.levels]
    stochastic = {"stochastic_sampling": steps.kind == "fresh"}
    alone = {**stock.unguided, "num_inference_steps": steps.K}
    for shift, terminal in shifts(sigmas, stock.even):
        config = {**stochastic, "shift": shift, "shift_terminal": terminal}
        yield Plan(stock, "FlowMatchEulerDiscreteScheduler", config, alone)
    if "sigmas" in stock.told:
        yield Plan(stock, "FlowMatchEulerDiscreteScheduler", {**stochastic, "shift": 1.0}, {**alone, "sigmas": sigmas})


# -- variance exploding -----------------------------------------------------------------------------------------------


def _exploding(steps: Steps, stock: Stock, prediction: str, noise_input: str, sigma_data: float) -> Iterator[Plan]:
    process: Any = steps.process
    if stock.name != "ConsistencyModelPipeline":
        raise LimbeckError(
            f"a VE student goes into ConsistencyModelPipeline alone, not into {stock.name}; export with `--to torch-export`"
        )
    if prediction not in ("edm", "consistency"):
        raise LimbeckError(
            f"consistency models are scaled as edm or consistency, not as {prediction!r}; export with `--to torch-export`"
        )
    if noise_input != "log_sigma_thousand":
        raise LimbeckError(
            f"CMStochasticIterativeScheduler tells the network 250 ln(sigma), but the student's was told {noise_input!r}, and EDM's "
            "schedulers begin with sqrt(sigma^2 + 1) z in place of sigma z: neither is this student. Train iCT with "
            "c_noise 'log_sigma_thousand', or export with `--to torch-export`"
        )
    if steps.K > 1 and steps.kind != "fresh":
        raise LimbeckError(f"CMStochasticIterativeScheduler draws fresh noise; train with renoise 'fresh', not {steps.kind!r}")
    low, times = (0.0 if prediction == "edm" else process.t_min), steps.times
    fixed = {"sigma_min": low, "sigma_max": times[0], "sigma_data": sigma_data, "clip_denoised": False}
    name = "CMStochasticIterativeScheduler"
    alone: dict[str, Any] = {"num_inference_steps": steps.K}
    if steps.K == 1:
        yield Plan(stock, name, fixed, alone)
    elif steps.K == 2 and (found := rho_of(times[0], times[1], low)):
        yield Plan(stock, name, {**fixed, "num_train_timesteps": found[0], "rho": found[1]}, alone)
    if steps.K > 1:
        ends = [end ** (1 / 7) for end in (times[0], low)]
        grid = [round((ends[0] - t ** (1 / 7)) / (ends[0] - ends[1]) * (_FINE - 1)) for t in times]
        yield Plan(stock, name, {**fixed, "num_train_timesteps": _FINE, "rho": 7.0}, {"timesteps": grid[::-1]})


def _s(steps: Steps) -> float:
    return float(steps.process.s(torch.tensor(steps.times[0], dtype=torch.float64)))


def _short(values: Any) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


__all__ = ["Plan", "plan_export"]
