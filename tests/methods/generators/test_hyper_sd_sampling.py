"""Sampling from stages, and what Hyper-SD refuses."""

import sys
import types

import pytest
import torch

from limbeck.denoisers import guided
from limbeck.errors import LimbeckError
from limbeck.methods.generators.hyper_sd import PRESETS, HyperSDOptions
from limbeck.noise import DDPM
from limbeck.samplers import ddim, tcd
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
PLAIN = {"w_mse": (1.0,), "w_adv": (0.0,), "grid": (16,), "then": ()}
FEEDBACK = types.ModuleType("refused_feedback")
FEEDBACK.detached = lambda x, cond=None: x.detach().mean(1)
FEEDBACK.scalar = lambda x, cond=None: x.mean()
sys.modules[FEEDBACK.__name__] = FEEDBACK


def test_the_sampler_is_ddim_or_tcd_on_trailing_positions(tiny):
    method = tiny.make("hyper-sd", iterations=6, **PLAIN, segments=(4, 2, 1))
    tiny.loop(method).iterate()
    z, cond = torch.randn(4, 2, dtype=F64), {"label": torch.tensor([0, 1, 2, 0])}
    at = lambda *u: method.path(torch.tensor(u, dtype=F64))  # noqa: E731
    first = method.process.s(at(1.0)) * z  # 80 z to rounding
    assert torch.equal(method.sampler()(z, cond), method.average(first, at(1.0).expand(4), cond))
    for k, nodes in ((4, (1, 0.75, 0.5, 0.25)), (2, (1, 0.5))):
        expected = ddim(method.stage(k), first, at(*nodes), cond)
        assert torch.equal(method.sampler(stage=k)(z, cond), expected)
    noise = lambda i: torch.full((4, 2), float(i + 1), dtype=F64)  # noqa: E731
    expected = tcd(method.average, first, at(1, 0.5), cond, below=at(0.35), noise=noise)
    assert torch.equal(method.sampler(steps=2, eta=0.3)(z, cond, noise), expected)
    raw = ddim(method.student, first, at(1, 0.5), cond)
    assert torch.equal(method.sampler(ema=False, steps=2)(z, cond), raw)


def test_tcd_on_indices_is_its_own_rule(tiny):
    parts = tiny.ingredients(tiny.teacher(process=DDPM()))
    method = tiny.make("hyper-sd", parts, **PLAIN, segments=(1,), schedule="time", begin="unit")
    z, cond = torch.randn(4, 2, dtype=F64), {"label": torch.tensor([0, 1, 2, 0])}
    noise = lambda i: torch.ones(4, 2, dtype=F64)  # noqa: E731
    expected = tcd(method.average, z, [999.0, 499.0], cond, eta=0.3, noise=noise)
    torch.testing.assert_close(method.sampler(steps=2, eta=0.3)(z, cond, noise), expected, rtol=1e-9, atol=1e-9)


def test_a_dedicated_one_step_generator_starts_at_its_own_time(tiny):
    parts = tiny.ingredients(tiny.teacher(process=DDPM()))
    options = {**PLAIN, "then": ("score",), "schedule": "time", "begin": "unit", "first": 0.8}
    method = tiny.make("hyper-sd", parts, **options, segments=(2, 1))
    torch.testing.assert_close(method.times, torch.tensor([799.0], dtype=F64))
    z, cond = torch.randn(4, 2, dtype=F64), {"label": torch.tensor([0, 1, 2, 0])}
    t = torch.full((4,), 799.0, dtype=F64)
    torch.testing.assert_close(method.sampler()(z, cond), method.average(z, t, cond), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(method.sampler(stage=1)(z, cond), method.stage(1)(z, t + 200, cond), rtol=1e-9, atol=1e-9)


def test_warnings_of_sampling(tiny):
    plain = tiny.make("hyper-sd", **PLAIN, segments=(4, 2))
    with pytest.warns(UserWarning, match="1 steps of a model with k=2 segments jump over borders, which nothing has learned"):
        plain.sampler(steps=1)
    with pytest.warns(UserWarning, match="guidance 3 on a student that needs none: it is applied a second time"):
        plain.sampler(guidance=3.0)
    border = tiny.make("hyper-sd", **PLAIN, segments=(4, 2), target="border")
    with pytest.warns(UserWarning, match="eta=0.3, but with target='border' the model has only learned to reach the 2 borders"):
        border.sampler(eta=0.3)
    with pytest.warns(UserWarning, match="4 steps, but with target='border'"):
        border.sampler(steps=4)
    kept = tiny.make("hyper-sd", **PLAIN, segments=(1,), keep_guidance=True)
    z, cond = torch.randn(3, 2, dtype=F64), {"label": torch.tensor([0, 1, 2])}
    expected = guided(kept.average, 80 * z, torch.full((3,), 80.0, dtype=F64), cond, 3.0)
    torch.testing.assert_close(kept.sampler(guidance=3.0)(z, cond), expected, rtol=1e-12, atol=1e-13)
    plain.sampler(steps=4), border.sampler(stage=4)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_other_spacings(spacing, tiny):
    with pytest.raises(LimbeckError, match=f"{spacing} spacing does not begin at the noisiest time, .*; use trailing"):
        tiny.make("hyper-sd", **PLAIN, segments=(1,)).sampler(spacing=spacing)


# -- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": (4, 8)}, r"segments are \(4, 8\): every stage merges those of the one before, so k must decrease"),
        ({"segments": (2, 2)}, "k must decrease"),
        ({"segments": ()}, "k must decrease"),
        ({"grid": (50,)}, "k=8 does not divide the grid of N=50 intervals; choose N a multiple of k, e.g. 48"),
        ({"grid": (64, 64)}, r"grid has 2 entries for 4 segments \(8, 4, 2, 1\); give one, or one per k"),
        ({"lengths": (1.0,)}, "lengths has 1 entries for 5 stages; give one per stage"),
        ({"segments": (8, 4), "steps": 2, "w_mse": (1.0,), "w_adv": (0.0,)}, "steps=2, but the segments .* end at k=4: .* 4 steps"),
        ({"rewards": ("class",)}, "1 rewards need as many hinges, not 0; give alpha_d for each"),
        ({"guidance_low": 3.0}, r"guidance is U\[3, 1\]; give 0 <= low <= high"),
        ({"first": 800.0}, r"positions lie in \[0, 1\], 0 clean and 1 noise, not \[0, 800\]"),
        ({"reward_steps": 2}, "2 reward_steps need a reward_high below 1"),
        ({"structure_to": 0.9}, "the structure loss needs 0 < structure_to < structure_from <= 1"),
        ({"iterations": 3}, "3 iterations leave a stage without any; give more, or fewer stages"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(options, message):
    with pytest.raises(LimbeckError, match=message):
        HyperSDOptions(**options)


def test_a_reward_without_gradient(tiny):
    reward = {**PLAIN, "segments": (1,), "then": ("reward",), "hinges": (0.0,)}
    with pytest.raises(LimbeckError, match="reward .*detached' has no gradient with respect to the samples .* or use pso"):
        tiny.make("hyper-sd", **reward, rewards=("refused_feedback:detached",))
    with pytest.raises(LimbeckError, match=r"answered \(\) for 10 samples; it must return one number per sample"):
        tiny.make("hyper-sd", **reward, rewards=("refused_feedback:scalar",))
    with pytest.raises(LimbeckError, match="unknown reward 'aesthetic'"):
        tiny.make("hyper-sd", **reward, rewards=("aesthetic",))
    with pytest.raises(LimbeckError, match="the reward stage has nothing to maximise; name rewards"):
        tiny.make("hyper-sd", **{**PLAIN, "then": ("reward",)}, segments=(1,))


def test_what_it_cannot_work_with(tiny):
    with pytest.raises(LimbeckError, match="segmented consistency distillation noises images; give data, or use sid or dmd"):
        tiny.make("hyper-sd", tiny.ingredients(images=False))
    with pytest.raises(LimbeckError, match="guidance 2 needs a null condition"):
        tiny.make("hyper-sd", tiny.ingredients(classes=0), **PLAIN, segments=(1,), guidance_high=2.0)


def test_presets_survive_being_written_down():
    for preset in PRESETS.values():
        assert options_from_dict(HyperSDOptions, options_to_dict(preset)) == preset
    paper = PRESETS["paper-sdxl"]
    assert (paper.segments, paper.batch, paper.student.lr, paper.first) == ((8, 4, 2, 1), 512, 1e-6, 0.8)
    assert PRESETS["paper-sdxl-unified"].first == 1.0
