"""The figures of trajectories, and every gate of the claim can fail."""

import pytest
import torch

from limbeck.claims.generators.marginals import states
from limbeck.claims.generators.tdm import CLAIM, SIGMAS, judge
from limbeck.denoisers import MixtureDenoiser
from limbeck.metrics import energy_distance
from limbeck.noise import VE, karras_grid
from limbeck.samplers import ddim
from limbeck.training import Keyed


def test_the_states_are_those_of_the_sampler_and_of_the_exact_laws():
    teacher = MixtureDenoiser.ring(4, 1.0, 0.1, VE())
    times = karras_grid(30, 0.05, 5.0)
    found = states(teacher, times.tolist(), 1024)
    z = Keyed(2**31 - 1, 0, torch.arange(1024)).normal("z", (2,))
    assert len(found) == 30
    torch.testing.assert_close(found[-1], ddim(teacher, 5.0 * z, times))
    law = teacher.sample(1024, None, torch.Generator().manual_seed(0))
    for i in (9, 19, 29):
        noise = torch.randn(law.shape, generator=torch.Generator().manual_seed(i), dtype=law.dtype)
        level = 0.0 if i == 29 else times[i + 1].item()
        assert energy_distance(found[i], law + level * noise, unbiased=True) < 0.02 < energy_distance(found[i], law + 2.0)


GOOD = {
    "is energy": 3.0, "exact energy": 6.0, "start energy": 17.0, "dmd energy": 12.0, "dmd own energy": 4.0, "is dpm energy": 3.0,
    "dead critic energy": 1000.0, "told K=4 energy": 9.0,
    **{f"{name} state {i}": value for name, value in (("is", 8.0), ("exact", 5.0), ("dmd", 50.0), ("start", 20.0)) for i in (1, 2, 3)},
    "told K=4 tv": 0.1, "told K=1 tv": 0.3, "untold K=1 energy": 13.0, "told K=1 energy": 8.0,
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost() and len(SIGMAS) == 4 and CLAIM.calibration


@pytest.mark.parametrize(
    ("changes", "statement"),
    [
        ({"is energy": 18.0}, "TDM / start network, four"),
        ({"dmd energy": 2.0}, "TDM / DMD sampled deterministically"),
        ({"is state 2": 100.0}, "TDM / DMD: energy distance of the states"),
        ({"dead critic energy": 20.0}, "control: a critic that never learns"),
        ({"told K=4 tv": 0.3}, "one student"),
    ],
)
def test_every_gate_can_fail(changes, statement):
    failed = lost(**changes)
    assert any(statement in s for s in failed), failed
