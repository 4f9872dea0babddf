"""Kernels: closed forms, the exact posterior, clipping; the clock draws from the kernels' law, with common random numbers."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.samplers.discrete import Clock, LearnedSteps, euler, generator_uniforms, lost, settled, tweedie

F64 = torch.float64
T, TO = torch.tensor(0.6, dtype=F64), torch.tensor(0.35, dtype=F64)


def ratios(world, t):
    return world(world.states, t.expand(len(world.states))).exp()


def possible(world):
    return world.marginal(T) > 0


def test_euler_unmasks_with_probability_dt_over_t(absorbing):
    p = euler(absorbing.graph, absorbing.schedule, absorbing.states, ratios(absorbing, T), T, TO)
    masked = absorbing.states == 3
    assert torch.allclose(p[..., 3][masked], (TO / T).expand(int(masked.sum())), atol=1e-12)
    assert torch.equal(p[~masked], F.one_hot(absorbing.states, 4).double()[~masked])


def test_tweedie_unmasks_as_the_exact_posterior(absorbing):
    """P(unmask) = (m_t - m_s) / m_t with m = P(mask), and the symbol is drawn from p(x_i | what is seen)."""
    p = tweedie(absorbing.graph, absorbing.schedule, absorbing.states, ratios(absorbing, T), T, TO)
    m_t, m_s = (1 - torch.exp(-absorbing.schedule.total(t)) for t in (T, TO))
    masked = absorbing.states == 3
    assert torch.allclose(1 - p[..., 3][masked], ((m_t - m_s) / m_t).expand(int(masked.sum())), atol=1e-12)
    joint = absorbing.p0.reshape(4, 4)[:3, :3]
    at = absorbing.index(torch.tensor([1, 3]))
    assert torch.allclose(p[at, 1, :3] / (1 - p[at, 1, 3]), joint[1] / joint[1].sum(), atol=1e-12)
    assert torch.allclose(p.sum(-1), torch.ones(16, 2, dtype=F64))


@pytest.mark.parametrize("name", ["uniform", "absorbing"])
def test_tweedie_is_bayes_rule_place_by_place(name, request):
    """P(x_i at s | the whole x at t), by summing over all sequences."""
    world = request.getfixturevalue(name)
    p = tweedie(world.graph, world.schedule, world.states, ratios(world, T), T, TO)
    step = world.graph.transition(world.schedule.total(T) - world.schedule.total(TO))
    joint = world.marginal(TO)[:, None] * torch.kron(step, step)  # (before, after)
    for x in possible(world).nonzero().flatten().tolist():
        posterior = joint[:, x] / joint[:, x].sum()
        for i in range(2):
            expected = torch.zeros(world.graph.symbols, dtype=F64).index_add(0, world.states[:, i], posterior)
            assert torch.allclose(p[x, i], expected, atol=1e-12)


def test_euler_is_tweedie_to_first_order(world):
    def gap(h):
        to = T - h
        s = ratios(world, T)
        a, b = (k(world.graph, world.schedule, world.states, s, T, to) for k in (euler, tweedie))
        return (a - b)[possible(world)].abs().max()

    assert 3.5 < float(gap(0.02) / gap(0.01)) < 4.5 or float(gap(0.02)) < 1e-12  # on the absorbing graph they are equal


def test_settled_clips_and_normalises(absorbing, uniform):
    p = torch.tensor([[[-0.2, 0.9, 0.3]]], dtype=F64)
    assert torch.allclose(settled(uniform.graph, p), torch.tensor([[[0.0, 0.75, 0.25]]], dtype=F64))
    q = torch.tensor([[[0.1, 0.1, 0.0, 0.8]]], dtype=F64)
    assert settled(absorbing.graph, q, final=True).tolist() == [[[0.5, 0.5, 0.0, 0.0]]]
    assert torch.equal(settled(absorbing.graph, q), q)
    with pytest.raises(LimbeckError, match="no symbol with positive probability"):
        settled(absorbing.graph, torch.tensor([[[0.0, 0.0, 0.0, 1.0]]], dtype=F64), final=True)


def test_lost_counts_places_that_could_jump():
    p = torch.tensor([[[-0.2, 1.2], [1.0, 0.0], [0.5, 0.5]]], dtype=F64)
    assert lost(p, torch.tensor([[0, 0, 1]])) == pytest.approx(0.1)


def test_the_clock_draws_the_exact_law(world):
    """20,000 draws of the learned sampler against its law by enumeration."""
    steps = LearnedSteps(world.graph, world.schedule, 4, param="score")
    torch.nn.init.constant_(steps.phi, 0.8)
    count = 20_000
    noise = generator_uniforms((count, 2, world.graph.symbols + 1), torch.Generator().manual_seed(1))
    start = torch.rand(count, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    x = steps.sample(world, world.graph.start(start), noise)
    law = world.laws(steps)[-1]
    found = torch.bincount(world.index(x), minlength=len(law)) / count
    z = (found - law)[law > 0] / (law * (1 - law) / count).sqrt()[law > 0]
    assert (found[law == 0] == 0).all() and z.abs().max() < 4 and z.square().mean() < 2.2


def test_samplers_that_know_the_same_jump_together(absorbing):
    """The chance of a jump does not depend on the state here: 4 steps and 64 leave the same places masked at every shared time."""
    noise = generator_uniforms((500, 2, 5), torch.Generator().manual_seed(0))
    start = torch.full((500, 2), 3)
    few, many = (
        [s.x for s in LearnedSteps(absorbing.graph, absorbing.schedule, m).walk(absorbing, start, noise)] for m in (4, 64)
    )
    for k in range(5):
        assert torch.equal(few[k] == 3, many[16 * k] == 3)
    other = generator_uniforms((500, 2, 5), torch.Generator().manual_seed(5))
    apart = [s.x for s in LearnedSteps(absorbing.graph, absorbing.schedule, 4).walk(absorbing, start, other)]
    assert not torch.equal(few[2] == 3, apart[2] == 3)
    assert (few[4] == many[64]).double().mean() > (few[4] == apart[4]).double().mean() + 0.2


def test_nothing_moves_that_cannot():
    noise = generator_uniforms((1, 2, 4), torch.Generator().manual_seed(0))
    x = torch.tensor([[0, 2]])
    clock = Clock(noise, x)
    clock.alive = torch.zeros(1, 2, dtype=F64)
    assert torch.equal(clock(x, F.one_hot(x, 3).double()), x)
