"""The score entropy: its minimum, what does not count, and its mean over clean sequences."""

import pytest
import torch

from limbeck.losses import score_entropy

F64 = torch.float64
TOTAL, RATE = torch.tensor([0.7, 1.5], dtype=F64), torch.tensor([2.0, 3.0], dtype=F64)
X, CLEAN = torch.tensor([[2, 1], [2, 2]]), torch.tensor([[0, 1], [1, 0]])


def exact(total):
    return torch.log(1 / total.expm1())


def test_it_vanishes_at_the_ratios_of_one_clean_sequence():
    log_s = torch.full((2, 2, 3), -torch.inf, dtype=F64)
    log_s.scatter_(-1, CLEAN[..., None], exact(TOTAL)[:, None, None].expand(2, 2, 1))
    assert float(score_entropy(log_s, X, CLEAN, TOTAL, RATE, 2)) == pytest.approx(0, abs=1e-14)
    assert float(score_entropy(log_s + 0.1, X, CLEAN, TOTAL, RATE, 2)) > 1e-3


def test_its_value_written_out_and_what_does_not_count():
    log_s = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = 0.0
    for b, i in ((0, 0), (1, 0), (1, 1)):  # the masked places
        r = 1 / TOTAL[b].expm1()
        expected += RATE[b] * (log_s[b, i, :2].exp().sum() - r * log_s[b, i, CLEAN[b, i]] + r * (r.log() - 1)) / 4
    assert torch.allclose(score_entropy(log_s, X, CLEAN, TOTAL, RATE, 2), expected)
    changed = log_s.clone()
    changed[..., 2], changed[0, 1] = 5.0, 7.0  # MASK's column, and a place that is seen
    assert torch.equal(score_entropy(changed, X, CLEAN, TOTAL, RATE, 2), score_entropy(log_s, X, CLEAN, TOTAL, RATE, 2))


def test_its_mean_over_clean_sequences_is_lowest_at_their_probabilities_over_expm1():
    q = torch.tensor([0.3, 0.7], dtype=F64)
    log_s = torch.zeros(2, 1, 3, dtype=F64, requires_grad=True)
    clean, x = torch.tensor([[0], [1]]), torch.full((2, 1), 2)
    total = torch.full((2,), 0.7, dtype=F64)
    ratios = (q / total[0].expm1()).log()
    shared = torch.cat([ratios, ratios[:1]]).expand(2, 1, 3).clone().requires_grad_()
    # rows weighted by q through the rate
    (gradient,) = torch.autograd.grad(score_entropy(shared, x, clean, total, q, 2), shared)
    assert torch.allclose(gradient.sum(0)[0, :2], torch.zeros(2, dtype=F64), atol=1e-15)
    (wrong,) = torch.autograd.grad(score_entropy(log_s, x, clean, total, q, 2), log_s)
    assert wrong.sum(0)[0, :2].abs().min() > 1e-2
