"""rCM: its sampler, its laws of times, its averages and presets, and bad input."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.denoisers import in_process
from limbeck.errors import LimbeckError
from limbeck.methods import find, preset_of
from limbeck.methods.generators.rcm import PRESETS, RCMOptions
from limbeck.noise import RectifiedFlow, TrigFlow
from limbeck.samplers import Rollout
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
SD = 0.5


@pytest.mark.parametrize("process", [None, RectifiedFlow()])
def test_sampling(process, tiny):
    method = tiny.make("rcm", tiny.ingredients(tiny.teacher(process=process)), steps=3, sigma_max=70.0)
    z, noise = torch.randn(4, 2, dtype=F64), torch.randn(3, 4, 2, dtype=F64)
    f = lambda x, t: in_process(method.roles["student"].best, TrigFlow(SD))(SD * x, torch.full((4,), t, dtype=F64)) / SD  # noqa: E731
    x = f(math.sin(math.atan(70.0)) * z, math.atan(70.0))
    for i, t in ((1, 1.3), (2, 1.0)):
        x = f(math.cos(t) * x + math.sin(t) * noise[i], t)
    torch.testing.assert_close(method.sampler()(z, None, lambda i: noise[i]), SD * x, rtol=1e-9, atol=1e-10)
    one, two = (method.sampler(steps=k)(z, None, lambda i: noise[i]) for k in (1, 2))
    assert float((one - two).abs().max()) > 1e-3


def test_eight_steps_visit_a_level_twice(tiny):
    method = tiny.make("rcm", sampling="eight", steps=8, sigma_max=60.0)
    found = torch.atan(method.times / SD)
    expected = torch.tensor([math.atan(60.0), 1.3, 1.0, 1.0, 0.6, 0.6, 0.3, 0.3], dtype=F64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    z, noise = torch.randn(4, 2, dtype=F64), torch.randn(8, 4, 2, dtype=F64)
    assert bool(method.sampler()(z, None, lambda i: noise[i]).isfinite().all())
    with pytest.raises(LimbeckError, match="must decrease strictly"):
        Rollout(method.process, (2.0, 1.0, 1.0), renoise="ode")
    with pytest.raises(LimbeckError, match="must decrease strictly"):
        Rollout(method.process, (2.0, 1.0, 2.0))


def test_laws_of_times():
    u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    of = lambda law: torch.log(law(u).tan())  # noqa: E731
    for options, mean, std in ((RCMOptions(), -0.8, 1.6), (RCMOptions(frames=21), -0.8 + math.log(21) / 2, 1.6)):
        logs = of(options.p_G)
        assert float(logs.mean()) == pytest.approx(mean, abs=1e-3) and float(logs.std()) == pytest.approx(std, rel=1e-2)
    logs = of(RCMOptions().p_D)
    assert float(logs.mean()) == pytest.approx(0.0, abs=1e-3) and float(logs.std()) == pytest.approx(1.6, rel=1e-2)
    t = 5 * u / (1 + 4 * u)
    torch.testing.assert_close(RCMOptions(dmd_law="flow").p_D(u), torch.atan(t / (1 - t)), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("sampling", "times"), [("paper", (1.3, 1.0, 0.6)), ("released", (1.5, 1.4, 1.0))])
def test_sampling_times(sampling, times):
    assert RCMOptions(sampling=sampling, sigma_max=80.0).angles == (math.atan(80.0), *times)


def test_the_average_counts_the_critics_iterations(tiny):
    method = tiny.make("rcm", cycle=3)
    loop = tiny.loop(method)
    average = [p.clone() for p in method.student.parameters()]
    for k in range(1, 8):
        loop.iterate()
        beta = (1 - 1 / k) ** (1 + 16.97)
        average = [beta * a + (1 - beta) * p.detach() for a, p in zip(average, method.student.parameters(), strict=True)]
    for found, expected in zip(method.roles["student"].best.parameters(), average, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_without_data(tiny):
    with pytest.raises(
        LimbeckError, match=r"starts from data x_0, and there are none: .*samples of the teacher .*scm_weight to 0"
    ):
        tiny.make("rcm", tiny.ingredients(images=False))
    tiny.make("rcm", tiny.ingredients(images=False), scm_weight=0.0)  # as the message says


def test_data_that_are_not_in_units_of_sigma_data(tiny):
    parts = tiny.ingredients()
    with pytest.raises(LimbeckError, match=r"sigma_data=0.5, but the data's standard deviation is 3\.\d+: .*scale the data"):
        tiny.make("rcm", replace(parts, example=5 * parts.example))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Layer(nn.Module):
    def forward(self, x):
        return Cube.apply(x)


def test_a_network_without_forward_mode(tiny):
    teacher = tiny.teacher()
    teacher.network.output = nn.Sequential(teacher.network.output, Layer())
    with pytest.raises(LimbeckError, match=r"the module 'network\.output\.1' \(Layer\) has no forward-mode derivative"):
        tiny.make("rcm", tiny.ingredients(teacher))
    tiny.make("rcm", tiny.ingredients(teacher), jvp="discrete")


def test_a_compiled_network(tiny):
    teacher = tiny.teacher()
    teacher.network.norm = torch.compile(teacher.network.norm)
    with pytest.raises(LimbeckError, match=r"forward mode does not go through torch.compile"):
        tiny.make("rcm", tiny.ingredients(teacher))


def test_half_precision(tiny):
    method = tiny.make("rcm", dmd_weight=0.0, jvp="semi")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny.yields(method, tiny.batch(method))
    method.student.compute_dtype = torch.bfloat16
    with pytest.warns(UserWarning, match="half precision"):
        tiny.yields(method, tiny.batch(method))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scm_weight": 0.0, "dmd_weight": 0.0}, "scm_weight=0 and dmd_weight=0: at least one must be positive"),
        ({"dmd_weight": -1.0}, "none negative"),
        ({"scm_weight": 0.0, "warmup": 10}, "warmup=10: the warm-up is of the consistency term alone"),
        ({"warmup": -1}, "warmup=-1"),
        ({"cycle": 0}, "cycle=0, .* must be at least 1"),
        ({"steps": 5}, "steps=5: the 'paper' times have 1 to 4 steps"),
        ({"sigma_max": 1.0}, r"sigma_max=1 must exceed the second step's noise level 3\.6"),
        ({"h": 0.0}, "h=0 be positive"),
    ],
)
def test_options_that_contradict_one_another(options, message):
    with pytest.raises(LimbeckError, match=message):
        RCMOptions(**options)


def test_presets():
    for preset in PRESETS.values():
        assert options_from_dict(RCMOptions, options_to_dict(preset)) == preset
    entry = find("scm")
    assert entry.id == "rcm" and preset_of("scm", PRESETS, None).dmd_weight == 0.0
    wan = PRESETS["paper-wan-14b"]
    assert (wan.cycle, wan.warmup, wan.batch, wan.student.lr, wan.critic.lr) == (10, 200, 64, 1e-6, 1e-7)
    assert (wan.dmd_weight, wan.sigma_max, wan.rollout_start, wan.guidance) == (0.01, 1600.0, None, 5.0)
    assert wan.student.clip is None and wan.student.betas == (0.0, 0.999)
