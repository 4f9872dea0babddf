"""What every process promises: conversions, transitions, posteriors, matching, broadcasting."""

from itertools import permutations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limbeck.errors import ConversionError, LimbeckError
from limbeck.noise import DDPM, PREDICTIONS, VE, VP, CosineVP, RectifiedFlow, ResShift, TrigFlow, spread

PAIRS = list(permutations(PREDICTIONS, 2))
# a place in the range of times: anywhere, or within 1e-9 .. 1 of either end
places = st.one_of(
    st.floats(0.0, 1.0), st.floats(0.0, 9.0).map(lambda k: 10**-k), st.floats(0.0, 9.0).map(lambda k: 1 - 10**-k)
)
seeds = st.integers(0, 2**31)
fast = settings(max_examples=20, deadline=None)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normals(seed: int, *shapes) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def truths(process, t, x0, eps, y) -> dict[str, torch.Tensor]:
    """Every prediction from its definition."""
    a, s, da, ds, dd = (f(t)[:, None] for f in (process.a, process.s, process.da, process.ds, process.dd))
    return {"x0": x0, "eps": eps, "v": a * eps - s * x0, "velocity": da * x0 + ds * eps + dd * y, "score": -eps / s}


def gap(found, wanted) -> float:
    """Largest error of a sample, relative to the sample's size."""
    return ((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max().item()


@fast
@given(where=st.lists(places, min_size=1, max_size=6), seed=seeds)
@example(where=[0.0, 0.999, 1.0], seed=0)
def test_every_conversion_gives_what_the_definition_says(process, times, where, seed):
    t = times(process, where)
    x0, eps, y = normals(seed, *[(len(t), 5)] * 3)
    x_t = process.add_noise(x0, eps, t, y)
    expected = process.a(t)[:, None] * x0 + process.s(t)[:, None] * eps + process.d(t)[:, None] * y
    torch.testing.assert_close(x_t, expected, rtol=1e-14, atol=1e-14)
    truth = truths(process, t, x0, eps, y)
    for source, target in PAIRS:
        assert gap(process.convert(truth[source], x_t, t, source, target, y), truth[target]) < 1e-10, (source, target)


def test_without_an_end_point_the_drift_is_left_out():
    process, t = ResShift(), f64([3.0, 9.0])
    x0, eps = normals(0, (2, 5), (2, 5))
    centred = process.add_noise(x0, eps, t)
    torch.testing.assert_close(process.convert(eps, centred, t, "eps", "x0"), x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_prediction_converted_to_itself_is_untouched_even_where_nothing_else_is(name):
    value, x_t = normals(0, (2, 3), (2, 3))
    assert RectifiedFlow().convert(value, x_t, f64([0.0, 1.0]), name, name) is value


NO_SIGNAL = [
    (VP(), 1.5),
    (CosineVP(), 0.99999),
    (DDPM(alphas_cumprod=(0.9, 0.5, 0.0)), 2.0),
    (RectifiedFlow(), 1.0),
    (RectifiedFlow(shift=3.0), 1 - 1e-5),
    (TrigFlow(), TrigFlow().t_max),
    (ResShift(end=1.0), 14.0),
]
NO_NOISE = [(VE(), 9e-5), (VP(), 1e-9), (CosineVP(), 0.0), (RectifiedFlow(), 0.0), (TrigFlow(0.5), 1e-4)]


@pytest.mark.parametrize("process, t", NO_SIGNAL, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("source, target", [("eps", "x0"), ("score", "x0"), ("eps", "v"), ("score", "velocity")])
def test_where_no_signal_is_left_eps_has_no_x0(process, t, source, target):
    value, x_t = normals(0, (2, 3), (2, 3))
    with pytest.raises(ConversionError, match=rf"{type(process).__name__}: cannot divide by a = .* at times \[.*{t:.6g}\]"):
        process.convert(value, x_t, f64([process.t_max / 2, t]), source, target)


@pytest.mark.parametrize("process, t", NO_NOISE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("source, target", [("x0", "eps"), ("x0", "score"), ("v", "score"), ("x0", "v"), ("x0", "velocity")])
def test_where_no_noise_is_left_x0_has_no_eps(process, t, source, target):
    value, x_t = normals(0, (2, 3), (2, 3))
    with pytest.raises(ConversionError, match=f"{type(process).__name__}: cannot divide by s"):
        process.convert(value, x_t, f64([t, process.t_max / 2]), source, target)


@pytest.mark.parametrize("process", [RectifiedFlow(), RectifiedFlow(shift=3.0), TrigFlow(), TrigFlow(0.5)], ids=repr)
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_flows_convert_v_and_velocity_exactly_at_both_ends(process, end):
    x0, eps = normals(0, (1, 5), (1, 5))
    t = f64([end * process.t_max])
    truth, x_t = truths(process, t, x0, eps, 0 * x0), process.add_noise(x0, eps, t)
    for source, target in permutations(["v", "velocity"], 2):
        assert gap(process.convert(truth[source], x_t, t, source, target), truth[target]) < 1e-12
        assert gap(process.convert(truth[source], x_t, t, source, "x0"), x0) < 1e-12
        assert gap(process.convert(truth[source], x_t, t, source, "eps"), eps) < 1e-12


@pytest.mark.parametrize(
    "process, t", [(VP(), 0.0), (CosineVP(), 0.0), (ResShift(), 0.0), (DDPM(alphas_cumprod=(0.9, 0.5, 0.0)), 2.0)], ids=repr
)
@pytest.mark.parametrize("source, target", [("velocity", "x0"), ("velocity", "eps"), ("v", "velocity")])
def test_where_the_velocity_is_infinite_the_conversion_is_refused(process, t, source, target):
    value, x_t = normals(0, (1, 3), (1, 3))
    with pytest.raises(ConversionError, match=f"{type(process).__name__}: cannot divide by .*da, ds.* = nan"):
        process.convert(value, x_t, f64([t]), source, target)


def test_an_unknown_prediction_names_the_nearest():
    x, t = torch.zeros(1, 2), f64([0.5])
    with pytest.raises(LimbeckError, match="unknown prediction type 'epsilon': did you mean 'eps'"):
        VP().convert(x, x, t, "epsilon", "x0")
    with pytest.raises(LimbeckError, match=r"unknown prediction type 'flow'.*velocity"):
        VP().convert(x, x, t, "x0", "flow")


def test_a_sample_keeps_its_dtype(process):
    t = f64([0.3, 0.6]) * process.t_max
    x0, eps, y = (x.float() for x in normals(0, *[(2, 5)] * 3))
    x_t = process.add_noise(x0, eps, t, y)
    truth = truths(process, t, x0.double(), eps.double(), y.double())
    for source, target in PAIRS:
        found = process.convert(truth[source].float(), x_t, t, source, target, y)
        assert found.dtype == torch.float32
        assert gap(found.double(), truth[target]) < 1e-3, (source, target)
    assert {x_t.dtype, process.diffuse(x0, eps, t, t / 2, y).dtype} == {torch.float32}
    mean, std = process.posterior(x_t, x0, t, t / 2, y)
    assert (mean.dtype, std.dtype) == (torch.float32, torch.float64)
    coefficients = [process.a, process.s, process.da, process.ds, process.d, process.dd, process.sigma]
    assert {f(t.float()).dtype for f in coefficients} == {torch.float64}
    assert process.time_of(process.sigma(t).float()).dtype == torch.float64


def test_integer_times_are_times_and_integer_data_is_refused():
    process, t = DDPM(), torch.tensor([10, 500])
    x0, eps = normals(0, (2, 3), (2, 3))
    assert torch.equal(process.add_noise(x0, eps, t), process.add_noise(x0, eps, t.double()))
    with pytest.raises(LimbeckError, match=r"floating-point data, not torch\.uint8"):
        process.add_noise(torch.zeros(2, 3, dtype=torch.uint8), eps, t)


@pytest.mark.parametrize("shape", [(), (4,), (4, 3)], ids=["one", "per-sample", "per-token"])
def test_times_per_sample_and_per_token_agree_with_loops(process, shape):
    generator = torch.Generator().manual_seed(1)
    t = process.t_max * (0.2 + 0.6 * torch.rand(shape, generator=generator, dtype=torch.float64))
    level = t * 0.7
    x, eps, y = normals(2, *[(4, 3, 2, 5)] * 3)

    def answers(x, eps, y, t, level):
        a, s = process.transition(level, t)
        mean, std = process.posterior(x, eps, t, level, y)
        converted = [process.convert(eps, x, t, source, target, y) for source, target in PAIRS]
        tensors = [process.add_noise(x, eps, t, y), process.diffuse(x, eps, t, level, y), mean, *converted]
        assert all(tensor.shape == x.shape for tensor in tensors)
        return tensors + [spread(c, x) * torch.ones_like(x) for c in (a, s, std)]

    whole = answers(x, eps, y, t, level)
    for i in range(4):
        for j in range(3):
            at = (i, j)[: len(shape)]
            alone = answers(x[i, j], eps[i, j], y[i, j], t[at], level[at])
            for found, wanted in zip(whole, alone, strict=True):
                torch.testing.assert_close(found[i, j], wanted, rtol=1e-13, atol=1e-13)


@settings(max_examples=8, deadline=None)
@given(log_sigma=st.floats(-3.0, 4.2))
def test_matched_times_have_the_same_signal_to_noise_ratio(process, other, log_sigma):
    sigma = torch.exp(f64([log_sigma]))
    t = process.time_of(sigma)
    torch.testing.assert_close(other.sigma(process.match(t, other)), sigma, rtol=1e-10, atol=0)


def test_pure_noise_matches_pure_noise_and_nothing_else():
    flow, trig, zero_terminal = RectifiedFlow(), TrigFlow(0.5), DDPM(alphas_cumprod=(0.9, 0.5, 0.0))
    end = f64([1.0])
    torch.testing.assert_close(flow.match(end, trig), f64([trig.t_max]))
    torch.testing.assert_close(trig.match(f64([trig.t_max]), flow), end)
    assert flow.match(end, zero_terminal).item() == 2
    assert zero_terminal.match(f64([2.0]), flow).item() == 1
    for other in (VE(), VP(), DDPM()):
        with pytest.raises(ConversionError, match=rf"{type(other).__name__} has no time .*RectifiedFlow at times \[1, 1\]"):
            flow.match(end, other)


def test_a_match_that_does_not_exist_is_refused():
    with pytest.raises(ConversionError, match=r"ResShift has no time with the noise-to-signal ratio \[0\.01, 0\.01\] of VE"):
        VE().match(f64([0.01]), ResShift())
    with pytest.raises(ConversionError, match="DDPM has no time"):  # between the last finite ratio and infinity
        VE().match(f64([50.0]), DDPM(alphas_cumprod=(0.9, 0.5, 0.0)))
