"""Markov chains known exactly as what LSD distils, and short ways to run it."""

from types import SimpleNamespace

import pytest
import torch

from limbeck.methods.sequences.lsd import LSD, LSDOptions, Parts
from limbeck.samplers.discrete import Absorbing, Enumerated, Linear, LogLinear, Uniform, chain_law, cyclic_chain, sequences
from limbeck.training import Batch, Loop, LoopOptions, OptimizerOptions, TensorSource, Total

ADAM = OptimizerOptions(lr=0.02, betas=(0.9, 0.99))
INITIAL = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SOURCE = TensorSource(None, {"start": torch.arange(64)})


def world(graph):
    schedule = Linear(2.0) if graph.mask is None else LogLinear()
    return Enumerated(graph, schedule, chain_law(sequences(3, 2), INITIAL, cyclic_chain(3)), 2)


WORLDS = {"uniform": world(Uniform(3)), "absorbing": world(Absorbing(4))}


def make(on="uniform", **options):
    given = {"iterations": 6, "batch": 16, "steps": 2, "teacher_steps": 8, "held_out": 64, "student": ADAM, "perturb": 0.0}
    at = WORLDS[on]
    return LSD(Parts(at, at.graph, at.schedule, at.length), LSDOptions(**{**given, **options}))


def batch(method, step=0, size=16):
    return Batch(SOURCE, 0, step, step * size + torch.arange(size), torch.device("cpu"), size)


def loop(method, folder=None, **options):
    given = {"iterations": method.options.iterations, "batch": method.options.batch, "log_every": 1, **options}
    return Loop(method, SOURCE, LoopOptions(**given), folder=folder, quiet=True)


def loss_of(method, at):
    """The loss of one iteration, its totals those of this batch."""
    steps = method.step(at)
    y = next(steps)
    return steps.send(y.value).loss if isinstance(y, Total) else y.loss


@pytest.fixture
def tiny():
    return SimpleNamespace(worlds=WORLDS, make=make, batch=batch, loop=loop, loss_of=loss_of)
