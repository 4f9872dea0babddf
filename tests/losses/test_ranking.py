"""The Plackett-Luce kernel and its losses: probabilities that sum to 1, closed forms, limits, optimum, and every bad input."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.losses import (
    decreasing_weights,
    dist_loss,
    dkd_loss,
    effective_picks,
    kd_loss,
    pl_log_likelihood,
    pld_loss,
    ranking_weights,
    teacher_ranking,
)

F64 = torch.float64


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def labels(n, classes, seed=0):
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def by_hand(s, t, y, tau):
    """The loss by its definition, pick by pick."""
    losses = []
    for row, belief, label in zip(s, (t / tau).softmax(1), y.tolist(), strict=True):
        rest = sorted((c for c in range(len(row)) if c != label), key=lambda c: -float(belief[c]))
        order = [label, *rest]
        losses.append(sum(belief[c] * (row[order[k:]].logsumexp(0) - row[c]) for k, c in enumerate(order)))
    return torch.stack(losses)


@pytest.mark.parametrize("k", [5, 4, 2])
def test_the_probabilities_of_all_orders_sum_to_1(k):
    orders = torch.tensor(list(itertools.permutations(range(5), k)))
    assert len(orders) == {5: 120, 4: 120, 2: 20}[k]
    scores = normal(5, scale=2).expand(len(orders), 5)
    assert pl_log_likelihood(scores, orders).exp().sum().item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_the_loss_is_the_definitions(tau):
    s, t, y = normal(7, 6, seed=1), normal(7, 6, seed=2), labels(7, 6)
    expected = by_hand(s, t, y, tau)
    torch.testing.assert_close(pld_loss(s, t, y, tau, reduction="none"), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(pld_loss(s, t, y, tau), expected.mean(), rtol=0, atol=1e-14)
    torch.testing.assert_close(pld_loss(s, t, y, tau, reduction="sum"), expected.sum(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("topk", [None, 1, 3])
def test_gradcheck(topk):
    s, t, y = normal(4, 6).requires_grad_(), normal(4, 6, seed=2), labels(4, 6)
    assert torch.autograd.gradcheck(lambda x: pld_loss(x, t, y, 2.0, topk=topk), s)
    assert torch.autograd.gradgradcheck(lambda x: pld_loss(x, t, y, 2.0, topk=topk), s)


def test_the_gradient_in_closed_form():
    s, t, y = normal(9, 7, scale=3).requires_grad_(), normal(9, 7, seed=2, scale=2), labels(9, 7)
    order = teacher_ranking(t, y)
    weights = ranking_weights(t, order, 1.5)
    (-pl_log_likelihood(s, order, weights)).sum().backward()
    ranked = s.detach().gather(1, order)
    left = ranked.flip(1).logcumsumexp(1).flip(1)
    in_order = ranked.exp() * (weights * (-left).exp()).cumsum(1) - weights
    torch.testing.assert_close(s.grad, torch.zeros_like(s).scatter(1, order, in_order), rtol=0, atol=1e-14)


def test_a_teacher_that_is_sure_of_the_label_is_cross_entropy():
    s, y = normal(16, 10, seed=1), labels(16, 10)
    sure = 200.0 * F.one_hot(y, 10).double()
    assert abs(float(pld_loss(s, sure, y) - F.cross_entropy(s, y))) < 1e-14
    wrong = 200.0 * F.one_hot((y + 1) % 10, 10).double()  # and one that is sure of another class all but ignores the label
    off = pld_loss(s, wrong, y, reduction="none") - F.cross_entropy(s, y, reduction="none")
    assert float(off.abs().max()) > 0.1
    torch.testing.assert_close(pld_loss(s, wrong, y, min_label_weight=1.0), F.cross_entropy(s, y))


def test_a_hot_teacher_is_listmle():
    s, t, y = normal(16, 10, seed=1), normal(16, 10, seed=2), labels(16, 10)
    uniform = -pl_log_likelihood(s, teacher_ranking(t, y)).mean() / 10
    torch.testing.assert_close(pld_loss(s, t, y, tau=1e6), uniform, rtol=1e-5, atol=0)


def test_cold_weights_are_the_teachers_first_class():
    s, t, y = normal(3, 4, seed=1), torch.tensor([[3.0, 1, 2, 0]], dtype=F64).expand(3, 4), torch.tensor([0, 2, 3])
    expected = [row[left].logsumexp(0) - row[0] for row, left in zip(s, ([0, 1, 2, 3], [0, 1, 3], [0, 1, 2]), strict=True)]
    torch.testing.assert_close(pld_loss(s, t, y, tau=1e-3, reduction="none"), torch.stack(expected), rtol=0, atol=1e-12)


def test_constants_do_not_matter_but_scales_do():
    s, t, y = normal(8, 5, seed=1), normal(8, 5, seed=2), labels(8, 5)
    torch.testing.assert_close(pld_loss(s + 7, t - 3, y), pld_loss(s, t, y), rtol=0, atol=1e-14)
    assert float((pld_loss(2 * s, t, y) - pld_loss(s, t, y)).abs()) > 0.01


def test_convex_along_segments():
    t, y, a, b = normal(64, 8, seed=1), labels(64, 8), normal(64, 8, seed=2, scale=5), normal(64, 8, seed=3, scale=5)
    ends = [pld_loss(x, t, y, reduction="none") for x in (a, b)]
    for u in (0.1, 0.5, 0.8):
        inside = pld_loss(u * a + (1 - u) * b, t, y, reduction="none")
        assert bool((inside <= u * ends[0] + (1 - u) * ends[1] + 1e-12).all())


def test_the_optimum_has_the_teachers_order():
    """With a tiny ridge (the infimum lies at infinity), for 50 teachers at once."""
    t, y, s = normal(50, 6, seed=1), labels(50, 6), torch.zeros(50, 6, dtype=F64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [s], lr=1.0, max_iter=150, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        loss = pld_loss(s, t, y, tau=2.0, reduction="sum") + 1e-4 * s.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    assert float(s.grad.abs().max()) < 1e-4
    assert torch.equal(s.detach().argsort(1, descending=True), teacher_ranking(t, y))


def test_the_ranking_puts_the_label_first_and_keeps_ties_in_place():
    t = torch.tensor([[1.0, 5, 1, 0, 1], [2, 2, 2, 2, 2]])
    assert teacher_ranking(t, torch.tensor([3, 2])).tolist() == [[3, 1, 0, 2, 4], [2, 0, 1, 3, 4]]
    assert teacher_ranking(t).tolist() == [[1, 0, 2, 4, 3], [0, 1, 2, 3, 4]]
    assert teacher_ranking(t, torch.tensor([3, 2]), topk=2).tolist() == [[3, 1], [2, 0]]


def test_weights_are_the_teachers_own_also_of_the_label():
    t, y = normal(5, 6, seed=1), labels(5, 6)
    order = teacher_ranking(t, y)
    weights = ranking_weights(t, order, 3.0)
    torch.testing.assert_close(weights[:, 0], (t / 3).softmax(1)[torch.arange(5), y])
    torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=F64))
    raised = ranking_weights(t, order, 3.0, min_label_weight=0.6)
    torch.testing.assert_close(raised.sum(1), torch.ones(5, dtype=F64))
    assert bool((raised[:, 0] >= 0.6).all())
    torch.testing.assert_close(raised[:, 1:] / raised[:, 1:2], weights[:, 1:] / weights[:, 1:2])
    assert torch.equal(ranking_weights(t, order, 3.0, min_label_weight=1e-9), weights)


def test_the_first_picks_alone():
    s, t, y = normal(6, 8, seed=1), normal(6, 8, seed=2), labels(6, 8)
    order, weights = teacher_ranking(t, y), ranking_weights(t, teacher_ranking(t, y))
    cut = torch.where(torch.arange(8) < 3, weights, 0.0)
    expected = -pl_log_likelihood(s, order, cut).mean()
    torch.testing.assert_close(pld_loss(s, t, y, topk=3), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(pld_loss(s, t, y, topk=8), pld_loss(s, t, y), rtol=0, atol=0)


def test_dense_predictions_and_what_is_ignored():
    s, t = normal(2, 3, 4, 5, seed=1).requires_grad_(), normal(2, 3, 4, 5, seed=2)
    y = labels(24, 5).reshape(2, 3, 4)
    y[0, 0] = -100
    flat = pld_loss(s[y >= 0], t[y >= 0], y[y >= 0], reduction="none")
    torch.testing.assert_close(pld_loss(s, t, y), flat.mean(), rtol=0, atol=1e-15)
    each = pld_loss(s, t, y, reduction="none")
    assert each.shape == y.shape and bool((each[0, 0] == 0).all())
    torch.testing.assert_close(each[y >= 0], flat, rtol=0, atol=0)
    torch.testing.assert_close(pld_loss(s, t, torch.where(y < 0, 9, y), ignore_index=9), flat.mean())


def test_a_batch_that_is_all_ignored_loses_nothing():
    s = torch.full((3, 4), torch.nan).requires_grad_()
    loss = pld_loss(s, torch.zeros(3, 4), torch.full((3,), -100))
    loss.backward()
    assert float(loss.detach()) == 0 and s.grad.tolist() == 3 * [4 * [0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    s, t, y = normal(32, 100, scale=8).to(dtype).requires_grad_(), normal(32, 100, seed=1, scale=8).to(dtype), labels(32, 100)
    exact = s.detach().double().requires_grad_()
    loss, expected = pld_loss(s, t, y), pld_loss(exact, t.double(), y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(s.grad.double(), exact.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    for baseline in (kd_loss, dist_loss, dkd_loss):
        assert baseline(s, t, y).dtype == torch.float32


def test_logits_far_apart_stay_finite():
    s = torch.tensor([[-1e4, 0.0, 1e4, 2e4]], requires_grad=True)
    loss = pld_loss(s, torch.tensor([[40.0, -40, 0, 1]]), torch.tensor([0]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3e4) and bool(s.grad.isfinite().all())


def test_decreasing_weights_are_plistmles():
    plain = torch.tensor([2.0 ** (6 - k) - 1 for k in range(1, 7)], dtype=F64)
    torch.testing.assert_close(decreasing_weights(6, normal(1)), plain / plain.sum(), rtol=1e-14, atol=0)
    assert bool(decreasing_weights(5000, torch.ones(1)).isfinite().all())


def test_effective_picks():
    weights = torch.stack([torch.eye(4)[0], torch.full((4,), 0.25), torch.tensor([0.5, 0.5, 0, 0])])
    torch.testing.assert_close(effective_picks(weights), torch.tensor([1.0, 4.0, 2.0]))
    torch.testing.assert_close(effective_picks(weights / 3), torch.tensor([1.0, 4.0, 2.0]))


def test_knowledge_distillation_by_definition():
    s, t, y = normal(6, 5, seed=1), normal(6, 5, seed=2), labels(6, 5)
    p, q = (s / 2).softmax(1), (t / 2).softmax(1)
    kl = (q * (q / p).log()).sum(1)
    torch.testing.assert_close(kd_loss(s, t, y, 2.0, 0.3), 0.3 * F.cross_entropy(s, y, reduction="none") + 0.7 * 4 * kl)


def test_dist_by_definition():
    s, t, y = normal(6, 5, seed=1), normal(6, 5, seed=2), labels(6, 5)
    p, q = (s / 3).softmax(1), (t / 3).softmax(1)
    rows = torch.stack([1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p, q, strict=True)])
    columns = torch.stack([1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(p.T, q.T, strict=True)]).mean()
    expected = 0.5 * F.cross_entropy(s, y, reduction="none") + 9 * (1.5 * rows + 2.5 * columns)
    torch.testing.assert_close(dist_loss(s, t, y, 3.0, 0.5, 1.5, 2.5), expected)


def test_decoupled_distillation_is_the_plain_one_taken_apart():
    s, t, y = normal(6, 5, seed=1), normal(6, 5, seed=2), labels(6, 5)
    only = {"tau": 2.0, "label_weight": 0.0}
    binary, rest = dkd_loss(s, t, y, **only, alpha=1, beta=0), dkd_loss(s, t, y, **only, alpha=0, beta=1)
    p_label = (t / 2).softmax(1)[torch.arange(6), y]
    torch.testing.assert_close(binary + (1 - p_label) * rest, kd_loss(s, t, y, 2.0, 0.0), rtol=1e-12, atol=1e-14)
    both = dkd_loss(s, t, y, 2.0, label_weight=1.0, alpha=1, beta=8)
    torch.testing.assert_close(both, F.cross_entropy(s, y, reduction="none") + binary + 8 * rest)


@pytest.mark.parametrize("loss", [pld_loss, kd_loss, dist_loss, dkd_loss])
def test_the_teacher_gets_no_gradient(loss):
    s, t, y = normal(4, 5, seed=1).requires_grad_(), normal(4, 5, seed=2).requires_grad_(), labels(4, 5)
    loss(s, t, y).sum().backward()
    assert t.grad is None and float(s.grad.abs().max()) > 1e-3


GOOD = {"student": torch.zeros(2, 4), "teacher": torch.tensor([[3.0, 1, 2, 0], [0, 1, 2, 3]]), "target": torch.tensor([0, 1])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(2, 100), "teacher": torch.zeros(2, 1000)}, "need the same class list; got 100 vs 1000"),
        ({"student": torch.zeros(3, 4)}, r"logits of student \(3, 4\) and teacher \(2, 4\)"),
        ({"target": torch.tensor([0, 4])}, r"label 4 lies outside \[0, 4\)"),
        ({"target": torch.tensor([0, -1])}, r"label -1 lies outside \[0, 4\); what does not count has ignore_index=-100"),
        ({"target": torch.full((2, 4), 0.25)}, "integer labels, not torch.float32 .* m \\* loss\\(a\\)"),
        ({"teacher": torch.full((2, 4), torch.nan)}, "the teacher's logits hold NaN or infinity"),
        ({"teacher": torch.tensor([[0.0, 1, torch.inf, 2]] * 2)}, "the teacher's logits hold NaN or infinity"),
        ({"tau": 0.0}, "tau=0 must be positive"),
        ({"tau": math.nan}, "tau=nan must be positive"),
        ({"topk": 0}, r"topk=0 must lie in 1\.\.4"),
        ({"topk": 5}, r"topk=5 must lie in 1\.\.4"),
        ({"min_label_weight": 1.5}, r"min_label_weight=1.5 .* \[0, 1\]"),
        ({"reduction": "men"}, "unknown reduction 'men': did you mean 'mean'"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(LimbeckError, match=message):
        pld_loss(**{**GOOD, **change})


def test_probabilities_in_place_of_logits_are_noticed():
    with pytest.warns(UserWarning, match="look like probabilities"):
        pld_loss(GOOD["student"], GOOD["teacher"].softmax(1), GOOD["target"])


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([[0, 0, 1]], "names an item twice"),
        ([[0, 1, 3]], r"names items 0\.\.2, not 0\.\.3"),
        ([[0, 1, 2, 0]], r"\(N, K\) with K <= C, not \(1, 4\)"),
        ([[0, 1], [1, 0]], r"not \(2, 2\)"),
    ],
)
def test_orders_that_do_not_fit(order, message):
    with pytest.raises(LimbeckError, match=message):
        pl_log_likelihood(torch.zeros(1, 3), torch.tensor(order))


def test_baselines_name_what_is_wrong():
    with pytest.raises(LimbeckError, match="tau=-1 must be positive"):
        kd_loss(**GOOD, tau=-1.0)
    with pytest.raises(LimbeckError, match=r"must be \(N, C\) with C >= 2"):
        dkd_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    with pytest.raises(LimbeckError, match="1 class has no order"):
        decreasing_weights(1, torch.zeros(1))
