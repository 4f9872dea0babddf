"""The noise levels of the papers' presets are the whole steps, or the shares of Karras' spacing, that the papers name."""

import pytest
import torch

from limbeck.methods import find
from limbeck.methods.generators.levels import level_laws
from limbeck.noise import DDPM, VE

F64 = torch.float64
STABLE_DIFFUSION = DDPM("scaled_linear", 1000, 0.00085, 0.012)
LINEAR = DDPM("linear")
ENDS = torch.tensor([0.0, 1 - 2.0**-53], dtype=F64)


def laws(name, preset, process):
    o = find(name).load()[2][preset]
    return o, level_laws(process, o.score_law, o.critic_law, o.score_low, o.score_high, o.critic_mean, o.critic_std)


@pytest.mark.parametrize(
    ("name", "preset", "process", "score", "critic", "start"),
    [
        ("dmd", "paper-sdxl", STABLE_DIFFUSION, [20, 980], [0, 999], [399]),
        ("dmd", "paper-sdxl-4", STABLE_DIFFUSION, [20, 980], [0, 999], [999, 749, 499, 249]),
        ("disback", "paper-sdxl", STABLE_DIFFUSION, [20, 980], [0, 999], [399]),
        ("f-distill", "paper-sd15", STABLE_DIFFUSION, [20, 980], [0, 999], [999]),
        ("sid", "paper-sd15-lsg", STABLE_DIFFUSION, [20, 979], [20, 979], [625]),
        ("sfd", "paper-sd15", STABLE_DIFFUSION, [20, 979], [20, 979], [625]),
        ("sfd", "paper-cifar10", LINEAR, [38, 711], [38, 711], [440]),
        ("sim", "paper-pixart", LINEAR, [6, 721], [6, 721], [440]),
    ],
)
def test_steps_of_a_table(name, preset, process, score, critic, start):
    o, (of_score, of_critic) = laws(name, preset, process)
    assert (of_score(ENDS).tolist(), of_critic(ENDS).tolist()) == (score, critic)
    times = process.time_of(torch.tensor(o.sigmas, dtype=F64))
    assert times.tolist() == pytest.approx(start, abs=0.05) and float(times[0]) <= process.t_max


def karras(share):
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (low + share * (high - low)) ** 7


@pytest.mark.parametrize(
    ("name", "preset", "low", "high"),
    [
        ("dmd", "paper-imagenet64", 20 / 999, 980 / 999),
        ("f-distill", "paper-cifar10", 20 / 999, 980 / 999),
        ("f-distill", "paper-imagenet64", 20 / 999, 980 / 999),
        ("sid", "paper-cifar10", 0.0, 0.8),  # t ~ U(0, 800) of 1,000
        ("sid", "paper-afhq64", 0.0, 0.8),
        ("sid", "paper-cifar10-sida", 0.0, 0.8),
    ],
)
def test_shares_of_karras_spacing(name, preset, low, high):
    _, (score, _) = laws(name, preset, VE())
    assert score(ENDS).tolist() == pytest.approx([karras(low), karras(high)], rel=1e-3)
