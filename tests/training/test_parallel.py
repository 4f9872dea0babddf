"""Several processes against one with the whole batch: gradients, weights, totals, figures, failures, signals, checkpoints."""

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.training import Loop, LoopOptions, OptimizerOptions, TensorSource, launched
from limbeck.training.checkpoints import load

sys.path.insert(0, str(Path(__file__).parent))
toys = import_module("test_loop")
SGD = OptimizerOptions(lr=1e-2, kind="sgd", warmup=3, decay="cosine", clip=1.0)


def applied(loop):
    """Every gradient that an optimizer applies, whole, in order."""
    seen = []
    for name, trained in loop.trained.items():
        whole = lambda p: getattr(p.grad, "full_tensor", lambda: p.grad)()  # noqa: E731
        hook = lambda *_, n=name, t=trained: seen.append((n, [whole(p).clone() for p in t.params]))  # noqa: E731
        trained.optimizer.register_step_pre_hook(hook)
    return seen


def trained(world=None, **options):
    given = {"iterations": 4, "batch": 7, "log_every": 1, **options}
    more = {} if world is None else {"world": world}
    loop = Loop(toys.Toy(optimizer=SGD), TensorSource(torch.zeros(7, 2)), LoopOptions(**given), quiet=True, **more)
    seen = applied(loop)
    figures = [loop.iterate() for _ in range(given["iterations"])]
    tensors, _ = loop.state()
    whole = lambda t: getattr(t, "full_tensor", lambda: t)().clone()  # noqa: E731
    return seen, figures, {f"{g}.{n}": whole(v) for g, named in tensors.items() for n, v in named.items() if g != "rng"}


@pytest.mark.parametrize("way", ["replicate", "shard"])
def test_two_processes_train_as_one_with_the_whole_batch(ranks, way):
    def work():
        with launched("cpu", way) as world:
            return trained(world)

    (seen, figures, tensors), other = ranks(2, work)
    expected_seen, _, expected = trained()
    _, expected_figures, _ = trained(micro_batches=2)  # some figures are no means over samples: those are means over the parts
    assert [n for n, _ in seen] == [n for n, _ in expected_seen] == ["student", "critic"] * 4
    for (_, a), (_, b) in zip(seen, expected_seen, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)
    assert figures == other[1]
    for a, b in zip(figures, expected_figures, strict=True):
        assert a == pytest.approx(b, rel=1e-10)
    assert tensors.keys() == expected.keys()
    for name, value in tensors.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)
        assert torch.equal(value, other[2][name])
