"""Consistency training and distillation: boundary, curriculum, where the points come from, averages, and bad input."""

import math
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.methods.generators import ict
from limbeck.methods.generators.ict import ICT, PRESETS, ICTOptions
from limbeck.networks import RngCapture
from limbeck.noise import VE, RectifiedFlow, growing_points, karras_grid, lognormal_cells
from limbeck.samplers import heun
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
CT = {"target": "ema", "distance": "l2", "law": "uniform", "weight": "one", "curriculum": "growing", "s0": 2}
CD = {**CT, "path": "teacher", "start": "teacher"}


@pytest.fixture
def points(monkeypatch):
    """What consistency_loss was called with."""
    calls, real = [], ict.consistency_loss

    def record(*args, **options):
        calls.append((args, options))
        return real(*args, **options)

    monkeypatch.setattr(ict, "consistency_loss", record)
    return calls


@pytest.mark.parametrize("options", [{}, CD])
def test_the_boundary_is_the_identity(options, tiny):
    method = tiny.make("ict", **options)
    x, cond = tiny.data()
    for f in (method.student, method.roles["student"].best, method.target):
        out = f(x, torch.full((len(x),), 0.002, dtype=F64), cond)
        torch.testing.assert_close(out, x, rtol=0, atol=1e-12)


def test_the_curriculum_doubles(tiny, points):
    method = tiny.make("ict", iterations=10, s0=4, s1=64)  # five stages of two iterations
    found = [tiny.yields(method, tiny.batch(method, k))[0].logs["points"] for k in range(10)]
    assert found == [5, 5, 9, 9, 17, 17, 33, 33, 65, 65]
    for (args, _), n in zip(points, found, strict=True):
        grid = karras_grid(int(n)).flip(0)
        index = torch.searchsorted(grid, args[3])
        assert torch.equal(grid[index], args[3]) and torch.equal(grid[index - 1], args[5])  # neighbours of that grid


def test_the_old_curriculum_grows_like_a_square_root(tiny):
    method = tiny.make("ict", **CT, s1=64)
    found = [tiny.yields(method, tiny.batch(method, k))[0].logs["points"] for k in range(8)]
    assert found == [growing_points(k, 8, 2, 64) for k in range(8)] and found[0] == 2


@pytest.mark.parametrize("law", ["lognormal", "uniform"])
def test_levels_follow_their_law(law, tiny, points):
    method = tiny.make("ict", iterations=1, s0=4, s1=4, law=law)
    tiny.yields(method, tiny.batch(method, size=4000))
    grid = karras_grid(5).flip(0)
    (args, _) = points[0]
    shares = torch.stack([(args[3] == t).double().mean() for t in grid[1:]])
    expected = lognormal_cells(grid) if law == "lognormal" else torch.full((4,), 0.25, dtype=F64)
    assert float((shares - expected).abs().max()) < 0.03 and float(shares.sum()) == pytest.approx(1.0)


def test_training_takes_both_points_from_the_data(tiny, points):
    method = tiny.make("ict")
    at = tiny.batch(method)
    (update,) = tiny.yields(method, at)
    (student, target, x_high, high, x_low, low, cond), options = points[0]
    e = method.normal(at, "noise")
    assert torch.equal(x_high, at.x + high[:, None] * e) and torch.equal(x_low, at.x + low[:, None] * e)
    assert student is target is method.student and cond is at.cond
    torch.testing.assert_close(options["weight"], 1 / (high - low))
    distance = torch.sqrt((student(x_high, high, cond) - student(x_low, low, cond)).square().sum(1) + 2 * 0.00054**2)
    expected = ((distance - 0.00054 * math.sqrt(2)) / (high - low)).mean()
    torch.testing.assert_close(update.loss, expected, rtol=1e-10, atol=0)


def test_distillation_takes_the_lower_point_from_a_heun_step_of_the_teacher(tiny, points):
    parts = tiny.ingredients()
    method = tiny.make("ict", parts, **CD)
    at = tiny.batch(method, step=7)
    tiny.yields(method, at)
    (_, target, x_high, high, x_low, low, _), options = points[0]
    assert target is method.target is not method.student and options["weight"] is None
    assert len(set(high.tolist())) > 1
    for i in range(len(high)):
        one = {"label": at.cond["label"][i : i + 1]}
        stepped = heun(parts.teacher, x_high[i : i + 1], [float(high[i]), float(low[i])], one, final=False)
        torch.testing.assert_close(x_low[i : i + 1], stepped, rtol=1e-12, atol=1e-13)
    assert not x_low.requires_grad


def test_a_teacher_of_another_process_is_seen_in_the_students(tiny, points):
    flow = tiny.teacher(process=RectifiedFlow())
    method = tiny.make("ict", tiny.ingredients(flow), **{**CD, "start": "scratch"})
    at = tiny.batch(method)
    tiny.yields(method, at)
    (_, _, x_high, high, x_low, low, _), _ = points[0]
    u = high / (1 + high)  # sigma = u / (1 - u), and the flow's x_t is 1 - u times the other's
    slope = (x_high - flow(x_high * (1 - u)[:, None], u, at.cond)) / high[:, None]
    euler = x_high + (low - high)[:, None] * slope
    v = low / (1 + low)
    other = (euler - flow(euler * (1 - v)[:, None], v, at.cond)) / low[:, None]
    torch.testing.assert_close(x_low, x_high + (low - high)[:, None] * (slope + other) / 2, rtol=1e-10, atol=1e-12)


def test_the_students_network_starts_new_or_as_the_teachers(tiny):
    parts = tiny.ingredients()
    name = "output.weight"
    assert torch.equal(
        tiny.make("ict", parts, start="teacher").student.network.output.weight, parts.teacher.network.output.weight
    )
    fresh = tiny.make("ict", parts).student.network.get_parameter(name)
    assert not torch.equal(fresh, parts.teacher.network.get_parameter(name))
    other = tiny.make("ict", parts, start="teacher")
    other.student.network.output.weight.data.zero_()
    assert float(parts.teacher.network.output.weight.abs().max()) > 0  # a copy


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_target_is_an_average_of_the_student_updated_once_per_iteration(pieces, tiny):
    method = tiny.make("ict", **CT, s1=8)
    loop = tiny.loop(method, micro_batches=pieces)
    expected = [p.clone() for p in method.target.parameters()]
    for k in range(4):
        loop.iterate()
        mu = math.exp(2 * math.log(0.9) / growing_points(k, 8, 2, 8))
        expected = [mu * e + (1 - mu) * p.detach() for e, p in zip(expected, method.student.parameters(), strict=True)]
        for average, e in zip(method.target.parameters(), expected, strict=True):
            torch.testing.assert_close(average, e, rtol=1e-13, atol=1e-15)
    assert not any(p.requires_grad for p in method.target.parameters())
    moved = [
        float((a - b.detach()).abs().max())
        for a, b in zip(method.target.parameters(), method.student.parameters(), strict=True)
    ]
    assert max(moved) > 1e-4


def test_ict_has_no_average_in_its_loss(tiny):
    method = tiny.make("ict")
    assert method.target is method.student and method.state() == {}
    method.finish(0)
    method.load_state({})


def test_the_averages_state_comes_back(tiny):
    method, other = tiny.make("ict", **CT), tiny.make("ict", **CT)
    loop = tiny.loop(method)
    for _ in range(3):
        loop.iterate()
    state = {name: value.clone() for name, value in method.state().items()}
    assert any(not torch.equal(value, other.state()[name]) for name, value in state.items())
    other.load_state(state)
    assert all(torch.equal(value, other.state()[name]) for name, value in state.items())


@pytest.mark.parametrize("options", [{}, CT, CD])
def test_student_and_target_see_one_dropout_mask(options, tiny, points):
    parts = tiny.ingredients(dropout=0.5)
    method = tiny.make("ict", parts, **options, s1=4)
    loop = tiny.loop(method)  # puts what is trained into training mode
    for p in method.student.parameters():
        nn.init.normal_(p, std=0.4)
    method.target.load_state_dict(method.student.state_dict())
    torch.manual_seed(5)
    loop.iterate()
    (student, target, x, t, *_), _ = points[0]
    with torch.no_grad():
        outs = []
        for f in (student, target, student):
            torch.manual_seed(1)
            outs.append(f(x, t, tiny.batch(method).cond))
        torch.manual_seed(2)
        masked = student(x, t, tiny.batch(method).cond)
    assert float((outs[2] - masked).abs().max()) > 1e-3  # there is a mask
    target.load_state_dict(student.state_dict())
    torch.manual_seed(1)
    torch.testing.assert_close(target(x, t, tiny.batch(method).cond), outs[0])


@pytest.mark.parametrize("options", [{}, CT])
@pytest.mark.parametrize("shared", [True, False])
def test_neighbours_agree_only_under_one_mask(shared, options, tiny, monkeypatch):
    """Levels that close up: the loss vanishes, unless the two calls draw masks of their own."""
    grid = {"s0": 2**20, "s1": 2**20, "curriculum": "doubling", "weight": "one"}
    method = tiny.make("ict", tiny.ingredients(dropout=0.9), **{**options, **grid})
    for p in method.student.parameters():
        nn.init.normal_(p, std=0.4)
    method.target.load_state_dict(method.student.state_dict())
    tiny.loop(method)
    if not shared:
        monkeypatch.setattr(RngCapture, "replay", lambda self: nullcontext())
    (update,) = tiny.yields(method, tiny.batch(method, size=200))
    assert float(update.loss.detach()) < 1e-3 if shared else float(update.loss.detach()) > 0.01


@pytest.mark.parametrize("reduce", ["sample", "element"])
def test_both_reductions(reduce, tiny, points):
    method = tiny.make("ict", reduce=reduce, c=0.3)
    at = tiny.batch(method)
    (update,) = tiny.yields(method, at)
    (student, _, x_high, high, x_low, low, cond), _ = points[0]
    square = (student(x_high, high, cond) - student(x_low, low, cond)).square()
    norm = square.sum(1, keepdim=True) if reduce == "sample" else square
    expected = (((norm + 0.09).sqrt() - 0.3).mean(1) / (high - low)).mean()
    torch.testing.assert_close(update.loss, expected, rtol=1e-10, atol=0)


def test_dropout_is_set_everywhere_and_off_in_what_samples(tiny):
    method = tiny.make("ict", dropout=0.4)
    assert {b.dropout for b in method.student.network.blocks} == {0.4}
    tiny.loop(method)
    z, cond = torch.randn(4, 2, dtype=F64), {"label": torch.tensor([0, 1, 2, 0])}
    noise = lambda i: torch.ones(4, 2, dtype=F64)  # noqa: E731
    assert torch.equal(method.sampler()(z, cond, noise), method.sampler()(z, cond, noise))
    plain = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    ict._set_dropout(plain, 0.7)
    assert plain[1].p == 0.7


def test_one_and_two_steps_of_sampling(tiny):
    method = tiny.make("ict")
    f, cond = method.roles["student"].best, {"label": torch.tensor([0, 1, 2, 0])}
    torch.manual_seed(0)
    z, e = torch.randn(4, 2, dtype=F64), torch.randn(4, 2, dtype=F64)
    at = lambda t: torch.full((4,), t, dtype=F64)  # noqa: E731
    one = f(80.0 * z, at(80.0), cond)
    two = f(one + 0.821 * e, at(0.821), cond)
    assert torch.equal(method.sampler(steps=1)(z, cond), one)
    assert torch.equal(method.sampler()(z, cond, lambda i: e), two)
    assert float((one - two).abs().max()) > 1e-3


def test_more_steps_of_sampling(tiny):
    method = tiny.make("ict", later=(5.0, 0.4))
    f, cond = method.roles["student"].best, {"label": torch.tensor([0, 1, 2, 0])}
    z, e, e2 = (torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(k)) for k in range(3))
    at = lambda t: torch.full((4,), t, dtype=F64)  # noqa: E731
    three = f(f(f(80 * z, at(80.0), cond) + 5 * e, at(5.0), cond) + 0.4 * e2, at(0.4), cond)
    assert torch.equal(method.sampler()(z, cond, lambda i: (e, e2)[i - 1]), three)


def test_presets_survive_being_written_down():
    for preset in PRESETS.values():
        assert options_from_dict(ICTOptions, options_to_dict(preset)) == preset
    paper = PRESETS["paper-cifar10"]
    assert (paper.points(0), paper.points(paper.iterations - 1)) == (11, 1281)
    old = [PRESETS[f"paper-ct-{name}"] for name in ("cifar10", "imagenet64")]
    assert [(o.points(0), o.points(o.iterations - 1), o.mu0) for o in old] == [(2, 151, 0.9), (2, 201, 0.95)]
    assert paper.dropout == 0.3 and paper.student.kind == "radam" and isinstance(ICT, type) and VE().t_max == 80.0


def test_every_equation_of_the_docstring_is_named_beside_its_code():
    source = Path(ict.__file__).read_text()
    code = source.replace(ict.__doc__ or "", "")
    numbers = re.findall(r"^\((\d+)\)", ict.__doc__ or "", re.MULTILINE)
    assert numbers == [str(n) for n in range(1, 10)]
    assert [n for n in numbers if f"# ({n})" not in code] == []
