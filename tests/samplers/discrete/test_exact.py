"""Enumeration: laws of sequences, marginals, scores and matrices against brute force."""

import itertools
import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.samplers.discrete import (
    ChainPosterior,
    CleanPredictor,
    Enumerated,
    LearnedSteps,
    Linear,
    Uniform,
    chain_law,
    countdown,
    countdown_chain,
    countdown_errors,
    cyclic_chain,
    sequences,
    uniform_times,
    unigram_entropy,
)

F64 = torch.float64


def test_the_chain_sums_to_one_and_is_what_it_says():
    initial = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)
    law = chain_law(sequences(4, 3), initial, cyclic_chain(4))
    assert float(law.sum()) == pytest.approx(1, abs=1e-14)
    at = sequences(4, 3).tolist().index([3, 0, 2])
    assert float(law[at]) == pytest.approx(0.1 * 0.85 * 0.05)


def test_marginals_are_products_of_transitions(world):
    t = torch.tensor(0.4, dtype=F64)
    step = world.graph.transition(world.schedule.total(t))
    whole = torch.kron(step, step)
    assert torch.allclose(world.marginal(t), world.p0 @ whole, atol=1e-15)


def test_scores_are_ratios_of_marginals(world):
    t = torch.tensor(0.4, dtype=F64)
    p = world.marginal(t)
    log_s = world(world.states, t.expand(len(world.states)))
    for x, i, y in itertools.product(range(len(p)), range(2), range(world.graph.symbols)):
        there = world.states[x].clone()
        there[i] = y
        if p[x] > 0:
            assert float(log_s[x, i, y].exp()) == pytest.approx(float(p[world.index(there)] / p[x]), rel=1e-12)


def test_a_matrix_is_the_product_over_places(world):
    steps = LearnedSteps(world.graph, world.schedule, 3)
    p = steps.probabilities(world.step(steps, steps.times(), 1, torch.ones((), dtype=F64))).detach()
    whole = world.matrix(p)
    for x, y in ((0, 5), (3, 3), (7, 2)):
        expected = p[x, 0, world.states[y, 0]] * p[x, 1, world.states[y, 1]]
        assert float(whole[x, y]) == pytest.approx(float(expected), abs=1e-15)
    assert torch.allclose(whole.sum(1), torch.ones(len(whole), dtype=F64))


@torch.no_grad()
def test_what_lies_ahead_is_the_product_of_matrices(world):
    steps, times = LearnedSteps(world.graph, world.schedule, 4), uniform_times(4, 1e-3)
    one = torch.ones((), dtype=F64)
    both = [world.matrix(steps.probabilities(world.step(steps, times, k, one))) for k in (1, 2)]
    expected = both[0] @ both[1] @ torch.nn.functional.one_hot(world.states, world.graph.symbols).double().flatten(1)
    assert torch.allclose(world.ahead(steps, times, 1, 3).flatten(1), expected, atol=1e-14)


@pytest.mark.parametrize("kernel", ["euler", "tweedie"])
def test_many_steps_reach_the_data(world, kernel):
    """The error of both kernels is of first order in the step."""
    few, many = (world.kl(world.laws(LearnedSteps(world.graph, world.schedule, m, kernel=kernel))[-1]) for m in (8, 64))
    assert many < 0.01 and many < few / 8


def test_where_mask_stands_does_not_matter(absorbing, absorbing_first):
    for coefficient in (1.0, 1.2):
        kls = []
        for world in (absorbing, absorbing_first):
            steps = LearnedSteps(world.graph, world.schedule, 3)
            torch.nn.init.constant_(steps.phi, coefficient)
            kls.append(world.kl(world.laws(steps)[-1]))
        assert kls[0] == pytest.approx(kls[1], abs=1e-13) and kls[0] > 0


def test_countdown_counts_down():
    x = countdown(torch.tensor([[0.3, 0.9, 0.9, 0.5, 0.1, 0.2]], dtype=F64), 8)
    assert x.tolist() == [[2, 1, 0, 4, 3, 2]]
    assert float(countdown_errors(x)) == 0
    assert countdown_errors(torch.tensor([[2, 1, 0, 4, 4, 2], [3, 3, 3, 3, 3, 3]])).tolist() == [0.4, 1.0]


def test_the_posterior_of_a_chain_is_that_of_enumeration(absorbing):
    initial, chain = torch.tensor([0.5, 0.3, 0.2], dtype=F64), cyclic_chain(3)
    law = chain_law(sequences(3, 4), initial, chain)
    world = Enumerated(absorbing.graph, absorbing.schedule, law, 4)
    t = torch.full((256,), 0.4, dtype=F64)
    score = CleanPredictor(ChainPosterior(initial, chain), absorbing.graph, absorbing.schedule, "probabilities")
    masked = world.states == 3
    assert torch.allclose(score(world.states, t)[masked].exp(), world(world.states, t)[masked].exp(), rtol=1e-10)


def test_the_countdown_chain_is_the_countdown():
    chain = countdown_chain(4, slip=0.0)
    assert chain[2].tolist() == [0, 1, 0, 0] and chain[0].tolist() == [0.25] * 4
    assert torch.allclose(countdown_chain(4, 0.4)[3], torch.tensor([0.1, 0.1, 0.7, 0.1], dtype=F64))


def test_unigram_entropy():
    assert unigram_entropy(torch.tensor([[0, 1], [2, 3]])) == pytest.approx(math.log(4))
    assert unigram_entropy(torch.tensor([[1, 1]])) == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sequences(32, 8), "too many to enumerate"),
        (lambda: Enumerated(Uniform(3), Linear(), torch.ones(9, dtype=F64), 2), "9 probabilities that sum to 1"),
        (lambda: Enumerated(Uniform(3), Linear(), torch.ones(4, dtype=F64) / 4, 2), "9 probabilities that sum to 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
