"""Split weights: what the parts are, what they are between two calls, and what is refused."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError
from limbeck.networks import FeatureTap, ResidualMLP, UNet, adapted
from limbeck.noise import VE
from limbeck.rules import frozen
from limbeck.training import Loop, LoopOptions, OptimizerOptions, Role, TensorSource, checkpoint_roles, launched, placed
from limbeck.training.shards import units

sys.path.insert(0, str(Path(__file__).parent))
toys = import_module("test_loop")
SGD = OptimizerOptions(lr=1e-2, kind="sgd")
SOURCE = TensorSource(torch.zeros(7, 2))


def names(module):
    known = {id(m): name for name, m in module.named_modules()}
    return [known[id(m)] for m in units(module)]


def test_parts_are_the_members_of_lists_and_what_stands_beside_them():
    net = ResidualMLP((2,), width=8, blocks=2, embedding=8)
    expected = ["conditioning", "input", "blocks.0", "blocks.1", "norm", "output"]
    assert names(net) == expected
    assert names(Preconditioned(net, VE(), "edm")) == [f"network.{name}" for name in expected]
    deep = UNet((1, 8, 8), channels=16, multipliers=(1, 2), blocks=1, attention=())
    assert {"encoder.0.0", "encoder.1.0", "middle.0", "decoder.0.0"} <= set(names(deep)) and "down.0" not in names(deep)
    assert names(nn.Sequential(nn.Linear(2, 2), nn.SiLU())) == ["0"]


@pytest.mark.parametrize("size", [2, 3])
def test_between_two_calls_a_modules_parameters_are_its_shards(size, ranks):
    def work():
        with launched("cpu", "shard") as world:
            method = toys.Toy(optimizer=SGD)
            before = {n: p.detach().clone() for n, p in method.student.named_parameters()}
            loop = Loop(method, SOURCE, LoopOptions(2, 6), quiet=True, world=world)
            params, found = dict(method.student.named_parameters()), []
            assert all(torch.equal(p.full_tensor(), before[n]) for n, p in params.items())  # a part of each, and together all
            x, t = torch.zeros(3, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
            with frozen(method.student):
                method.student(x.requires_grad_(), t).sum().backward()
                found.append(all(p.grad is None for p in params.values()))
            loss = method.student(x, t).sum()
            found.append(all(p is params[n] and p.requires_grad for n, p in method.student.named_parameters()))
            loss.backward()
            found.append(all(p is params[n] and p.grad is not None for n, p in method.student.named_parameters()))
            with world.gathered(method.student):
                state = method.student.state_dict()
                found.append(all(torch.equal(state[n], v) for n, v in before.items()))
            found.append(all(p is params[n] for n, p in method.student.named_parameters()))
            split = {n: placed(v, params[n]) for n, v in before.items()}
            found.append(all(torch.equal(v.to_local(), params[n].to_local()) for n, v in split.items()))
            held = sum(p.to_local().numel() for p in params.values())
            loop.iterate()
            return found, held

    answers = ranks(size, work)
    assert [found for found, _ in answers] == [[True] * 6] * size
    assert sum(held for _, held in answers) == sum(p.numel() for p in toys.Toy().student.parameters())


def test_offload_and_split_weights_exclude_each_other(ranks):
    def work():
        with (
            launched("cpu", "shard") as world,
            pytest.raises(LimbeckError, match="shard splits what --offload would move away"),
        ):
            Loop(toys.Toy(), SOURCE, LoopOptions(1, 4), quiet=True, world=world, offload=True)

    ranks(2, work)


@pytest.mark.parametrize("how", ["offload", "gradient checkpointing"])
def test_what_saves_memory_changes_nothing(how, ranks):
    """Offload with replicas, gradient checkpointing with split weights."""

    def made():
        torch.manual_seed(0)
        network = ResidualMLP((2,), width=8, blocks=2, embedding=8).double()
        for p in network.parameters():
            nn.init.normal_(p, std=0.3)
        method = toys.Toy(optimizer=SGD)
        method.critic = Preconditioned(network, VE(), "edm", 1.0)
        method.rule.critic = method.critic
        method.roles["critic"] = Role(method.critic, SGD)
        if how != "offload":
            checkpoint_roles({"critic": method.roles["critic"]})
        return method

    def work():
        with launched("cpu", "replicate" if how == "offload" else "shard") as world:
            loop = Loop(made(), SOURCE, LoopOptions(3, 6), quiet=True, world=world, offload=how == "offload")
            loop.train()
            return [getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for p in loop.method.critic.parameters()]

    alone = Loop(made(), SOURCE, LoopOptions(3, 6), quiet=True)
    alone.train()
    for answer in ranks(2, work):
        for a, b in zip(answer, alone.method.critic.parameters(), strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-10, atol=1e-12)


def test_a_null_text_is_whole(ranks):
    def work():
        with launched("cpu", "shard") as world:
            method = toys.Toy(optimizer=SGD)
            network = UNet((1, 8, 8), channels=16, multipliers=(1,), blocks=1, attention=(8,), text=(3, 4))
            method.roles["student"] = Role(network, SGD)
            Loop(method, SOURCE, LoopOptions(1, 4), quiet=True, world=world)
            return type(network.null["text"]) is torch.Tensor, tuple(network.null["text"].shape)

    assert ranks(2, work) == [(True, (3, 4))] * 2


def refused(ranks, method, use=lambda method: None):
    def work():
        try:
            with launched("cpu", "shard") as world:
                made = method()
                Loop(made, SOURCE, LoopOptions(1, 4), quiet=True, world=world)
                use(made)
        except LimbeckError as error:
            return str(error)

    answers = ranks(2, work)
    assert answers[0] == answers[1]
    return answers[0]


def test_what_cannot_be_split_is_refused_with_the_way_out(ranks):
    def shared():
        method = toys.Toy()
        method.roles["student"] = Role(adapted(method.teacher, 2), SGD)
        return method

    text = refused(ranks, shared)
    assert "the roles 'teacher' and 'student' share weights (network.net.0.base.weight, ...)" in text
    assert "use --parallel replicate, or train all weights" in text

    def whole_only():
        method = toys.Toy()
        method.whole = "its average is elsewhere"
        return method

    assert "the weights of Toy cannot be split over processes: its average is elsewhere; use --parallel replicate" in refused(
        ranks, whole_only
    )

    def eight_bit():
        method = toys.Toy(optimizer=SGD)
        method.roles["critic"].optimizer = OptimizerOptions(kind="adam8bit")
        return method

    assert "the optimizer 'adam8bit' of the role 'critic' counts in blocks of whole weights; use kind=adam" in refused(
        ranks, eight_bit
    )

    def deep():
        method = toys.Toy()
        method.roles["student"] = Role(ResidualMLP((2,), width=8, blocks=2, embedding=8), SGD)
        return method

    def tap(method):
        FeatureTap(method.roles["student"].module, ["blocks.0"])  # a part
        FeatureTap(method.roles["student"].module, ["blocks.0.inner"])

    text = refused(ranks, deep, tap)
    assert (
        "the layer 'blocks.0.inner' is no part" in text
        and "tap one of conditioning, input, blocks.0, blocks.1, norm, output" in text
    )
