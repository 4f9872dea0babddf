"""Several processes against one with the whole batch: gradients, weights, totals, figures, checkpoints, signals, refusals."""

import os
import signal
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.training import (
    ALONE,
    Interrupted,
    Loop,
    LoopOptions,
    Method,
    NonFiniteError,
    OptimizerOptions,
    Role,
    TensorSource,
    Update,
    launched,
    read_metrics,
)
from limbeck.training.checkpoints import load

sys.path.insert(0, str(Path(__file__).parent))
toys = import_module("test_loop")
SGD = OptimizerOptions(lr=1e-2, kind="sgd", warmup=3, decay="cosine", clip=1.0)
WAYS = ["replicate", "shard"]


def make(world=ALONE, method=None, folder=None, **options):
    given = {"iterations": 4, "batch": 7, "log_every": 1, "checkpoint_every": 2, **options}
    method = toys.Toy(optimizer=SGD) if method is None else method
    return Loop(method, TensorSource(torch.zeros(7, 2)), LoopOptions(**given), folder=folder, quiet=True, world=world)


def whole(value):
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def tensors(loop):
    found, _ = loop.state()
    return {f"{group}.{name}": whole(v) for group, named in found.items() for name, v in named.items() if group != "rng"}


def trained(world=ALONE, **options):
    """(every gradient that an optimizer applies, figures by step, what the next iteration depends on)."""
    loop, seen = make(world, **options), []
    for name, role in loop.trained.items():
        role.optimizer.register_step_pre_hook(lambda *_, n=name, r=role: seen.append((n, [whole(p.grad) for p in r.params])))
    figures = [loop.iterate() for _ in range(loop.options.iterations)]
    return seen, figures, tensors(loop)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_two_processes_train_as_one_with_the_whole_batch(way, micro_batches, ranks):
    def work():
        with launched("cpu", way) as world:
            return trained(world, micro_batches=micro_batches)

    (seen, figures, after), other = ranks(2, work)  # 7 samples: 4 and 3
    expected, _, expected_after = trained()
    assert [name for name, _ in seen] == [name for name, _ in expected] == ["student", "critic"] * 4
    for (_, left), (_, right) in zip(seen, expected, strict=True):
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert max(float(g.abs().max()) for _, grads in seen for g in grads) > 1e-3
    assert after.keys() == expected_after.keys()
    for name, value in after.items():
        torch.testing.assert_close(value, expected_after[name], rtol=1e-10, atol=1e-12)
        assert torch.equal(value, other[2][name])
    assert figures == other[1]
    if micro_batches == 1:  # a root mean square is no mean over samples: of several parts it is the mean of theirs
        for a, b in zip(figures, trained(micro_batches=2)[1], strict=True):
            assert a == pytest.approx(b, rel=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_of_two_processes_goes_on_in_one_two_or_four(way, ranks, tmp_path):
    fresh = lambda: toys.Toy(optimizer=toys.ADAM)  # noqa: E731

    def begin():
        with launched("cpu", way) as world:
            loop = make(world, fresh(), tmp_path / "run", iterations=2)
            loop.train()
            return tensors(loop)

    def go_on():
        with launched("cpu", way) as world:
            loop = make(world, fresh())
            loop.restore(load(tmp_path / "run" / "checkpoints"))
            restored = tensors(loop)
            loop.train()
            return loop.step, restored, tensors(loop)

    saved = ranks(2, begin)[0]
    uncut = make(ALONE, fresh(), tmp_path / "one", iterations=4)
    uncut.train()
    stored = load(tmp_path / "run" / "checkpoints")
    alone = load(tmp_path / "one" / "checkpoints", 2)
    names = lambda c: {g: {n: (v.dtype, v.shape) for n, v in t.items()} for g, t in c.tensors.items()}  # noqa: E731
    assert names(stored) == names(alone) and stored.meta.keys() == alone.meta.keys()
    assert {p.name for p in stored.path.iterdir()} == {p.name for p in alone.path.iterdir()}
    for size in (1, 2, 4):
        answers = ranks(size, go_on) if size > 1 else [go_on()]
        for step, restored, after in answers:
            assert step == 4
            for name, value in restored.items():
                assert torch.equal(value, saved[name]), name
            for name, value in after.items():
                if not name.startswith("watch."):  # alarms hear root mean squares, which are those of a rank's part
                    torch.testing.assert_close(value, tensors(uncut)[name], rtol=1e-8, atol=1e-10)
    for group, named in stored.tensors.items():
        if group != "rng":
            assert all(torch.equal(v, saved[f"{group}.{n}"]) for n, v in named.items())
    file = stored.path / "student.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    damaged = load(tmp_path / "run" / "checkpoints")
    assert damaged.step == 0 and "student.safetensors does not agree with its sha256" in damaged.skipped[0]


def test_two_processes_resume_bit_for_bit_with_dropout_that_differs_between_them(ranks, tmp_path):
    optimizer = replace(toys.ADAM, decay="constant")  # which does not depend on the last iteration

    def work(folder, iterations):
        def run():
            masks = []
            torch.manual_seed(99 if (folder / "checkpoints").exists() else 5)
            with launched() as world:
                method = toys.Toy(0.5, torch.float32, optimizer)
                method.critic.network.net[2].register_forward_hook(lambda m, args, out: masks.append(out == 0))
                loop = make(world, method, folder, iterations=iterations, batch=8)
                if (folder / "checkpoints").exists():
                    loop.restore(load(folder / "checkpoints"))
                loop.train()
                return tensors(loop), masks[-1]

        return run

    (uncut, mine), (_, theirs) = ranks(2, work(tmp_path / "a", 4))
    assert mine.shape == theirs.shape and not torch.equal(mine, theirs)
    ranks(2, work(tmp_path / "b", 2))
    (resumed, again), (_, theirs_again) = ranks(2, work(tmp_path / "b", 4))
    assert torch.equal(mine, again) and torch.equal(theirs, theirs_again)
    assert uncut.keys() == resumed.keys() and all(torch.equal(v, resumed[n]) for n, v in uncut.items())


class Sometimes(Method):
    """Only samples with an odd number use the second parameter."""

    def __init__(self):
        self.net = nn.ParameterDict({n: nn.Parameter(torch.ones((), dtype=torch.float64)) for n in ("always", "odd", "never")})
        self.roles = {"student": Role(self.net, OptimizerOptions(lr=0.1))}

    def step(self, batch):
        loss = self.net["always"] * batch.index.double().mean()
        if int(batch.index[-1]) % 2:
            loss = loss + self.net["odd"]
        yield Update("student", loss)


def test_a_parameter_that_one_process_needs_is_trained_in_all_and_an_unused_one_in_none(ranks):
    def work():
        with launched() as world:
            loop = make(world, Sometimes(), batch=4, iterations=1)
            loop.iterate()
            return {n: float(p) for n, p in loop.method.net.items()}, {
                n: bool(loop.trained["student"].optimizer.state[p]) for n, p in loop.method.net.items()
            }

    (values, states), other = ranks(2, work)
    assert other[0] == values
    assert values == {"always": pytest.approx(0.9), "odd": pytest.approx(0.9), "never": 1.0}
    assert states == {"always": True, "odd": True, "never": False}


@pytest.mark.parametrize("way", WAYS)
def test_a_value_that_is_not_finite_in_one_process_stops_all(way, ranks, tmp_path):
    class Bad(toys.Toy):
        def step(self, batch):
            bad = batch.step == 2 and os.environ.get("RANK") == "1"
            loss = next(self.critic.parameters()).sum() * (float("nan") if bad else 1.0)
            yield Update("critic", loss)

    def work():
        try:
            with launched("cpu", way) as world:
                make(world, Bad(), tmp_path).train()
        except NonFiniteError as error:
            return str(error)

    answers = ranks(2, work)
    assert answers[0] == answers[1] and "the loss of the role 'critic' is nan at step 2" in answers[0]
    assert '"role": "critic"' in (tmp_path / "failure.json").read_text()
    assert load(tmp_path / "checkpoints").step == 2


@pytest.mark.parametrize("way, signum", [("replicate", signal.SIGTERM), ("shard", signal.SIGINT)])
def test_a_signal_to_one_process_stops_all_after_the_same_step_with_a_checkpoint(way, signum, ranks, tmp_path):
    def work():
        try:
            with launched("cpu", way) as world:
                loop = make(world, folder=tmp_path, iterations=50)
                iterate = loop.iterate

                def until():
                    if loop.step == 5 and world.rank == 1:
                        os.kill(os.getpid(), signum)
                    return iterate()

                loop.iterate = until
                loop.train()
        except Interrupted as error:
            return str(error), error.exit_code, loop.step

    answers = ranks(2, work)
    assert answers[0] == answers[1]
    text, code, step = answers[0]
    assert f"stopped by {signum.name} after step {step}" in text and code == 128 + signum and step in (6, 7)
    assert load(tmp_path / "checkpoints").step == step
    assert read_metrics(tmp_path / "metrics.jsonl")["loss/student"][0] == list(range(1, step + 1))  # rank 0 alone wrote them


@pytest.mark.parametrize("way", WAYS)
def test_rank_0_judges_and_all_know_the_best(way, ranks, tmp_path):
    def work():
        judged = []

        def judge(step):
            judged.append(step)
            return {"score": [3.0, 1.0, 2.0, 1.5][step - 1] + float(os.environ["RANK"])}

        with launched("cpu", way) as world:
            loop = make(world, folder=tmp_path, evaluate_every=1, checkpoint_every=0)
            loop.evaluate, loop.best = judge, "score"
            loop.train()
            return judged

    mine, theirs = ranks(2, work)
    assert mine == [1, 2, 3, 4] and theirs == ([] if way == "replicate" else mine)
    assert load(tmp_path / "checkpoints", "best").step == 2
    assert read_metrics(tmp_path / "metrics.jsonl")["score"][1] == [3.0, 1.0, 2.0, 1.5]


def test_roles_start_as_those_of_rank_0_and_coming_apart_is_noticed(ranks, tmp_path):
    def work():
        with launched() as world:
            method = toys.Toy(optimizer=SGD)
            with torch.no_grad():
                for module in (method.teacher, method.critic):
                    next(module.parameters()).add_(world.rank)
            loop = make(world, method, tmp_path)
            told = [float(next(m.parameters()).detach().sum()) for m in (method.teacher, method.critic)]
            method.finish = lambda step: next(method.student.parameters()).data.add_(world.rank)
            try:
                loop.train()
            except LimbeckError as error:
                return told, str(error)

    answers = ranks(2, work)
    method = toys.Toy(optimizer=SGD)
    assert (
        answers[0][0] == answers[1][0] == [float(next(m.parameters()).detach().sum()) for m in (method.teacher, method.critic)]
    )
    assert answers[0][1] == answers[1][1]
    assert "the weights of the role 'student' differ between processes at step 2; draw noise from batch.noise" in answers[0][1]
