"""Graphs and schedules: matrix exponentials, starts, perturbations, and bad input."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.samplers.discrete import Absorbing, Geometric, Linear, LogLinear, Uniform, perturbed, uniform_times

F64 = torch.float64


def generator_of(graph):
    """Q with row = from: what turns into what on the way to noise."""
    x = torch.arange(graph.symbols)[None]
    q = graph.jumps(x)[0].T
    return q - torch.diag(q.sum(1))


GRAPHS = [Uniform(4), Absorbing(5), Absorbing(5, mask=1)]


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_transitions_are_the_matrix_exponential(graph):
    q = generator_of(graph)
    for d in (0.0, 0.3, 4.0):
        expected = torch.linalg.matrix_exp(d * q)
        assert torch.allclose(graph.transition(torch.tensor(d, dtype=F64)), expected, atol=1e-13)
        x = torch.arange(graph.symbols)[None]
        assert torch.allclose(graph.arrive(x, torch.tensor(d, dtype=F64))[0], expected.T, atol=1e-13)


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_staggered_ratios_are_those_of_less_noise(graph):
    """exp(-d Q) undoes exp(d Q): of one place, p_t = p_s exp(d Q), so p_s / p_t(x) = staggered(p_t / p_t(x))."""
    d = torch.tensor(0.7, dtype=F64)
    p = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=F64)[: graph.symbols]
    after = p @ graph.transition(d)
    x = torch.arange(graph.symbols)[None]
    s = (after / after[:, None])[None]
    assert torch.allclose(graph.stagger(s, x, d)[0], p / after[:, None], atol=1e-13)


@pytest.mark.parametrize("schedule", [LogLinear(), Geometric(), Geometric(1e-3, 1.0), Linear(3.0)], ids=str)
def test_the_rate_is_the_derivative_of_the_total(schedule):
    t = torch.linspace(0.05, 0.95, 7, dtype=F64)
    h = 1e-6
    slope = (schedule.total(t + h) - schedule.total(t - h)) / (2 * h)
    assert torch.allclose(schedule.rate(t), slope, rtol=1e-7)


def test_log_linear_noise_masks_linearly():
    t = torch.linspace(0, 1, 5, dtype=F64)
    masked = Absorbing(3).transition(LogLinear().total(t[3]))[0, 2]
    assert float(masked) == pytest.approx(0.999 * 0.75, abs=1e-14)
    assert torch.allclose(1 - torch.exp(-LogLinear().total(t)), 0.999 * t)
    assert float(Geometric().total(t[0])) == pytest.approx(1e-4) and float(Geometric().total(t[-1])) == pytest.approx(20.0)


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
@pytest.mark.parametrize("share, changed", [(0.0, 0), (0.05, 1), (0.5, 4), (1.0, 7)])
def test_perturbation_changes_that_many_places_to_other_symbols_never_mask(graph, share, changed):
    generator = torch.Generator().manual_seed(0)
    uniform = lambda: torch.rand(200, 7, generator=generator, dtype=F64)  # noqa: E731
    for x in (graph.start(uniform()), (uniform() * graph.symbols).long()):
        y = perturbed(graph, x, share, uniform(), uniform())
        assert ((x != y).sum(1) == changed).all()
        assert not (y[x != y] == graph.mask).any() if graph.mask is not None else True
        assert y.min() >= 0 and y.max() < graph.symbols


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_the_other_symbol_is_uniform(graph):
    u = (torch.arange(1200, dtype=F64) + 0.5) / 1200
    for symbol in range(graph.symbols):
        y = graph.other(torch.full((1200,), symbol), u)
        counts = torch.bincount(y, minlength=graph.symbols)
        others = [s for s in range(graph.symbols) if s not in (symbol, graph.mask)]
        assert counts[others].tolist() == [1200 // len(others)] * len(others) and counts.sum() == counts[others].sum()


def test_starts():
    u = torch.tensor([[0.0, 0.26, 0.999]], dtype=F64)
    assert Uniform(4).start(u).tolist() == [[0, 1, 3]]
    assert Absorbing(5).start(u).tolist() == [[4, 4, 4]] and Absorbing(5, mask=0).start(u).tolist() == [[0, 0, 0]]


def test_uniform_times():
    assert torch.allclose(uniform_times(3, 0.1), torch.tensor([1.0, 0.7, 0.4, 0.1], dtype=F64))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Absorbing(5, mask=5), r"mask=5 lies outside the vocabulary of 5 symbols .*\[0, 4\]"),
        (lambda: Absorbing(5, mask=-2), "mask=-2 lies outside"),
        (lambda: Absorbing(1), "at least one more"),
        (lambda: Uniform(1), "at least two symbols"),
        (lambda: LogLinear(0.0), r"floor=0 must lie in \(0, 1\)"),
        (lambda: Geometric(2.0, 1.0), "0 < low < high"),
        (lambda: Linear(0.0), "slope=0 must be positive"),
        (lambda: uniform_times(0, 0.1), "at least one step"),
        (lambda: uniform_times(4, 1.0), "an end in"),
        (
            lambda: perturbed(Uniform(3), torch.zeros(1, 2).long(), 1.2, torch.rand(1, 2), torch.rand(1, 2)),
            r"perturb=1.2 .*\[0, 1\]",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
