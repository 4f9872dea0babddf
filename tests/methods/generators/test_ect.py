"""Easy consistency tuning: pairs r < t, its stages, its boundary at 0, and what it refuses."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses import FromZero
from limbeck.methods.generators import ict
from limbeck.methods.generators.ict import PRESETS, ICTOptions
from limbeck.noise import LogNormal

F64 = torch.float64
ECT = {"schedule": "ect", "start": "teacher", "c": 0.0, "double": 2}


@pytest.fixture
def points(monkeypatch):
    """What consistency_loss was called with."""
    calls, real = [], ict.consistency_loss
    monkeypatch.setattr(ict, "consistency_loss", lambda *a, **o: (calls.append((a, o)), real(*a, **o))[1])
    return calls


def lower(t, step, **options):
    return ICTOptions(**{**ECT, **options}).lower(torch.tensor(t, dtype=F64), step).tolist()


def test_the_mapping_by_hand():
    """At stage 0 all below ln 7 is denoising; each stage halves what n(t) leaves of the gap."""
    edge = math.log(7.0)  # 1 + 8 sigmoid(-t) = 2
    assert lower([edge - 1e-6, edge], 0) == pytest.approx([0.0, 0.0], abs=1e-12)
    assert 0 < lower([edge + 1e-3], 0)[0] < 1e-3
    assert lower([100.0], 0) == pytest.approx([50.0]) and lower([100.0], 1) == lower([100.0], 0)
    assert lower([100.0], 2) == pytest.approx([75.0]) and lower([100.0], 5) == pytest.approx([87.5])
    n = 1 + 8 / (1 + math.exp(1.0))
    assert lower([1.0], 6) == pytest.approx([1 - n / 16])
    assert lower([3.0], 3, k=0.0, q=4.0) == pytest.approx([3 * (1 - 4.0**-2)])
    assert lower([2.0], 0, b=0.0, q=16.0) == pytest.approx([2 * (1 - 5 / 16)])


def test_the_lower_point_rises_towards_the_student_and_never_meets_it():
    t = torch.logspace(-3, 3, 40, dtype=F64)
    options = ICTOptions(**ECT)
    stages = torch.stack([options.lower(t, 2 * j) for j in range(20)])
    assert bool((stages < t).all() and (stages >= 0).all() and (stages[1:] >= stages[:-1]).all())
    assert float((1 - stages[-1] / t).max()) < 5 * 2.0**-19


def test_pairs_follow_the_law_and_share_their_noise(tiny, points):
    method = tiny.make("ict", **ECT)
    at = tiny.batch(method, step=5, size=4000)
    (update,) = tiny.yields(method, at)
    (student, target, x_high, high, x_low, low, cond), options = points[0]
    e = method.normal(at, "noise")
    assert torch.equal(high, LogNormal(-1.1, 2.0)(at.noise.uniform("level")))
    assert float(high.log().mean()) == pytest.approx(-1.1, abs=0.1) and float(high.log().std()) == pytest.approx(2, abs=0.1)
    assert torch.equal(low, method.options.lower(high, 5))
    assert torch.equal(x_high, at.x + high[:, None] * e) and torch.equal(x_low, at.x + low[:, None] * e)
    torch.testing.assert_close(options["weight"], 1 / (high - low))
    assert student is method.student and target.f is method.student and cond is at.cond and update.logs == {"stage": 2.0}


def test_where_r_is_0_the_target_is_the_image(tiny, points):
    method = tiny.make("ict", **ECT)
    at = tiny.batch(method, size=50)
    (update,) = tiny.yields(method, at)
    (student, target, x_high, high, x_low, low, cond), _ = points[0]
    answer, zero = target(x_low, low, cond), low == 0
    assert bool(zero.any()) and bool((~zero).any()) and bool(answer.isfinite().all())
    assert torch.equal(answer[zero], at.x[zero])
    torch.testing.assert_close(answer[~zero], student(x_low, low.clamp(min=1e-3), cond)[~zero], rtol=1e-12, atol=0)
    gap = (student(x_high, high, cond) - torch.where(zero[:, None], at.x, answer)).norm(dim=1)
    torch.testing.assert_close(update.loss, (gap / (high - low)).mean(), rtol=1e-10, atol=0)


def test_its_boundary_is_at_0(tiny):
    method = tiny.make("ict", **ECT)
    x, cond = tiny.data()
    zero = torch.zeros(len(x), dtype=F64)
    torch.testing.assert_close(FromZero(method.student)(x, zero, cond), x, rtol=0, atol=0)
    near = method.student(x, zero + 1e-13, cond)
    torch.testing.assert_close(near, x, rtol=0, atol=1e-11)  # and f runs into it


def test_it_starts_as_the_teacher_itself(tiny):
    """The scaling without eps is the teacher's own, so that training begins with its denoiser."""
    parts = tiny.ingredients()
    method = tiny.make("ict", parts, **ECT)
    x, cond = tiny.data()
    t = torch.linspace(0.01, 50, len(x), dtype=F64)
    assert torch.equal(method.student(x, t, cond), parts.teacher(x, t, cond))


def test_the_ratio_of_signal_to_noise_as_the_weight(tiny, points):
    method = tiny.make("ict", **ECT, weight="snr")
    tiny.yields(method, tiny.batch(method))
    (_, _, _, high, *_), options = points[0]
    torch.testing.assert_close(options["weight"], (high**2 + 0.25) / (high * 0.5) ** 2)


def test_what_it_refuses():
    with pytest.raises(LimbeckError, match="schedule='ect' learns from data; use path='data'"):
        ICTOptions(schedule="ect", path="teacher")
    for wrong in ({"double": 0}, {"q": 1.0}, {"k": -1.0}):
        with pytest.raises(LimbeckError, match="ECT needs double >= 1, q > 1 and k >= 0"):
            ICTOptions(schedule="ect", **wrong)


def test_the_papers_stages():
    for name in ("paper-ect-cifar10", "paper-ect-imagenet64"):
        options = PRESETS[name]
        assert options.schedule == "ect" and options.c == 0 and options.start == "teacher"
        stage = (options.iterations - 1) // options.double
        assert stage == (15 if name.endswith("cifar10") else 3)
