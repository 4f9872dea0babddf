"""Preconditioned networks that answer the true target give the true x0, in every process."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.denoisers import NOISE_INPUTS, SCALINGS, Preconditioned
from limbeck.errors import ConversionError, LimbeckError
from limbeck.noise import DDPM, PREDICTIONS, VE, VP, CosineVP, RectifiedFlow, TrigFlow

PROCESSES = [VE(), VP(), CosineVP(), DDPM(), DDPM("cosine"), RectifiedFlow(), RectifiedFlow(3.0), TrigFlow(), TrigFlow(0.5)]


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normals(seed: int, *shape) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Oracle(nn.Module):
    """A network that answers ``target`` and keeps what it was given."""

    null: dict[str, torch.Tensor] | None = None

    def __init__(self, target):
        super().__init__()
        self.target = target

    def forward(self, x, noise, cond):
        self.seen = (x, noise, cond)
        return self.target


def target(process, prediction, x0, eps, t, sd):
    """What a network of this kind is trained to answer, from the papers' definitions."""
    a, s, da, ds = (f(t)[:, None] for f in (process.a, process.s, process.da, process.ds))
    plain = {"x0": x0, "eps": eps, "v": a * eps - s * x0, "velocity": da * x0 + ds * eps, "score": -eps / s}
    if prediction in plain:
        return plain[prediction]
    sigma = s / a
    if prediction == "trigflow":  # v_t = cos(t') z - sin(t') x0 over sd, z = sd eps, t' = atan(sigma / sd)
        angle = torch.atan(sigma / sd)
        return torch.cos(angle) * eps - torch.sin(angle) * x0 / sd
    x = x0 + sigma * eps  # the sample as VE sees it
    gap = 0.0 if prediction == "edm" else process.sigma(f64(process.t_min))
    c_skip, c_out = sd**2 / ((sigma - gap) ** 2 + sd**2), sd * (sigma - gap) / torch.sqrt(sigma**2 + sd**2)
    return (x0 - c_skip * x) / c_out


@settings(max_examples=15, deadline=None)
@given(log_sigma=st.lists(st.floats(-4.0, 4.3), min_size=1, max_size=4), seed=st.integers(0, 2**31), sd=st.floats(0.1, 2.0))
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_true_target_gives_the_true_x0(process, log_sigma, seed, sd):
    t = process.time_of(torch.exp(f64(log_sigma))).clamp(process.t_min + 0.01 * process.t_max, 0.99 * process.t_max)
    x0, eps = normals(seed, 2, len(t), 4)
    x_t = process.add_noise(x0, eps, t)
    for prediction in (*SCALINGS, *PREDICTIONS):
        network = Oracle(target(process, prediction, x0, eps, t, sd))
        found = Preconditioned(network, process, prediction, sd)(x_t, t)
        torch.testing.assert_close(found, x0, rtol=1e-10, atol=1e-10)
        assert {found.dtype, network.seen[0].dtype, network.seen[1].dtype} == {torch.float64}


@pytest.mark.parametrize("sd", [0.5, 1.3])
def test_edm_coefficients_are_the_papers_table(sd):
    sigma = f64([0.002, 0.1, 0.5, 3.0, 80.0])
    c_skip, c_out, c_in = SCALINGS["edm"](VE(), sigma, sd)
    torch.testing.assert_close(c_skip, sd**2 / (sigma**2 + sd**2), rtol=1e-14, atol=0)
    torch.testing.assert_close(c_out, sigma * sd / torch.sqrt(sigma**2 + sd**2), rtol=1e-14, atol=0)
    torch.testing.assert_close(c_in, 1 / torch.sqrt(sigma**2 + sd**2), rtol=1e-14, atol=0)
    # the loss is well scaled: unit variance of F's input and of its target, for data of variance sd^2
    torch.testing.assert_close(c_in**2 * (sd**2 + sigma**2), torch.ones(5).double())
    torch.testing.assert_close(((1 - c_skip) ** 2 * sd**2 + (c_skip * sigma) ** 2) / c_out**2, torch.ones(5).double())


@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_trigflow_is_scms_formula(sd):
    process, t = TrigFlow(sd), torch.linspace(0.0, math.pi / 2, 9, dtype=torch.float64)
    x_t, answer = normals(0, 2, 9, 4)
    network = Oracle(answer)
    found = Preconditioned(network, process, "trigflow", sd)(x_t, t)
    expected = torch.cos(t)[:, None] * x_t - torch.sin(t)[:, None] * sd * answer
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network.seen[0], x_t / sd, rtol=1e-12, atol=0)
    torch.testing.assert_close(network.seen[1], t, rtol=0, atol=1e-12)  # and c_noise is t itself


@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_consistency_coefficients_are_icts(sd):
    t, eps = f64([0.002, 0.01, 0.5, 3.0, 80.0]), 0.002
    c_skip, c_out, c_in = SCALINGS["consistency"](VE(), t, sd)
    torch.testing.assert_close(c_skip, sd**2 / ((t - eps) ** 2 + sd**2), rtol=1e-14, atol=0)
    torch.testing.assert_close(c_out, sd * (t - eps) / torch.sqrt(sd**2 + t**2), rtol=1e-14, atol=0)
    torch.testing.assert_close(c_in, 1 / torch.sqrt(sd**2 + t**2), rtol=1e-14, atol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_a_consistency_function_is_exact_at_the_first_time(process):
    t = f64([process.t_min] * 3)
    x_t, answer = normals(0, 2, 3, 4)
    found = Preconditioned(Oracle(1e3 * answer), process, "consistency")(x_t, t)
    torch.testing.assert_close(found, x_t / process.a(t)[:, None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", ["edm", "trigflow", "consistency", "x0", "v", "velocity"])
@pytest.mark.parametrize("process", [RectifiedFlow(), RectifiedFlow(3.0), TrigFlow(0.5)], ids=repr)
def test_pure_noise_has_an_answer(process, prediction):
    t, answer, eps = f64([process.t_max]), normals(0, 1, 4), normals(1, 1, 4)
    network = Oracle(answer)
    found = Preconditioned(network, process, prediction)(process.s(t) * eps, t)
    if prediction == "velocity":
        torch.testing.assert_close(process.da(t) * found + process.ds(t) * eps, answer)
    else:  # the input says nothing; v = -s x0
        gain = {"edm": 0.5, "trigflow": -0.5, "consistency": 0.5, "x0": 1.0, "v": -1 / process.s(t)}[prediction]
        torch.testing.assert_close(found, gain * answer)
    assert bool(torch.isfinite(torch.cat([network.seen[0].flatten(), network.seen[1]])).all())


@pytest.mark.parametrize("prediction", ["eps", "score"])
@pytest.mark.parametrize("process", [RectifiedFlow(), TrigFlow()], ids=repr)
def test_pure_noise_has_no_x0_from_eps(process, prediction):
    denoiser = Preconditioned(Oracle(normals(0, 2, 4)), process, prediction)
    with pytest.raises(ConversionError, match=f"{type(process).__name__}: cannot divide by a"):
        denoiser(normals(1, 2, 4), f64([process.t_max / 2, process.t_max]))


def test_a_velocity_network_is_refused_where_the_velocity_is_infinite():
    with pytest.raises(ConversionError, match="VP: cannot divide by"):
        Preconditioned(Oracle(normals(0, 1, 4)), VP(), "velocity")(normals(1, 1, 4), f64([0.0]))


@pytest.mark.parametrize(
    "name, process, t, sd, expected",
    [
        ("log_sigma", VE(), 80.0, 0.5, math.log(80) / 4),
        ("log_sigma", RectifiedFlow(), 0.5, 0.5, 0.0),
        ("log_sigma", RectifiedFlow(), 1.0, 0.5, math.log(1e5) / 4),
        ("log_sigma_thousand", VE(), 80.0, 0.5, 250 * math.log(80)),
        ("sigma", RectifiedFlow(), 0.75, 0.5, 3.0),
        ("sigma", VE(), 7.0, 0.5, 7.0),
        ("angle", TrigFlow(), 0.4, 1.0, 0.4),
        ("angle", TrigFlow(0.5), 0.4, 0.5, 0.4),
        ("angle", VE(), 0.5, 0.5, math.pi / 4),
        ("angle", RectifiedFlow(), 1.0, 0.5, math.pi / 2),
        ("time", DDPM(), 999.0, 0.5, 999.0),
        ("thousand", RectifiedFlow(), 0.75, 0.5, 750.0),
    ],
)
def test_the_network_is_told_the_noise(name, process, t, sd, expected):
    network = Oracle(torch.zeros(1, 4))
    Preconditioned(network, process, "x0", sd, name)(torch.zeros(1, 4), f64([t]))
    assert network.seen[1].tolist() == pytest.approx([expected], rel=1e-6)
    assert network.seen[1].dtype == torch.float32
    denoiser = Preconditioned(network, process, "x0", sd, name)
    denoiser(torch.zeros(1, 4).double(), f64([t]))
    assert network.seen[1].tolist() == pytest.approx([expected], rel=1e-14)


def test_each_prediction_has_its_papers_noise_input():
    defaults = {
        prediction: Preconditioned(Oracle(None), VE(), prediction).noise_input for prediction in (*SCALINGS, "eps", "v")
    }
    assert defaults == {"edm": "log_sigma", "trigflow": "angle", "consistency": "log_sigma", "eps": "time", "v": "time"}
    assert set(NOISE_INPUTS) == {"log_sigma", "log_sigma_thousand", "sigma", "angle", "time", "thousand"}


class Recording(nn.Module):
    """A linear layer that keeps the dtype of its output and the noise it was told."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, noise, cond):
        out = self.linear(x)
        self.dtype, self.noise, self.grad_kept = out.dtype, noise, out.requires_grad
        return out


@pytest.mark.parametrize("prediction", ["edm", "x0"])
def test_a_compute_dtype_is_the_networks_alone(prediction):
    torch.manual_seed(0)
    network, x_t, t = Recording(), torch.randn(8, 4), torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    exact = Preconditioned(network, RectifiedFlow(), prediction)(x_t, t)
    assert network.dtype == torch.float32
    found = Preconditioned(network, RectifiedFlow(), prediction, compute_dtype=torch.bfloat16)(x_t, t)
    assert (network.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    assert 0 < (found - exact).abs().max() < 0.02


def test_without_a_compute_dtype_the_callers_autocast_holds():
    network, x_t, t = Recording(), torch.randn(2, 4), f64([0.2, 0.4])
    with torch.autocast("cpu", torch.bfloat16):
        found = Preconditioned(network, RectifiedFlow())(x_t, t)
    assert (network.dtype, found.dtype) == (torch.bfloat16, torch.float32)


def test_half_precision_samples_tell_the_network_an_exact_time():
    network = Recording().bfloat16()
    found = Preconditioned(network, DDPM(), "v")(torch.randn(2, 4).bfloat16(), f64([999.0, 501.0]))
    assert network.noise.tolist() == [999.0, 501.0]  # bfloat16 would say 1000 and 500
    assert found.dtype == torch.bfloat16


def test_times_per_token_reach_the_network_per_token():
    process, t = RectifiedFlow(), f64([[0.1, 0.5, 0.9], [0.2, 0.4, 1.0]])
    x0, eps = normals(0, 2, 2, 3, 4)
    x_t = process.add_noise(x0, eps, t)
    network = Oracle(eps - x0)
    torch.testing.assert_close(Preconditioned(network, process, "velocity")(x_t, t), x0, rtol=1e-12, atol=1e-12)
    assert torch.equal(network.seen[1], t)


def test_conditions_and_the_null_are_the_networks():
    network, cond = Oracle(torch.zeros(1, 4)), {"label": torch.tensor([3])}
    denoiser = Preconditioned(network, VE())
    denoiser(torch.zeros(1, 4), f64([1.0]), cond)
    assert network.seen[2] is cond
    assert denoiser.null is None
    network.null = {"label": torch.tensor(10)}
    assert denoiser.null is network.null


def test_gradients_reach_the_input_and_the_weights():
    network, x_t = Recording().double(), normals(0, 3, 4).requires_grad_()
    out = Preconditioned(network, VE())(x_t, f64([0.1, 1.0, 10.0]))
    to_input, to_weights = torch.autograd.grad(out.sum(), [x_t, network.linear.weight])
    assert (to_input.abs().min() > 0, to_weights.abs().max() > 0) == (True, True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prediction": "epsilon"}, "unknown prediction type 'epsilon': did you mean 'eps'"),
        ({"prediction": "edn"}, "unknown prediction type 'edn': did you mean 'edm'.*consistency.*velocity"),
        ({"noise_input": "logsigma"}, "unknown noise input 'logsigma': did you mean 'log_sigma'"),
    ],
)
def test_unknown_names_give_the_nearest(options, message):
    with pytest.raises(LimbeckError, match=message):
        Preconditioned(nn.Identity(), VE(), **options)
