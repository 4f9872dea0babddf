"""8-bit Adam through bitsandbytes: what is asked of it, bitwise resume from our own checkpoints, and what is said without it."""

import sys
import types

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.training import Loop, LoopOptions, Method, OptimizerOptions, Role, TensorSource, Update
from limbeck.training.checkpoints import load
from limbeck.training.optimizers import Trained

EIGHT = ("adam8bit", "adamw8bit")


class Eight(torch.optim.Optimizer):
    """Adam's moments as bitsandbytes keeps them: bytes with one scale per tensor, and the step as a Python integer."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "qmap": torch.linspace(0, 1, 256)}
                    state |= {k: torch.zeros_like(p, dtype=torch.uint8) for k in ("state1", "state2")}
                    state |= {"absmax1": p.new_zeros(1), "absmax2": p.new_zeros(1)}
                assert type(state["step"]) is int  # what the compiled library asks for
                state["step"] += 1
                size = p.grad.abs().max()
                state["absmax1"].lerp_(size, 1 - group["betas"][0])
                state["state1"].copy_((255 * p.grad.abs() / size).round())
                move = state["qmap"][state["state1"].long()] * state["absmax1"] * p.grad.sign()
                p.sub_(group["lr"] * (move / state["step"] + group["weight_decay"] * p))


class Decayed(Eight):
    pass


@pytest.fixture
def bitsandbytes(monkeypatch):
    fake = types.ModuleType("bitsandbytes")
    fake.optim = types.SimpleNamespace(Adam8bit=Eight, AdamW8bit=Decayed)
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake)


class Regression(Method):
    def __init__(self, kind):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 80), nn.SiLU(), nn.Linear(80, 80), nn.Linear(80, 4))
        self.roles = {"net": Role(self.net, OptimizerOptions(lr=1e-2, kind=kind, betas=(0.5, 0.99), weight_decay=0.1))}

    def step(self, batch):
        x = batch.noise.normal("x", (4,), torch.float32)
        yield Update("net", (self.net(x) - x).square().mean())


def loop(kind, folder=None):
    options = LoopOptions(6, 8, checkpoint_every=3)
    return Loop(Regression(kind), TensorSource(torch.zeros(4, 4)), options, folder=folder, quiet=True)


@pytest.mark.parametrize("kind, expected", [("adam8bit", Eight), ("adamw8bit", Decayed)])
def test_the_kind_names_the_optimizer_and_its_options_reach_it(bitsandbytes, kind, expected):
    optimizer = loop(kind).trained["net"].optimizer
    assert type(optimizer) is expected
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-2, (0.5, 0.99), 1e-8, 0.1)


def resumed_as_whole(kind, folder):
    whole, first = loop(kind), loop(kind, folder)
    losses = [whole.iterate()["loss/net"] for _ in range(6)]
    for _ in range(3):
        first.iterate()
    first.save()
    second = loop(kind, folder)
    second.restore(load(folder / "checkpoints"))
    assert [second.iterate()["loss/net"] for _ in range(3)] == losses[3:] and losses[-1] < losses[0]
    a, b = whole.state()[0], second.state()[0]
    for group in ("net", "net.optimizer"):
        assert a[group].keys() == b[group].keys()
        assert all(torch.equal(v, b[group][n]) and v.dtype == b[group][n].dtype for n, v in a[group].items()), group
    return a["net.optimizer"]


@pytest.mark.parametrize("kind", EIGHT)
def test_resume_is_bitwise(bitsandbytes, kind, tmp_path):
    state = resumed_as_whole(kind, tmp_path)
    assert state["0.weight/state1"].dtype == torch.uint8 and int(state["0.weight/step"]) == 6


@pytest.mark.parametrize("kind", EIGHT)
def test_resume_is_bitwise_with_the_library_itself(kind, tmp_path):
    pytest.importorskip("bitsandbytes")
    state = resumed_as_whole(kind, tmp_path)
    assert state["2.weight/state1"].dtype == torch.uint8  # 6400 numbers; small tensors stay in float32
    assert state["0.weight/state1"].dtype == torch.float32


@pytest.mark.parametrize("kind", EIGHT)
def test_without_the_library_it_says_what_to_install(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(LimbeckError, match=f"the optimizer '{kind}' needs bitsandbytes; pip install bitsandbytes"):
        loop(kind)


def test_unknown_kinds_are_named():
    options = OptimizerOptions()
    object.__setattr__(options, "kind", "adam88bit")
    with pytest.raises(LimbeckError, match="unknown optimizer 'adam88bit': did you mean 'adam8bit'"):
        Trained.of("net", Role(nn.Linear(2, 2), options))


class Rated(Method):
    def __init__(self, rates):
        self.net = nn.ParameterDict({n: nn.Parameter(torch.ones(3, dtype=torch.float64)) for n in ("slow", "fast", "plain")})
        self.roles = {"net": Role(self.net, OptimizerOptions(lr=1e-2, betas=(0.9, 0.99), warmup=3), rates=rates)}

    def step(self, batch):
        yield Update("net", sum((p.square() * torch.arange(1, 4)).sum() for p in self.net.values()))


def test_a_rate_multiplies_the_learning_rate_of_the_parameters_of_that_name():
    moved = {}
    for name, rates in {"none": None, "own": {"slow": 0.1, "fast": 5.0}}.items():
        method = Rated(rates)
        Loop(method, TensorSource(None, size=1), LoopOptions(1, 1), quiet=True).iterate()
        moved[name] = {n: 1 - p.detach() for n, p in method.net.items()}
    for n, factor in {"slow": 0.1, "fast": 5.0, "plain": 1.0}.items():  # Adam's first step is the learning rate itself
        torch.testing.assert_close(moved["own"][n], factor * moved["none"][n], rtol=1e-12, atol=0)


def test_rates_survive_a_resume_bit_for_bit(tmp_path):
    def loop(folder=None):
        return Loop(Rated({"slow": 0.1, "fast": 5.0}), TensorSource(None, size=1), LoopOptions(6, 1), folder=folder, quiet=True)

    whole, first, again = loop(), loop(tmp_path), loop()
    for _ in range(6):
        whole.iterate()
    for _ in range(3):
        first.iterate()
    first.save()
    again.restore(load(tmp_path / "checkpoints"))
    while again.step < 6:
        again.iterate()
    assert all(torch.equal(a, b) for a, b in zip(whole.method.net.values(), again.method.net.values(), strict=True))
