"""A Markov chain of short sequences, known exactly, on both graphs."""

import pytest
import torch

from limbeck.samplers.discrete import Absorbing, Enumerated, Linear, LogLinear, Uniform, chain_law, cyclic_chain, sequences


def made(graph, schedule, length=2, vocab=3):
    initial = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return Enumerated(graph, schedule, chain_law(sequences(vocab, length), initial, cyclic_chain(vocab)), length)


@pytest.fixture(scope="session")
def uniform():
    return made(Uniform(3), Linear(3.0))


@pytest.fixture(scope="session")
def absorbing():
    return made(Absorbing(4), LogLinear())


@pytest.fixture(scope="session")
def absorbing_first():
    """The same with MASK as symbol 0."""
    return made(Absorbing(4, mask=0), LogLinear())


@pytest.fixture(params=["uniform", "absorbing"])
def world(request):
    return request.getfixturevalue(request.param)
