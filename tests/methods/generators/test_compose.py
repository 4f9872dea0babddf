"""What goes together: every legal pair of choices trains on a closed-form teacher, every other pair is refused with its reason."""

import itertools
import warnings
from dataclasses import replace

import pytest
import torch

from limbeck.denoisers import MixtureDenoiser
from limbeck.errors import LimbeckError
from limbeck.methods.generators.compose import AXES, REFUSED, Compose, ComposeOptions, refusal
from limbeck.methods.generators.disback import DisBack, DisBackOptions
from limbeck.noise import VE
from limbeck.training import Loop, LoopOptions, OptimizerOptions, TensorSource
from limbeck.training.checkpoints import load

F64 = torch.float64
DEFAULT = {axis: values[0] for axis, values in AXES.items()}
ADAM = OptimizerOptions(lr=1e-2, clip=1.0)
ITERATIONS = 4


def covering(axes, legal):
    """Rows of choices, one value per axis, that hold every legal pair of values of two axes at least once (greedy)."""
    names = list(axes)
    pairs = {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(names, 2)
        for x in axes[a]
        for y in axes[b]
        if legal({a: x, b: y})
    }
    rows = []
    while pairs:
        row = dict(min(pairs, key=sorted))
        for axis in names:
            if axis not in row:
                fitting = [v for v in axes[axis] if legal({**row, axis: v})]
                row[axis] = max(fitting, key=lambda v: sum(frozenset([(axis, v), old]) in pairs for old in row.items()))
        held = {frozenset(pair) for pair in itertools.combinations(row.items(), 2)} & pairs
        assert held, "the array would not end"
        pairs -= held
        rows.append({axis: row[axis] for axis in names})
    return rows


def legal(choice):
    return refusal(choice) is None


ROWS = covering(AXES, legal)


def options(row, iterations=ITERATIONS):
    """The options of a row, but for its target."""
    adversary = {} if row["adversary"] == "none" else {"gan_weight": 0.1, "gan_on": row["adversary"]}
    ranks = {"student_rank": 2, "critic_rank": 1} if row["weights"] == "low-rank" else {}
    sigmas = (2.5,) if row["producer"] == "steps" and row["rule"] in ("sid", "sim") else (4.0, 0.5)
    return ComposeOptions(
        iterations=iterations, batch=8, student=ADAM, critic=ADAM, discriminator=ADAM, sigmas=sigmas, rule=row["rule"],
        producer=row["producer"], strategy=row["strategy"], **adversary, **ranks,
    )  # fmt: skip


def made(row, tiny, parts=None):
    """A method for a row of choices, on a mixture in closed form: student and critic start as a network of their own."""
    if parts is None:
        labels = torch.arange(6) % 3
        teacher = MixtureDenoiser.ring(6, 1.0, 0.2, VE(), labels=labels)
        parts = replace(tiny.ingredients(), teacher=teacher, start=tiny.teacher(seed=1))
    torch.manual_seed(0)
    o = options(row)
    if row["target"] == "teacher":
        return Compose(parts, o)
    own = {n: getattr(o, n) for n in ("rule", "producer", "strategy")}
    shared = {n: getattr(o, n) for n in DisBackOptions.__dataclass_fields__ if n in ComposeOptions.__dataclass_fields__}
    shared |= {"iterations": 8, "student_after": 0}
    return DisBack(parts, DisBackOptions(**shared, host="compose", host_options=own, degrade=2, every=1, interval=2))


def run(method, iterations):
    loop = Loop(method, TensorSource(*_data()), LoopOptions(8, 8, seed=1), quiet=True)
    for _ in range(iterations):
        loop.iterate()
    return loop


def _data():
    generator = torch.Generator().manual_seed(7)
    return 0.5 * torch.randn(10, 2, generator=generator, dtype=F64), {"label": torch.arange(10) % 3}


def test_the_array_holds_every_legal_pair():
    for a, b in itertools.combinations(AXES, 2):
        for x, y in itertools.product(AXES[a], AXES[b]):
            assert any(row[a] == x and row[b] == y for row in ROWS) == legal({a: x, b: y}), (a, x, b, y)
    assert len(ROWS) < 100


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row.values()))
def test_every_legal_pair_of_choices_trains(row, tiny):
    method = made(row, tiny)
    before = {n: p.clone() for n, p in method.roles["student"].module.named_parameters()}
    teacher = method.roles["teacher"].module
    held = {n: p.clone() for n, p in [*teacher.named_parameters(), *teacher.named_buffers()]}
    loop = run(method, ITERATIONS)
    moved = [float((p - before[n]).abs().max()) for n, p in method.roles["student"].module.named_parameters()]
    assert max(moved) > 1e-6 and all(v == v for v in moved)
    assert all(torch.equal(p, held[n]) for n, p in [*teacher.named_parameters(), *teacher.named_buffers()])
    z, cond = torch.randn(5, 2, dtype=F64), {"label": torch.arange(5) % 3}
    x = method.sampler()(z, cond, lambda i: torch.zeros_like(z))
    assert x.shape == z.shape and bool(torch.isfinite(x).all()) and loop.step == ITERATIONS


@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: f"{r.axis}-{r.other}")
def test_every_other_pair_is_refused_with_its_reason(refused, tiny):
    for x, y in itertools.product(refused.values, refused.others):
        row = {**DEFAULT, refused.axis: x, refused.other: y}
        if refused.axis == "rule" and refused.other != "adversary":
            row["adversary"] = "teacher"  # or the divergence is refused for want of it
        said = "a path is what one critic was" if row["target"] == "backtracking" else refused.reason  # DisBack's own words
        with pytest.raises(LimbeckError) as error:
            made(row, tiny)
        assert said in str(error.value), row


def test_what_the_task_lacks_is_named(tiny):
    row = {**DEFAULT, "adversary": "teacher"}
    with pytest.raises(LimbeckError, match="gan_weight > 0 needs real images"):
        made(row, tiny, tiny.ingredients(images=False))
    with pytest.raises(LimbeckError, match="needs a null condition"):
        made({**DEFAULT, "strategy": "teacher"}, tiny, tiny.ingredients(classes=0))
    with pytest.raises(LimbeckError, match="sets the guidance"):
        Compose(tiny.ingredients(), ComposeOptions(strategy="zero", guidance=2.0))
    with pytest.raises(LimbeckError, match="unknown rule 'skl'"):
        Compose(tiny.ingredients(), ComposeOptions(rule="skl"))
    with pytest.raises(LimbeckError, match="phases need at least two steps"):
        Compose(tiny.ingredients(), ComposeOptions(producer="phases"))


def test_bins_with_too_few_samples(tiny):
    own = {"rule": "js", "gan_weight": 0.1, "ratio_ema": 0.0}
    with pytest.warns(UserWarning, match=r"a batch of 8 puts 0.8 samples into each of 10 time bins: with ratio_ema=0 "):
        Compose(tiny.ingredients(), ComposeOptions(batch=8, **own))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Compose(tiny.ingredients(), ComposeOptions(batch=160, **own))


@pytest.mark.parametrize("strategy", AXES["strategy"])
def test_a_guided_critic_learns_the_null_condition(strategy, tiny):
    method = tiny.make("compose", strategy=strategy)
    drop = 0.0 if strategy in ("none", "teacher") else 0.1
    assert method.options.critic_drop == drop
    at = tiny.batch(method, size=200)
    seen = method.critic_condition(at, at.cond)["label"]
    assert torch.equal(seen == 3, at.noise.uniform("critic drop") < drop)
    assert tiny.make("compose", strategy=strategy, critic_drop=0.3).options.critic_drop == 0.3


@pytest.mark.parametrize("name, rule", [("dmd", "rkl"), ("sid", "sid"), ("sim", "sim")])
def test_the_named_systems_are_compositions(name, rule, tiny):
    own = {"alpha": 1.0} if name == "sid" else {}
    same = {"iterations": 8, "batch": 6, "sigmas": (5.0, 1.0), "student": ADAM, "critic": ADAM, "gan_time": "own"}
    system, composed = tiny.make(name, **same, **own), tiny.make("compose", rule=rule, **same)
    loops = [tiny.loop(system), tiny.loop(composed)]
    for loop in loops:
        for _ in range(3):
            loop.iterate()
    a, b = (tiny.weights(loop) for loop in loops)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("producer", ["segments", "phases"])
def test_resuming_is_bitwise(producer, tiny, tmp_path):
    how = {"rule": "js", "producer": producer, "gan_weight": 0.1, "sigmas": (4.0, 0.5)}
    whole, first = tiny.loop(tiny.make("compose", **how)), tiny.loop(tiny.make("compose", **how), tmp_path)
    for _ in range(6):
        whole.iterate()
    for _ in range(3):
        first.iterate()
    first.save()
    second = tiny.loop(tiny.make("compose", **how), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(3):
        second.iterate()
    a, b = tiny.weights(whole), tiny.weights(second)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
