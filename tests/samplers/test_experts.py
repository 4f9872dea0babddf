import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.noise import VE, RectifiedFlow
from limbeck.samplers import Experts, Rollout, ddim

PROCESS = RectifiedFlow()


class Constant:
    null = None

    def __init__(self, value, process=PROCESS):
        self.value, self.process, self.calls = value, process, 0

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        return self.value * torch.ones_like(x_t) + (0 if cond is None else cond["label"][:, None])


def test_every_sample_goes_to_the_expert_of_its_time():
    low, middle, high = Constant(1.0), Constant(2.0), Constant(3.0)
    experts = Experts([(0.9, 1.0, high), (0.0, 0.5, low), (0.5, 0.9, middle)])
    t = torch.tensor([1.0, 0.5, 0.91, 0.9, 0.1], dtype=torch.float64)
    x, label = torch.zeros(5, 2), torch.tensor([10, 20, 30, 40, 50])
    assert experts.index(t).tolist() == [2, 0, 2, 1, 0]
    assert experts(x, t)[:, 0].tolist() == [3, 1, 3, 2, 1]
    assert experts(x, t, {"label": label})[:, 1].tolist() == [13, 21, 33, 42, 51]
    assert (low.calls, middle.calls, high.calls) == (2, 2, 2)


def test_gradients_reach_each_samples_own_expert(wobbly, normal):
    a, b = wobbly(PROCESS), wobbly(PROCESS)
    b.weight = b.weight.flip(0)
    x, t = normal(4, 6).requires_grad_(), torch.tensor([0.2, 0.8, 0.3, 0.9], dtype=torch.float64)
    mixed = Experts([(0.0, 0.5, a), (0.5, 1.0, b)])(x, t)
    expected = torch.where((t <= 0.5)[:, None], a(x, t), b(x, t))
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(torch.autograd.grad(mixed.sin().sum(), x), torch.autograd.grad(expected.sin().sum(), x))


def test_a_rollout_and_a_solver_with_experts(wobbly, normal):
    """Two phases by hand: the first expert to the boundary, the second from there."""
    a, b, z = wobbly(PROCESS), wobbly(PROCESS), normal(3, 6)
    a.weight = a.weight.T
    experts, times = Experts([(0.5, 1.0, a), (0.0, 0.5, b)]), [1.0, 0.75, 0.5, 0.25]
    by_hand = ddim(b, ddim(a, z, [1.0, 0.75, 0.5], final=False), [0.5, 0.25])
    torch.testing.assert_close(ddim(experts, z, times), by_hand, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(Rollout(PROCESS, times, renoise="ode")(experts, z).x, by_hand, rtol=1e-12, atol=1e-12)


def test_errors():
    one = Constant(1.0)
    with pytest.raises(LimbeckError, match=r"no expert serves the times \[0.25, 0.5\]; the intervals are \(0.5, 1\]"):
        Experts([(0.5, 1.0, one)]).index(torch.tensor([0.5, 0.75, 0.25]))
    with pytest.raises(LimbeckError, match=r"experts overlap: times in \(0.4, 0.5\]"):
        Experts([(0.4, 1.0, one), (0.0, 0.5, one)])
    with pytest.raises(LimbeckError, match="low < high"):
        Experts([(1.0, 0.5, one)])
    with pytest.raises(LimbeckError, match="at least one"):
        Experts([])
    with pytest.raises(LimbeckError, match="one process"):
        Experts([(0.0, 0.5, one), (0.5, 1.0, Constant(1.0, VE()))])
