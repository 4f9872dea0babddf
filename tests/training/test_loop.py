"""The loop: lockstep accumulation, bitwise resume, guards, failures and signals."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError
from limbeck.losses import denoising_loss
from limbeck.noise import VE, LogNormal
from limbeck.rules import DistributionMatching, Sample, surrogate
from limbeck.training import (
    EmaOptions,
    Interrupted,
    Loop,
    LoopOptions,
    Method,
    NonFiniteError,
    OptimizerOptions,
    Role,
    TensorSource,
    Total,
    Update,
    set_precision,
)
from limbeck.training.checkpoints import load

HALF_LIFE = EmaOptions("half_life", 5.0)
ADAM = OptimizerOptions(lr=1e-2, warmup=3, decay="cosine", clip=1.0)


class Net(nn.Module):
    null = None

    def __init__(self, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, 2))

    def forward(self, x, c_noise, cond=None):
        return self.net(torch.cat([x, c_noise[:, None]], 1))


class Toy(Method):
    """A small DMD with a whole-batch statistic: roles, alternation and a Total."""

    def __init__(self, dropout=0.0, dtype=torch.float64, optimizer=ADAM, ema=HALF_LIFE):
        torch.manual_seed(0)
        make = lambda: Preconditioned(Net(dropout), VE(), "edm", 1.0).to(dtype)  # noqa: E731
        self.teacher, self.student, self.critic = make(), make(), make()
        self.roles = {
            "teacher": Role(self.teacher),
            "student": Role(self.student, optimizer, ema),
            "critic": Role(self.critic, optimizer),
        }
        self.rule, self.times, self.dtype = DistributionMatching(self.teacher, self.critic), LogNormal(), dtype
        self.gradients = []

    def step(self, batch):
        normal = lambda name: batch.noise.normal(name, (2,), self.dtype)  # noqa: E731
        t = torch.full((batch.size,), 2.0, dtype=torch.float64)
        x = self.student(2 * normal("z"), t)
        pull = self.rule(Sample(x), self.times(batch.noise.uniform("t")), normal("e"))
        size = yield Total(pull.gradient.square().sum())
        yield Update("student", surrogate(x, pull.gradient / size.sqrt()), pull.logs)
        with torch.no_grad():
            x = self.student(2 * normal("z"), t)
        yield Update("critic", denoising_loss(self.critic, x, self.times(batch.noise.uniform("u")), normal("f")))


def make(method=None, folder=None, **options):
    method = Toy() if method is None else method
    given = {"iterations": 6, "batch": 12, "log_every": 1, "checkpoint_every": 2, **options}
    return Loop(method, TensorSource(torch.zeros(7, 2)), LoopOptions(**given), folder=folder, quiet=True)


def weights(loop):
    tensors, _ = loop.state()
    return {f"{g}.{n}": v for g, named in tensors.items() for n, v in named.items() if g != "rng"}


def record_gradients(loop):
    """Keep every role's gradient as it is when the loop is about to apply it."""
    seen, apply = [], loop._apply

    def spy(name, loss):
        seen.append((name, [p.grad.clone() for p in loop.trained[name].params]))
        return apply(name, loss)

    loop._apply = spy
    return seen


@pytest.mark.parametrize("pieces", [2, 3, 5, 12])
def test_lockstep_equals_the_large_batch_at_every_yield(pieces):
    whole, split = make(), make(micro_batches=pieces)
    a, b = record_gradients(whole), record_gradients(split)
    whole.train()
    split.train()
    assert [name for name, _ in a] == [name for name, _ in b] == ["student", "critic"] * 6
    for (_, left), (_, right) in zip(a, b, strict=True):
        for x, y in zip(left, right, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)
    assert max(float(g.abs().max()) for _, grads in a for g in grads) > 1e-3


def test_only_the_named_role_gets_gradients_and_the_teacher_never_moves():
    loop = make()
    before = [p.clone() for p in loop.method.teacher.parameters()]
    seen = record_gradients(loop)
    apply = loop._apply

    def strict(name, loss):
        others = [p for n, t in loop.trained.items() if n != name for p in t.params]
        assert all(p.grad is None for p in [*others, *loop.method.teacher.parameters()])
        return apply(name, loss)

    loop._apply = strict
    loop.train()
    assert seen and all(torch.equal(p, q) for p, q in zip(before, loop.method.teacher.parameters(), strict=True))


def test_resume_is_bitwise_with_dropout_radam_and_ema(tmp_path):
    options = replace(ADAM, kind="radam", betas=(0.9, 0.99))
    fresh = lambda: Toy(0.5, torch.float32, options, EmaOptions("inverse", 0.3))  # noqa: E731
    torch.manual_seed(5)
    whole = make(fresh(), tmp_path / "whole")
    torch.manual_seed(5)
    whole.train()
    torch.manual_seed(5)
    stopped = make(fresh(), tmp_path / "stopped")
    torch.manual_seed(5)
    iterate = stopped.iterate

    def stop_in_the_middle():
        figures = iterate()
        if stopped.step == 4:
            stopped._signal = signal.SIGTERM
        return figures

    stopped.iterate = stop_in_the_middle
    with pytest.raises(Interrupted, match="SIGTERM after step 4") as caught:
        stopped.train()
    assert caught.value.exit_code == 143
    torch.manual_seed(99)  # nothing of this process's state may matter
    resumed = make(fresh(), tmp_path / "stopped")
    resumed.restore(load(tmp_path / "stopped" / "checkpoints"))
    assert resumed.step == 4
    resumed.train()
    a, b = weights(whole), weights(resumed)
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        assert torch.equal(a[name], b[name]), name
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "stopped")]
    assert lines[0] == lines[1] and lines[0].count("\n") == 6


SCRIPT = """
import os, random, signal, sys
import numpy, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_loop import Toy, make
from limbeck.training.checkpoints import load

torch.set_num_threads(1)
folder, stop_after = Path(sys.argv[1]), int(sys.argv[2])
loop = make(Toy(0.5, torch.float32), folder, iterations=8, checkpoint_every=3)
for seed in (torch.manual_seed, random.seed, numpy.random.seed):
    seed(5)
if (folder / "checkpoints").exists():
    loop.restore(load(folder / "checkpoints"))
iterate = loop.iterate

def until():
    figures = iterate()
    if loop.step == stop_after:
        os.kill(os.getpid(), signal.SIGINT)
    return figures

loop.iterate = until
loop.train()
"""


def run_script(tmp_path, folder, stop_after):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(tests=os.path.dirname(__file__)))
    env = {**os.environ, "LIMBECK_TYPECHECK": "0"}
    return subprocess.run([sys.executable, script, folder, str(stop_after)], capture_output=True, text=True, env=env)


def test_resume_in_a_new_process_after_sigint_is_bitwise(tmp_path):
    first = run_script(tmp_path, tmp_path / "a", 4)
    assert "Interrupted" in first.stderr and "SIGINT after step 4" in first.stderr
    assert run_script(tmp_path, tmp_path / "a", 0).returncode == 0
    assert run_script(tmp_path, tmp_path / "b", 0).returncode == 0
    a, b = load(tmp_path / "a" / "checkpoints"), load(tmp_path / "b" / "checkpoints")
    assert a.step == b.step == 8
    for group in b.tensors:
        for name, value in b.tensors[group].items():
            assert torch.equal(a.tensors[group][name], value), (group, name)


class Broken(Toy):
    """Misbehaves at step 2 in the way it is told."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def step(self, batch):
        if batch.step < 2:
            yield from super().step(batch)
            return
        if self.how == "nan":
            yield Update("critic", next(self.critic.parameters()).sum() * float("nan"))
        if self.how == "gradient":  # finite value, infinite derivative
            yield Update("student", (next(self.student.parameters()).sum() * 0).sqrt())
        if self.how == "no_grad":
            with torch.no_grad():
                yield Total(torch.ones(()))
        if self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                yield Total(torch.ones(()))
        if self.how == "lockstep" and int(batch.index[0]) % 12 == 0:
            yield Total(torch.ones(()))
        if self.how == "stranger":
            yield Update("teacher", next(self.critic.parameters()).sum())
        if self.how == "constant":
            yield Update("student", torch.ones(()))


@pytest.mark.parametrize("how, role", [("nan", "critic"), ("gradient", "student")])
def test_non_finite_values_stop_the_run_and_can_be_replayed(how, role, tmp_path):
    loop = make(Broken(how), tmp_path)
    with pytest.raises(NonFiniteError, match=f"role '{role}' is .* at step 2.*--resume"):
        loop.train()
    assert f'"role": "{role}"' in (tmp_path / "failure.json").read_text()
    again = make(Broken(how), tmp_path)
    again.restore(load(tmp_path / "checkpoints"))
    with pytest.raises(NonFiniteError, match=f"role '{role}' is .* at step 2"):
        again.train()


@pytest.mark.parametrize(
    "how, message",
    [
        ("no_grad", "yielded inside no_grad or autocast"),
        ("autocast", "yielded inside no_grad or autocast"),
        ("lockstep", "left lockstep"),
        ("stranger", "unknown trained role 'teacher'"),
        ("constant", "does not depend on its parameters"),
    ],
)
def test_a_method_that_breaks_the_contract_is_told(how, message):
    with pytest.raises(LimbeckError, match=message):
        make(Broken(how), micro_batches=2).train()
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_learning_rates_and_averages_are_the_formulas():
    options = OptimizerOptions(lr=2.0, warmup=4, decay="cosine", final=0.1)
    rates = [options.lr_at(step, 20) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[12] == pytest.approx(2.0 * 0.55)  # half-way between 1 and 0.1
    assert min(rates[4:]) == rates[-1] > 0.2
    assert OptimizerOptions(lr=1.0).lr_at(7, 9) == 1.0
    halved = replace(options, halve_every=5, anew=(12,))
    plain = replace(options, anew=(12,))
    factors = [1.0] * 5 + [0.5] * 5 + [0.25] * 2 + [1.0] * 5 + [0.5] * 3  # the count begins again with the schedule
    assert [halved.lr_at(k, 20) for k in range(20)] == pytest.approx([f * plain.lr_at(k, 20) for k, f in enumerate(factors)])
    with pytest.raises(LimbeckError, match="halve_every=-1 is a number of iterations, or 0"):
        OptimizerOptions(halve_every=-1)
    twice = replace(options, restarts=2)
    assert [twice.lr_at(step, 40) for step in range(40)] == 2 * rates
    assert [twice.lr_at(step, 39) for step in range(39)] == (2 * rates)[:-1]
    with pytest.raises(LimbeckError, match="restarts=0: warm-up and decay run at least once"):
        OptimizerOptions(restarts=0)
    assert EmaOptions("constant", 0.9).decay(5) == 0.9
    assert EmaOptions("half_life", 10.0).decay(3) ** 10 == pytest.approx(0.5)
    assert EmaOptions("half_life", 10.0, ramp=0.05).decay(20) == pytest.approx(0.5)
    assert EmaOptions("inverse", 0.05).decay(20) == pytest.approx(0.5)
    # a power average weights step k of n like k^value: compare with the closed form of its profile
    n, value = 2000, 5.0
    weight, profile = 1.0, []
    for k in range(n, 0, -1):
        profile.append(weight * (1 - EmaOptions("power", value).decay(k)))
        weight *= EmaOptions("power", value).decay(k)
    ideal = [(value + 1) / n * (k / n) ** value for k in range(n, 0, -1)]
    assert sum(profile) == pytest.approx(1.0)
    assert max(abs(p - q) for p, q in zip(profile, ideal, strict=True)) < 0.02 * ideal[0]


def test_ema_follows_the_recursion():
    loop = make(iterations=4)
    shadow = [p.clone() for p in loop.method.student.parameters()]
    for k in range(1, 5):
        loop.iterate()
        beta = loop.method.roles["student"].ema_options.decay(k)
        shadow = [beta * s + (1 - beta) * p.detach() for s, p in zip(shadow, loop.method.student.parameters(), strict=True)]
        for s, p in zip(shadow, loop.method.roles["student"].ema.parameters(), strict=True):
            torch.testing.assert_close(s, p, rtol=1e-13, atol=1e-15)


def test_precision_is_the_networks_alone():
    method = Toy(dtype=torch.float32)
    seen = []
    method.student.network.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    set_precision(method.roles, torch.bfloat16)
    loop = make(method)
    loop.train()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in method.student.parameters()} == {torch.float32}
    assert method.roles["student"].ema.compute_dtype == torch.bfloat16
    set_precision(method.roles, None)
    seen.clear()
    loop.options = replace(loop.options, iterations=7)
    loop.iterate()
    assert set(seen) == {torch.float32}
    with pytest.raises(LimbeckError, match="role 'student' is a Linear, which cannot be run in torch.bfloat16"):
        set_precision({"student": Role(nn.Linear(1, 1))}, torch.bfloat16)


def test_impossible_options_say_so():
    with pytest.raises(LimbeckError, match="at most as many micro-batches"):
        LoopOptions(iterations=1, batch=2, micro_batches=3)
    with pytest.raises(LimbeckError, match="none of its parameters requires a gradient"):
        method = Toy()
        method.student.requires_grad_(False)
        make(method)


def test_values_are_clipped_after_the_norm():
    def change(**clips):
        method = Toy(optimizer=OptimizerOptions(lr=1.0, kind="sgd", **clips))
        before = [p.clone() for p in method.student.parameters()]
        made = Loop(method, TensorSource(torch.zeros(8, 2, dtype=torch.float64)), LoopOptions(1, 8), quiet=True)
        figures = made.iterate()
        return [p.detach() - b.detach() for p, b in zip(method.student.parameters(), before, strict=True)], figures[
            "grad_norm/student"
        ]

    (plain, norm), (short, _) = change(), change(clip=0.01)
    (both, same), (value, _) = change(clip=0.01, clip_value=2e-3), change(clip_value=2e-3)
    assert same == norm > 0.01 and max(float(d.abs().max()) for d in short) > 2e-3  # both clips act
    for a, b, c, d in zip(plain, short, both, value, strict=True):
        torch.testing.assert_close(b, a * (0.01 / norm), rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(c, b.clamp(-2e-3, 2e-3), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(d, a.clamp(-2e-3, 2e-3), rtol=1e-12, atol=1e-15)
    with pytest.raises(LimbeckError, match="clip_value=0 would leave no gradient; give a positive value, or None"):
        OptimizerOptions(clip_value=0.0)
