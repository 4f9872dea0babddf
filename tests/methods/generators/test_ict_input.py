"""What consistency training refuses or warns of, and in which words."""

import warnings

import pytest
import torch

from limbeck.denoisers import MixtureDenoiser
from limbeck.errors import LimbeckError
from limbeck.methods.generators.ict import ICTOptions
from limbeck.noise import VE


def test_training_needs_images(tiny):
    with pytest.raises(LimbeckError, match="consistency training learns from images; give data, or use sid or dmd"):
        tiny.make("ict", tiny.ingredients(images=False))


def test_a_sigma_data_far_from_the_data(tiny):
    parts = tiny.ingredients()
    far = type(parts)(parts.teacher, parts.shape, 5 * parts.example, parts.cond, True, 0.5, parts.network)
    with pytest.warns(UserWarning, match=r"sigma_data=0.5, but the data's standard deviation is 3\.\d+"):
        tiny.make("ict", far)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.make("ict", parts)


def test_a_run_too_short_for_its_curriculum():
    with pytest.raises(LimbeckError, match="from s0=4 to s1=64 needs at least 5 steps, not 3; raise the number of iterations"):
        ICTOptions(iterations=3)
    with pytest.raises(LimbeckError, match="needs 1 <= s0 <= s1, not s0=8, s1=4"):
        ICTOptions(s0=8, s1=4)
    with pytest.raises(LimbeckError, match="needs 1 <= s0 <= s1, not s0=0, s1=4"):
        ICTOptions(s0=0, s1=4)


@pytest.mark.parametrize("later", [(0.001,), (80.0,), (100.0,), (0.2, 0.8), (0.8, 0.8)])
def test_a_later_step_outside_the_grid_or_out_of_order(later):
    with pytest.raises(LimbeckError, match=r"the later steps' times must decrease inside \[0.002, 80\], not \("):
        ICTOptions(later=later)


@pytest.mark.parametrize("weight", ["inverse_gap", "snr"])
def test_an_average_as_the_target_of_ict(weight):
    with pytest.raises(LimbeckError, match=r"an average as the target .*needs weight='one', not .*use target='student' \(iCT"):
        ICTOptions(target="ema", weight=weight)


def test_images_that_were_not_scaled(tiny):
    method = tiny.make("ict")
    at = tiny.batch(method)
    at.x = (127 * at.x).to(torch.uint8)
    with pytest.raises(LimbeckError, match=r"training images are torch.uint8; scale them .*x / 127.5 - 1"):
        tiny.yields(method, at)


def test_data_outside_their_declared_range(tiny):
    parts = tiny.ingredients()
    low, high = float(parts.example.min()), float(parts.example.max())
    with pytest.raises(LimbeckError, match=rf"the data reach from {low:.4g} to {high:.4g}, but are declared.*\[-0.1, 0.1\]"):
        tiny.make("ict", parts, declared_range=(-0.1, 0.1))
    tiny.make("ict", parts, declared_range=(low, high))


def test_more_iterations_than_planned(tiny):
    method = tiny.make("ict")
    with pytest.raises(LimbeckError, match="step 8 lies outside the planned 8 steps"):
        tiny.yields(method, tiny.batch(method, 8))


def test_from_scratch_without_a_network(tiny):
    with pytest.raises(LimbeckError, match="needs the task's network; use start='teacher'"):
        tiny.make("ict", tiny.ingredients(network=None))


@pytest.mark.parametrize("mu0", [0.0, 1.0])
def test_an_average_that_never_or_only_moves(mu0):
    with pytest.raises(LimbeckError, match=r"mu0 must lie in \(0, 1\), not [01]; target='student'"):
        ICTOptions(mu0=mu0)


def test_a_teacher_without_a_network_to_start_from(tiny):
    ring = MixtureDenoiser.ring(3, 1.0, 0.1, VE())
    with pytest.raises(LimbeckError, match="a MixtureDenoiser has no network to start from; use start='scratch'"):
        tiny.make("ict", tiny.ingredients(ring), start="teacher")


def test_a_teacher_that_predicts_something_else(tiny):
    teacher = tiny.teacher()
    teacher.prediction = "eps"
    with pytest.warns(UserWarning, match="the teacher's network predicts eps, .* its first answers are wrong"):
        tiny.make("ict", tiny.ingredients(teacher), start="teacher")
