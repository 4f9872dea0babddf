"""Optimizers that begin anew at given iterations: what is forgotten, and the schedule of the learning rate."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.training import Loop, LoopOptions, Method, OptimizerOptions, Role, TensorSource, Update

ADAM = OptimizerOptions(lr=1e-2, betas=(0.9, 0.99))


class Fit(Method):
    def __init__(self, optimizer):
        torch.manual_seed(0)
        self.net = nn.Linear(2, 1).double()
        self.roles = {"net": Role(self.net, optimizer)}

    def step(self, batch):
        yield Update("net", (self.net(batch.noise.normal("x", (2,), torch.float64)) - 1).square().mean())


def loop(optimizer, iterations=8):
    return Loop(Fit(optimizer), TensorSource(torch.zeros(4, 1)), LoopOptions(iterations, batch=4), quiet=True)


def test_the_optimizer_forgets_before_the_iteration():
    one, other = loop(replace(ADAM, anew=(3,))), loop(ADAM)
    for _ in range(3):
        one.iterate(), other.iterate()
    assert torch.equal(one.method.net.weight, other.method.net.weight)
    fresh = loop(ADAM)  # the same weights, an optimizer that has seen nothing
    fresh.method.net.load_state_dict(one.method.net.state_dict())
    fresh.step = 3
    for l in (one, other, fresh):
        l.iterate()
        l.iterate()
    assert torch.equal(one.method.net.weight, fresh.method.net.weight)
    assert not torch.equal(one.method.net.weight, other.method.net.weight)


def test_warm_up_and_decay_begin_anew():
    plain = OptimizerOptions(lr=1.0, warmup=2, decay="cosine", final=0.1)
    twice = replace(plain, anew=(10,))
    assert [twice.lr_at(s, 16) for s in range(10)] == [plain.lr_at(s, 10) for s in range(10)]
    assert [twice.lr_at(s, 16) for s in range(10, 16)] == pytest.approx([plain.lr_at(s, 6) for s in range(6)], rel=1e-15)
    constant = replace(twice, decay="constant")
    assert [constant.lr_at(s, 16) for s in (0, 1, 9, 10, 11)] == [0.5, 1.0, 1.0, 0.5, 1.0]
