"""Guidance: D_w = D(null) + w (D(c) - D(null)), with as few calls as that takes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.denoisers import ClassifierFree, Denoiser, guided, null_cond
from limbeck.errors import LimbeckError
from limbeck.noise import VE, RectifiedFlow

COND = {"label": torch.tensor([0, 1])}
NULL = [2, 2]


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


T = f64([0.5, 5.0])
X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CONDITIONAL = X / 2 + f64([1.0, -3.0])[:, None, None]
UNCONDITIONAL = X / 2 + 0.25


@settings(max_examples=20, deadline=None)
@given(w=st.floats(-20, 20).filter(lambda w: w not in (0.0, 1.0)))
def test_guidance_is_linear_in_its_scale_negative_ones_included(labelled, w):
    denoiser = labelled(VE())
    expected = UNCONDITIONAL + w * (CONDITIONAL - UNCONDITIONAL)
    torch.testing.assert_close(guided(denoiser, X, T, COND, w), expected, rtol=1e-13, atol=1e-13)
    assert denoiser.calls == [NULL, [0, 1]]
    torch.testing.assert_close(ClassifierFree(denoiser, w)(X, T, COND), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("w, labels, expected", [(1.0, [0, 1], CONDITIONAL), (0.0, NULL, UNCONDITIONAL)])
def test_scales_one_and_zero_cost_one_call(labelled, w, labels, expected):
    for make in (lambda d: guided(d, X, T, COND, w), lambda d: ClassifierFree(d, w)(X, T, COND)):
        denoiser = labelled(VE())
        assert torch.equal(make(denoiser), expected)
        assert denoiser.calls == [labels]


def test_the_default_is_the_condition_alone(labelled):
    denoiser = labelled(VE())
    assert torch.equal(guided(denoiser, X, T, COND), CONDITIONAL)
    assert denoiser.calls == [[0, 1]]


def test_each_sample_may_have_its_scale(labelled):
    w = torch.tensor([1.7, -4.0])
    found = guided(labelled(VE()), X, T, COND, w)
    for i in range(2):
        torch.testing.assert_close(found[i], guided(labelled(VE()), X, T, COND, w[i].item())[i], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(guided(labelled(VE()), X, T, COND, torch.ones(2)), CONDITIONAL, rtol=1e-14, atol=1e-14)


def test_guidance_keeps_the_samples_dtype():
    class Plain:
        process, null = VE(), {}

        def __call__(self, x_t, t, cond=None):
            return x_t / 2

    for w in (3.0, f64([3.0, 1.0])):
        assert guided(Plain(), X.float(), T, None, w).dtype == torch.float32


def test_a_negative_condition_takes_the_nulls_place(labelled):
    denoiser, negative = labelled(VE()), {"label": torch.tensor([1, 1])}
    found = guided(denoiser, X, T, COND, 3.0, negative)
    away = X / 2 - 3.0
    torch.testing.assert_close(found, away + 3.0 * (CONDITIONAL - away), rtol=1e-13, atol=1e-13)
    assert denoiser.calls == [[1, 1], [0, 1]]
    denoiser.null = None
    torch.testing.assert_close(guided(denoiser, X, T, COND, 3.0, negative), found)  # and needs no null
    assert torch.equal(guided(denoiser, X, T, COND, 0.0, negative), away)


def test_a_guided_denoiser_takes_one_negative_for_all_samples(labelled):
    one = {"label": torch.tensor(1)}
    for denoiser in (ClassifierFree(labelled(VE()), 2.0, negative=one), ClassifierFree(labelled(VE()), 2.0, (0.1, 9.0), one)):
        expected = guided(labelled(VE()), X, T, COND, 2.0, {"label": torch.tensor([1, 1])})
        torch.testing.assert_close(denoiser(X, T, COND), expected, rtol=1e-13, atol=1e-13)
        assert denoiser.denoiser.calls[0] == [1, 1]


def test_without_a_null_condition_only_scale_one_works(labelled):
    denoiser = labelled(VE())
    denoiser.null = None
    assert torch.equal(guided(denoiser, X, T, COND, 1.0), CONDITIONAL)
    for w in (0.0, 2.0, torch.ones(2)):
        with pytest.raises(LimbeckError, match="Labelled declares no null condition, so it cannot be guided"):
            guided(denoiser, X, T, COND, w)


def test_null_conditions_have_a_row_for_every_sample(labelled, gaussian):
    denoiser = labelled(VE())
    denoiser.null = {"label": torch.tensor(10), "text": torch.arange(6.0).reshape(2, 3)}
    null = null_cond(denoiser, 4)
    assert null is not None
    assert null["label"].tolist() == [10] * 4
    assert null["text"].shape == (4, 2, 3)
    assert torch.equal(null["text"][3], torch.arange(6.0).reshape(2, 3))
    assert null_cond(gaussian(VE()), 4) is None  # {}: unconditional, so that None is its condition


def test_an_unconditional_denoiser_is_its_own_null(gaussian):
    denoiser = gaussian(VE())
    torch.testing.assert_close(guided(denoiser, X, T, None, 7.5), denoiser(X, T), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("w", [1.3, 0.0, -2.0])
def test_an_interval_guides_the_samples_inside_it_alone(labelled, w):
    denoiser = labelled(VE())
    found = ClassifierFree(denoiser, w, (0.1, 1.0))(X, T, COND)  # sigma is 0.5 and 5
    torch.testing.assert_close(found[0], guided(labelled(VE()), X, T, COND, w)[0], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found[1], CONDITIONAL[1], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "interval, guides", [((0.5, 5.0), [True, True]), ((0.0, 0.4), [False, False]), ((5.0, 9.0), [False, True])]
)
def test_an_interval_holds_its_ends_and_costs_nothing_outside(labelled, interval, guides):
    denoiser = labelled(VE())
    found = ClassifierFree(denoiser, 3.0, interval)(X, T, COND)
    inside = torch.tensor(guides)[:, None, None]
    expected = torch.where(inside, UNCONDITIONAL + 3.0 * (CONDITIONAL - UNCONDITIONAL), CONDITIONAL)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert len(denoiser.calls) == (2 if any(guides) else 1)


def test_an_interval_is_in_sigma_whatever_the_process(labelled):
    flow = RectifiedFlow()
    found = ClassifierFree(labelled(flow), 3.0, (0.1, 1.0))(X, flow.time_of(T), COND)
    torch.testing.assert_close(found, ClassifierFree(labelled(VE()), 3.0, (0.1, 1.0))(X, T, COND))
    outside = ClassifierFree(labelled(flow), 3.0, (0.1, 1.0))(X, f64([1.0, 1.0]), COND)  # sigma = inf
    assert torch.equal(outside, CONDITIONAL)


def test_a_guided_denoiser_is_a_denoiser(labelled):
    inner = labelled(VE())
    denoiser = ClassifierFree(inner, 3.0)
    assert isinstance(denoiser, Denoiser)
    assert (denoiser.process, denoiser.null) == (inner.process, inner.null)


@pytest.mark.parametrize("interval", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_an_empty_interval_is_refused(labelled, interval):
    with pytest.raises(LimbeckError, match="guidance interval needs 0 <= low < high in sigma"):
        ClassifierFree(labelled(VE()), 3.0, interval)
