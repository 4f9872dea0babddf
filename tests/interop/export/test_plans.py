"""Plans: the stock scheduler's own loop around a toy network draws the student's samples, or the reason why none does."""

from dataclasses import replace

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.interop.export import PIPELINES, Steps, plan_export, steps_of
from limbeck.interop.export.grids import shifts
from limbeck.interop.export.stock import CLOSE, rehearse
from limbeck.noise import DDPM, VE, CosineVP, RectifiedFlow
from limbeck.samplers import Chain, Rollout

SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EVEN, UNEVEN, LATE = (999.0, 749.0, 499.0, 249.0), (999.0, 856.0, 665.0, 399.0), (899.0, 674.0, 449.0, 224.0)


def table(**more):
    from diffusers import DDIMScheduler

    base = {**SD, **more}
    return DDPM(alphas_cumprod=DDIMScheduler(**base).alphas_cumprod.double()), base


def planned(stock, kind, times, start="unit", prediction="eps", eta=0.0, **more):
    process, base = table(**more)
    return plan_export(Steps(process, times, kind, start, eta), PIPELINES[stock], prediction, "time", 0.5, base)


@pytest.mark.parametrize(
    "stock, kind, times, start, prediction, scheduler, told",
    [
        ("StableDiffusionPipeline", "fresh", EVEN, "unit", "eps", "LCMScheduler", set()),
        ("StableDiffusionPipeline", "fresh", LATE, "unit", "v", "LCMScheduler", set()),
        ("StableDiffusionPipeline", "fresh", UNEVEN, "unit", "x0", "LCMScheduler", {"timesteps"}),
        ("StableDiffusionPipeline", "ode", EVEN, "unit", "eps", "DDIMScheduler", set()),
        ("StableDiffusionPipeline", "ode", EVEN, "noise", "eps", "EulerDiscreteScheduler", set()),
        ("StableDiffusionPipeline", "ode", UNEVEN, "unit", "v", "EulerDiscreteScheduler", {"timesteps"}),
        ("StableDiffusionPipeline", "ode", (912.37, 512.1), "noise", "eps", "EulerDiscreteScheduler", {"sigmas"}),
        ("StableDiffusionXLPipeline", "fresh", (399.0,), "unit", "eps", "DDIMScheduler", set()),
        ("StableDiffusionXLPipeline", "fresh", (399.0,), "noise", "eps", "EulerDiscreteScheduler", set()),
        ("ConsistencyModelPipeline", "fresh", (399.0,), "noise", "eps", "EulerDiscreteScheduler", set()),
        ("ConsistencyModelPipeline", "fresh", UNEVEN, "unit", "eps", "LCMScheduler", {"timesteps"}),
        ("DiTPipeline", "ode", LATE, "unit", "eps", "DDIMScheduler", set()),
    ],
)
def test_a_table(stock, kind, times, start, prediction, scheduler, told):
    plan = planned(stock, kind, times, start, prediction)
    assert plan.scheduler == scheduler and plan.difference <= 1e-5
    assert told == set(plan.call) & {"timesteps", "sigmas"}
    if not told:
        assert plan.call["num_inference_steps"] == len(times)


@pytest.mark.parametrize("kind", ["fresh", "ode"])
def test_a_table_without_any_signal_at_its_end(kind):
    plan = planned("StableDiffusionPipeline", kind, EVEN, "noise", "v", rescale_betas_zero_snr=True)
    assert plan.config["rescale_betas_zero_snr"] and plan.difference <= 1e-6


def test_trajectory_consistency_keeps_its_eta():
    plan = planned("StableDiffusionPipeline", "tcd", EVEN, eta=0.3)
    assert (plan.scheduler, plan.call["eta"]) == ("TCDScheduler", 0.3) and plan.difference <= 1e-5


@pytest.mark.parametrize("kind", ["fresh", "ode"])
@pytest.mark.parametrize("stock", ["StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline"])
@pytest.mark.parametrize("times", [(1.0,), (1.0, 0.7), (1.0, 0.75, 0.5, 0.25), (1.0, 0.9, 0.75, 0.5), (1.0, 0.9375, 0.8, 0.5)])
def test_a_flow(stock, kind, times):
    steps = Steps(RectifiedFlow(), times, kind)
    if stock == "WanPipeline" and times[2:] == (0.8, 0.5):
        with pytest.raises(LimbeckError, match="WanPipeline cannot repeat 4 steps"):
            plan_export(steps, PIPELINES[stock], "velocity", "thousand")
        return
    plan = plan_export(steps, PIPELINES[stock], "velocity", "thousand")
    assert plan.scheduler == "FlowMatchEulerDiscreteScheduler" and plan.difference <= 1e-5
    assert plan.config["stochastic_sampling"] == (kind == "fresh" and len(times) > 1)
    assert ("sigmas" in plan.call) == (times[2:] == (0.8, 0.5))  # all others are even up to a shift


def test_a_shift_and_a_terminal_sigma_give_the_times_of_any_shifted_grid():
    for shift in (0.5, 1.0, 5.0):
        u = torch.arange(6, 0, -1, dtype=torch.float64) / 6
        wanted = (shift * u / (1 + (shift - 1) * u)).tolist()
        steps = Steps(RectifiedFlow(), tuple(wanted), "ode")
        plan = plan_export(steps, PIPELINES["WanPipeline"], "velocity", "thousand")
        assert "sigmas" not in plan.call and plan.config["shift_terminal"] == pytest.approx(wanted[-1])
    assert not list(shifts([0.9, 0.5], even=True))  # which do not begin with noise alone


@pytest.mark.parametrize("prediction", ["edm", "consistency"])
@pytest.mark.parametrize("times", [(80.0,), (80.0, 0.821), (80.0, 24.4, 5.84, 0.9)])
def test_consistency_models(prediction, times):
    steps = Steps(VE(), times)
    plan = plan_export(steps, PIPELINES["ConsistencyModelPipeline"], prediction, "log_sigma_thousand", 0.4)
    assert plan.scheduler == "CMStochasticIterativeScheduler" and plan.difference <= 2e-5
    assert plan.config["sigma_min"] == (0 if prediction == "edm" else 0.002)
    assert ("timesteps" in plan.call) == (len(times) > 2)


@pytest.mark.parametrize(
    "change",
    [{"prediction_type": "v_prediction"}, {"timestep_scaling": 10.0}, {"beta_end": 0.0121}, {"original_inference_steps": 50}],
)
def test_a_rehearsal_notices_a_wrong_scheduler(change):
    times = (999.0, 3.0) if "timestep_scaling" in change else EVEN  # LCM's skip connection is seen at small times
    plan, steps = planned("StableDiffusionPipeline", "fresh", times), Steps(table()[0], times, "fresh", "unit")
    assert rehearse(plan, steps, "eps", "time", 0.5) <= CLOSE
    assert rehearse(replace(plan, config={**plan.config, **change}), steps, "eps", "time", 0.5) > CLOSE


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: planned("StableDiffusionPipeline", "fixed", EVEN), "renoise 'fixed'.*'fresh' or 'ode'"),
        (lambda: planned("StableDiffusionPipeline", "fresh", EVEN, "noise"), "begins with N\\(0, I\\).*0.99.*begin 'unit'"),
        (lambda: planned("StableDiffusionPipeline", "fresh", (912.4, 512.1)), "nearest are \\[912, 512\\].*sigmas \\(8.89"),
        (lambda: planned("ConsistencyModelPipeline", "ode", (412.4,), "noise"), "whole entries.*nearest are \\[412\\]"),
        (lambda: planned("DiTPipeline", "fresh", UNEVEN), "DiTPipeline cannot repeat 4 steps.*tried LCMScheduler \\(off by"),
        (lambda: planned("DiTPipeline", "ode", EVEN, "noise"), "DiTPipeline cannot repeat.*takes no time steps"),
        (lambda: planned("StableDiffusionPipeline", "tcd", EVEN, eta=1.0), "jumps to entry 0.*at most 0.996"),
        (lambda: planned("StableDiffusionPipeline", "tcd", EVEN, "noise", eta=0.3), "0.997667 times that.*begin 'unit'"),
        (lambda: planned("DiTPipeline", "tcd", EVEN, eta=0.3), "DiTPipeline does not pass on; sample with eta 0"),
        (lambda: planned("StableDiffusionPipeline", "ancestral", EVEN, "noise"), "'ancestral' are not exported"),
        (lambda: planned("StableDiffusionPipeline", "ode", EVEN, prediction="edm"), "answer eps, v, x0 to an index, not 'edm'"),
    ],
)
def test_what_no_table_can_repeat_is_refused_with_the_reason(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


@pytest.mark.parametrize(
    "steps, stock, told, message",
    [
        (Steps(RectifiedFlow(), (0.7,)), "FluxPipeline", ("velocity", "thousand"), "s = 0.7 times.*first level be inf"),
        (Steps(RectifiedFlow(), (1.0,)), "FluxPipeline", ("x0", "time"), "velocity to 1000 sigma, not 'x0' told 'time'"),
        (Steps(RectifiedFlow(), (1.0, 0.5), "tcd", eta=0.3), "FluxPipeline", ("velocity", "thousand"), "fresh noise or none"),
        (Steps(VE(), (80.0,)), "ConsistencyModelPipeline", ("edm", "log_sigma"), "250 ln\\(sigma\\).*c_noise"),
        (
            Steps(VE(), (80.0, 1.0), "ode"),
            "ConsistencyModelPipeline",
            ("edm", "log_sigma_thousand"),
            "renoise 'fresh', not 'ode'",
        ),
        (Steps(VE(), (80.0,)), "DiTPipeline", ("edm", "log_sigma_thousand"), "ConsistencyModelPipeline alone, not into DiT"),
        (Steps(VE(), (80.0,)), "ConsistencyModelPipeline", ("eps", "time"), "edm or consistency, not as 'eps'"),
        (Steps(CosineVP(), (0.9,)), "DiTPipeline", ("eps", "time"), "process CosineVP.*--to torch-export"),
        (Steps(VE(), (80.0,), noise_scale=0.5), "DiTPipeline", ("edm", "log_sigma"), "scales its noise, here by 0.5"),
    ],
)
def test_what_no_other_scheduler_can_repeat_is_refused_with_the_reason(steps, stock, told, message):
    with pytest.raises(LimbeckError, match=message):
        plan_export(steps, PIPELINES[stock], *told)


def test_steps_are_those_of_rollouts_and_chains():
    flow, network = RectifiedFlow(), lambda x, t, cond=None: 0.3 * x + t[:, None].float()
    network.process, network.null = flow, None
    z = torch.randn(3, 5)

    def noise(i):
        return torch.randn(3, 5, generator=torch.Generator().manual_seed(i))

    for made in (Rollout(flow, (0.9, 0.4), "fresh", start="unit"), Rollout(flow, (0.9, 0.4), "ode"), Rollout(flow, (0.9,))):
        assert torch.equal(steps_of(made)(network, z, noise=noise), made(network, z, noise=noise).x)
    for kind, eta in (("renoise", 1.0), ("ddim", 0.5), ("ancestral", 1.0), ("tcd", 0.0)):
        chain = Chain(flow, (0.9, 0.4), kind, eta)
        torch.testing.assert_close(steps_of(chain)(network, z, noise=noise), chain(network, z, noise=noise).x)
    assert steps_of(Chain(flow, (0.9, 0.4), "tcd", 0.0)).kind == steps_of(Rollout(flow, (0.9,))).kind == "ode"
