"""Rank correlations against scipy, row by row, with ties and in blocks."""

import numpy as np
import pytest
import torch
from scipy import stats

from limbeck.errors import LimbeckError
from limbeck.metrics import kendall_tau, spearman_rho
from limbeck.metrics import rank_correlation as module


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("metric", "oracle"), [(kendall_tau, stats.kendalltau), (spearman_rho, stats.spearmanr)])
def test_equal_to_scipy(metric, oracle, ties, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, 9, generator=generator) for _ in range(2))
    if ties:
        x, y = x.round(), (y + x).round()
    expected = [oracle(a, b).statistic for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(metric(x, y), expected, rtol=1e-12, atol=1e-14)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 200)
    np.testing.assert_allclose(metric(x, y), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("metric", [kendall_tau, spearman_rho])
def test_ends_of_the_scale_and_constant_rows(metric):
    x = torch.tensor([[1.0, 2, 3], [1, 2, 3], [1, 1, 1]])
    y = torch.tensor([[2.0, 5, 9], [3, 2, 1], [1, 2, 3]])
    found = metric(x, y)
    assert found[:2].tolist() == pytest.approx([1.0, -1.0], abs=1e-15) and bool(found[2].isnan())


@pytest.mark.parametrize("metric", [kendall_tau, spearman_rho])
def test_bad_input(metric):
    with pytest.raises(LimbeckError, match=r"must both be \(N, C\) with C >= 2"):
        metric(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(LimbeckError, match="NaN or infinite"):
        metric(torch.tensor([[1.0, torch.nan]]), torch.zeros(1, 2))
