"""The ring: its teacher is exact, its figures tell good samples from bad ones, and bad input is named."""

from dataclasses import replace

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.tasks import build_task
from limbeck.tasks.ring import START, UNEQUAL, ring

FEW = replace(START, iterations=3, batch=16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))


def test_data_are_of_the_teachers_law(cache):
    task = ring(weights=UNEQUAL, classes=2, start=FEW, quiet=True)
    assert task.shape == (2,) and task.source.size == 8192 and task.start is not task.teacher
    x, cond = task.source.fetch(torch.arange(task.source.size))
    figures = task.evaluator.judge(x, cond)
    # 8,192 draws against 4,096 of the same law: what finite samples differ by
    assert figures["mode_tv"] < 0.03 and figures["energy"] < 2e-3 and figures["sliced_w2"] < 0.06
    assert figures["off_mode"] == pytest.approx(0.011, abs=0.006)  # beyond three standard deviations in the plane: exp(-4.5)
    assert figures["accuracy"] > 0.99
    assert task.sigma_data == pytest.approx(float(x.std()), rel=0.05)


def test_figures_tell_what_is_wrong(cache):
    task = ring(start=FEW, quiet=True)
    good = task.teacher.sample(4096, generator=torch.Generator().manual_seed(5))
    one_mode = good.clone()
    one_mode[:] = 0.1 * torch.randn(4096, 2) + torch.tensor([1.0, 0.0])
    good, lost, blurred = (task.evaluator.judge(x) for x in (good, one_mode, 0.5 * torch.randn(4096, 2)))
    assert good["mode_tv"] < 0.05 < 0.85 < lost["mode_tv"] and lost["off_mode"] < 0.03
    assert blurred["off_mode"] > 0.5 and blurred["energy"] > 20 * good["energy"] and lost["sliced_w2"] > 10 * good["sliced_w2"]
    assert good["accuracy"] != good["accuracy"]  # there is nothing to be right about


def test_the_network_that_students_start_as_is_cached(cache):
    first, again = (ring(start=FEW, quiet=True) for _ in range(2))
    assert (first.facts["origin"], again.facts["origin"]) == ("trained", "cached")
    one, other = first.start.state_dict(), again.start.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_that_are_not_one_per_mode():
    with pytest.raises(LimbeckError, match="3 weights do not fit 8 modes"):
        build_task("ring", {"weights": (1.0, 1.0, 1.0)})
