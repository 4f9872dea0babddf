"""Views of a denoiser, held to the exact denoiser of Gaussian data; the checks of what a user brings."""

import math

import pytest
import torch
from torch import nn

from limbeck.denoisers import (
    Denoiser,
    InProcess,
    Preconditioned,
    Reconditioned,
    Rescaled,
    check_denoiser,
    in_process,
    times_like,
)
from limbeck.errors import ConversionError, LimbeckError
from limbeck.noise import DDPM, VE, VP, RectifiedFlow, TrigFlow, spread

MATCHED = [VE(), VP(), DDPM(), RectifiedFlow(), RectifiedFlow(shift=3.0), TrigFlow(), TrigFlow(sigma_data=0.5)]


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normals(*shape) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Answer:
    """A denoiser that answers ``function(x_t)`` and keeps what it was given."""

    null = None

    def __init__(self, function, process=None):
        self.function, self.process = function, process or RectifiedFlow()

    def __call__(self, x_t, t, cond=None):
        self.seen = (x_t, t)
        return self.function(x_t)


def test_a_denoiser_is_recognised_by_what_it_has(gaussian):
    assert isinstance(gaussian(VE()), Denoiser)
    assert isinstance(Preconditioned(nn.Identity(), VE()), Denoiser)
    assert not isinstance(nn.Identity(), Denoiser)


def test_the_gaussian_denoiser_of_these_tests_is_the_regression_line(gaussian):
    process, x0 = VP(), 0.3 + 0.7 * normals(200_000)
    t = f64([0.3])
    eps = torch.randn(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t = process.add_noise(x0, eps, t)
    slope = torch.cov(torch.stack([x0, x_t]))[0, 1] / x_t.var()
    found = gaussian(process)(f64([0.0, 1.0]), t)
    torch.testing.assert_close(found[1] - found[0], slope, rtol=0, atol=5e-3)
    torch.testing.assert_close(found[0], x0.mean() - slope * x_t.mean(), rtol=0, atol=5e-3)


def test_times_like_is_one_float64_time_per_sample():
    x = torch.zeros(3, 2)
    for t in (0.5, torch.tensor(0.5), torch.full((3,), 0.5)):
        found = times_like(x, t)
        assert (found.dtype, found.tolist()) == (torch.float64, [0.5, 0.5, 0.5])


@pytest.mark.parametrize("inner", MATCHED, ids=repr)
@pytest.mark.parametrize("outer", MATCHED, ids=repr)
def test_a_denoiser_answers_the_same_in_every_process(gaussian, inner, outer):
    sigma = f64([0.01, 0.05, 0.7, 4.0, 70.0])
    x0, eps = normals(2, 5, 3)
    t = outer.time_of(sigma)
    view = InProcess(gaussian(inner), outer)
    found = view(outer.add_noise(x0, eps, t), t)
    torch.testing.assert_close(found, gaussian(VE())(VE().add_noise(x0, eps, sigma), sigma), rtol=1e-10, atol=1e-10)
    assert (view.process, view.null) == (outer, {})


def test_a_view_at_pure_noise_sees_pure_noise(gaussian):
    flow, trig, noise = RectifiedFlow(), TrigFlow(0.5), normals(2, 3)
    spy = Answer(lambda x_t: x_t, trig)
    InProcess(spy, flow)(noise, f64([1.0, 1.0]))
    x_t, t = spy.seen
    found = InProcess(gaussian(trig), flow)(noise, f64([1.0, 1.0]))
    torch.testing.assert_close(t, f64([math.pi / 2] * 2))
    torch.testing.assert_close(x_t, 0.5 * noise)
    torch.testing.assert_close(found, torch.full_like(found, 0.3))
    torch.testing.assert_close(InProcess(gaussian(flow), trig)(0.5 * noise, t), found)
    with pytest.raises(ConversionError, match="VE has no time"):
        InProcess(gaussian(VE()), flow)(noise, f64([0.5, 1.0]))


def test_views_take_times_per_token_and_pass_gradients(gaussian):
    flow, x_t = RectifiedFlow(), normals(2, 4, 3).requires_grad_()
    t = f64([[0.1, 0.2, 0.5, 0.9], [0.3, 0.3, 0.8, 0.99]])
    found = InProcess(gaussian(VE()), flow)(x_t, t)
    torch.testing.assert_close(found, gaussian(flow)(x_t, t), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(found.sum(), x_t)
    a, s = 1 - t, t
    slope = a * 0.49 / (a**2 * 0.49 + s**2)
    torch.testing.assert_close(gradient, slope[..., None].expand_as(gradient))


def test_a_denoiser_in_its_own_process_is_itself(gaussian):
    denoiser = gaussian(RectifiedFlow(shift=3.0))
    assert in_process(denoiser, RectifiedFlow(shift=3.0)) is denoiser
    assert isinstance(in_process(denoiser, RectifiedFlow()), InProcess)


@pytest.mark.parametrize("process", MATCHED, ids=repr)
@pytest.mark.parametrize("scale, shift", [(0.5, 0.5), (2.0, -1.0), (0.18215, 0.0)])
def test_a_denoiser_of_scaled_data_is_a_denoiser_of_the_data(gaussian, process, scale, shift):
    scaled = gaussian(process, mean=scale * 0.3 + shift, sd=scale * 0.7)
    t = process.time_of(f64([0.05, 0.7, 20.0]))
    x_t = normals(3, 4)
    found = Rescaled(scaled, scale, shift)(x_t, t)
    torch.testing.assert_close(found, gaussian(process)(x_t, t), rtol=1e-10, atol=1e-10)


def test_a_rescaled_flow_works_at_pure_noise(gaussian):
    flow, t = RectifiedFlow(), f64([1.0])
    view = Rescaled(gaussian(flow, mean=0.65, sd=0.35), 0.5, 0.5)
    torch.testing.assert_close(view(normals(1, 4), t), torch.full((1, 4), 0.3, dtype=torch.float64))
    assert (view.process, view.null) == (flow, {})


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_data_scale_must_be_positive(gaussian, scale):
    with pytest.raises(LimbeckError, match=f"data scale must be positive, not {scale:g}"):
        Rescaled(gaussian(VE()), scale)


def test_a_reconditioned_denoiser_sees_other_conditions(labelled):
    denoiser = labelled(VE())
    view = Reconditioned(denoiser, lambda cond: cond and {"label": 1 - cond["label"]})
    x_t, t = normals(2, 3), f64([1.0, 1.0])
    view(x_t, t, {"label": torch.tensor([0, 1])})
    assert denoiser.calls == [[1, 0]]
    assert (view.process, view.null) == (denoiser.process, denoiser.null)


# check_denoiser


def test_good_denoisers_pass(gaussian, labelled):
    x = normals(2, 3, 4, 4)
    for process in MATCHED:
        check_denoiser(gaussian(process), x, gradients=True)
    check_denoiser(labelled(VE()), x, {"label": torch.tensor([0, 1])}, gradients=True)
    check_denoiser(Answer(lambda x_t: x_t.detach()), x)  # no gradients asked for


def test_the_check_tries_sigma_one_half_without_leaving_gradients():
    seen = []

    class Spy(Answer):
        def __call__(self, x_t, t, cond=None):
            seen.append((x_t.requires_grad, torch.is_grad_enabled(), self.process.sigma(t)))
            return network(x_t)

    network, x = nn.Linear(3, 3).double(), normals(2, 3)
    for gradients in (False, True):
        check_denoiser(Spy(None), x, gradients=gradients)
    assert [entry[:2] for entry in seen] == [(False, False), (True, True)]
    torch.testing.assert_close(seen[0][2], f64([0.5, 0.5]))
    assert network.weight.grad is None


def _under_no_grad(x_t):
    with torch.no_grad():
        return 2 * x_t


def _under_inference_mode(x_t):
    with torch.inference_mode():
        return 2 * x_t


trained = nn.Linear(4, 4).double()


@pytest.mark.parametrize(
    "denoiser, message",
    [
        (nn.Linear(4, 4), r"the teacher is a Linear, not a denoiser: .*'process'; wrap your network in .*Preconditioned\("),
        ("teacher.pt", "the teacher is a str, not a denoiser"),
        (Answer(lambda x_t: x_t[:, :2]), r"answered \(2, 2\) for an input of shape \(2, 4\)"),
        (Answer(lambda x_t: (x_t,)), r"answered tuple for an input of shape \(2, 4\)"),
        (Answer(lambda x_t: x_t / 0), "non-finite values at sigma = 0.5; check its weights and its prediction type"),
        (Answer(_under_no_grad), "no gradient reaches the teacher's input"),
        (Answer(_under_inference_mode), "no gradient reaches the teacher's input"),
        (Answer(lambda x_t: trained(x_t.detach())), "no gradient reaches the teacher's input .*detaches its input"),
    ],
    ids=["network", "path", "shape", "tuple", "non-finite", "no-grad", "inference", "detached"],
)
def test_what_is_wrong_with_a_denoiser_is_named(denoiser, message):
    with pytest.raises(LimbeckError, match=message):
        check_denoiser(denoiser, normals(2, 4), gradients=True)


def test_the_check_accepts_being_called_under_no_grad(gaussian):
    with torch.no_grad():
        check_denoiser(gaussian(VE()), normals(2, 4), gradients=True)


def test_integer_images_are_refused(gaussian):
    with pytest.raises(LimbeckError, match=r"floating-point data, not torch\.uint8"):
        check_denoiser(gaussian(VE()), torch.zeros(2, 4, dtype=torch.uint8))


def test_spread_follows_the_sample():
    assert spread(f64([1.0, 2.0]), torch.zeros(2, 3, 4)).shape == (2, 1, 1)
