import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances_argmin

from limbeck.errors import LimbeckError
from limbeck.metrics import class_variance, class_variance_ratio, mode_histogram, total_variation
from limbeck.metrics import samples as samples_module


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("entries", [2**22, 64])
def test_counts_are_those_of_sklearns_nearest_center(entries, monkeypatch):
    monkeypatch.setattr(samples_module, "BLOCK_ENTRIES", entries)
    x, centers, weights = normal(200, 3, seed=1), normal(7, 3, seed=2), normal(200, seed=3).abs()
    nearest = pairwise_distances_argmin(x, centers)
    plain, weighted = mode_histogram(x, centers), mode_histogram(x, centers, weights=weights)
    np.testing.assert_array_equal(plain.counts, np.bincount(nearest, minlength=7))
    np.testing.assert_allclose(weighted.counts, np.bincount(nearest, weights, minlength=7), rtol=1e-13)
    assert plain.off_mode == 0 and plain.total == 200
    assert weighted.off_mode == pytest.approx(0, abs=1e-14)
    assert weighted.shares.sum().item() == pytest.approx(1, abs=1e-14)


def test_samples_beyond_the_radius_are_off_mode():
    x, centers = torch.tensor([-0.5, 0.0, 0.5, 0.6, 2.0, 3.0]), torch.tensor([0.0, 2.0])
    found = mode_histogram(x, centers, radius=0.5)  # closed: 0.5 is in
    assert found.counts.tolist() == [3, 1] and found.off_mode == pytest.approx(2 / 6, abs=1e-15)
    assert found.shares.tolist() == pytest.approx([3 / 6, 1 / 6])
    each = mode_histogram(x, centers, radius=torch.tensor([0.1, 1.0]))
    assert each.counts.tolist() == [1, 2] and each.off_mode == 0.5
    nothing = mode_histogram(x + 100, centers, radius=1.0)
    assert nothing.counts.tolist() == [0, 0] and nothing.off_mode == 1


def test_a_samples_weight_is_worth_as_many_copies_of_it():
    x, centers, copies = normal(20, 2, seed=1), normal(4, 2, seed=2), torch.arange(20)
    weighted = mode_histogram(x, centers, radius=1.0, weights=copies)
    repeated = mode_histogram(x.repeat_interleave(copies, 0), centers, radius=1.0)
    assert weighted.counts.tolist() == repeated.counts.tolist() and weighted.total == repeated.total
    assert 0 < weighted.off_mode == repeated.off_mode < 1


def test_total_variation_counts_the_off_mode_share():
    x, centers = torch.tensor([0.0, 0.0, 0.0, 5.0, 9.0]), torch.tensor([0.0, 5.0])
    found = mode_histogram(x, centers, radius=1.0)
    # Shares .6, .2 and .2 off, against .5, .5 and 0.
    assert found.total_variation(torch.tensor([0.5, 0.5])) == pytest.approx(0.3, abs=1e-15)
    every = mode_histogram(x, centers)
    weights = torch.tensor([0.3, 0.7])
    assert every.total_variation(weights) == pytest.approx(total_variation(every.shares, weights), abs=1e-7)


def test_mixture_weights_are_found():
    weights, centers = torch.tensor([0.1, 0.3, 0.6]).double(), 10 * torch.eye(3).double()
    mode = torch.multinomial(weights, 20_000, True, generator=torch.Generator().manual_seed(0))
    x = centers[mode] + normal(20_000, 3)
    found = mode_histogram(x, centers, radius=2.0)
    errors = (mode_histogram(x, centers).shares - weights).abs()
    assert (errors < 4 * (weights * (1 - weights) / 20_000).sqrt()).all()
    # P(chi_3 > 2) = 0.26146
    assert abs(found.off_mode - 0.26146) < 4 * (0.26 * 0.74 / 20_000) ** 0.5


def test_class_variance_is_the_trace_of_numpys_covariance():
    x, labels = normal(60, 2, 2), torch.arange(60) % 4
    x[labels == 2] *= 3
    measured = class_variance(x, labels)
    assert list(measured) == [0, 1, 2, 3]
    for label, variance in measured.items():
        rows = x[labels == label].flatten(1).numpy()
        assert variance == pytest.approx(np.cov(rows, rowvar=False).trace(), rel=1e-12)


def test_class_variance_ratio_averages_over_classes_not_samples():
    real, real_labels = normal(50, 3), torch.tensor([0] * 40 + [7] * 10)
    shrink = torch.where(real_labels == 0, 0.5, 2.0)[:, None]
    assert class_variance_ratio(real, real_labels, real, real_labels) == 1
    ratio = class_variance_ratio(1 + shrink * real, real_labels, real, real_labels)
    assert ratio == pytest.approx((0.25 + 4) / 2, rel=1e-12)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    shuffled = class_variance_ratio(shrink[order] * real[order], real_labels[order], real, real_labels)
    assert shuffled == pytest.approx(ratio, rel=1e-12)
    collapsed = real_labels[:, None].expand(50, 3)
    assert class_variance_ratio(collapsed, real_labels, real, real_labels) == 0


def test_bad_histograms_are_named():
    x, centers = normal(5, 2), normal(3, 2)
    with pytest.raises(LimbeckError, match=r"x has .* \(2,\) and centers of \(1,\)"):
        mode_histogram(x, centers[:, :1])
    with pytest.raises(LimbeckError, match="centers has 0 samples"):
        mode_histogram(x, centers[:0])
    with pytest.raises(LimbeckError, match="x has NaN"):
        mode_histogram(x * torch.nan, centers)
    for radius in (0.0, -1.0, float("nan"), torch.ones(2), torch.tensor([1.0, 0.0, 1.0])):
        with pytest.raises(LimbeckError, match="one number above 0, or 3, one per center"):
            mode_histogram(x, centers, radius)
    for weights in (torch.ones(4), -torch.ones(5), torch.zeros(5), torch.ones(5, 1)):
        with pytest.raises(LimbeckError, match="pass 5 weights, none negative, not all 0"):
            mode_histogram(x, centers, weights=weights)
    with pytest.raises(LimbeckError, match="same cells"):
        mode_histogram(x, centers).total_variation(torch.tensor([0.5, 0.5]))


def test_bad_classes_are_named():
    x, labels = normal(6, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    with pytest.raises(LimbeckError, match=r"labels of x has shape .* pass 6 integers"):
        class_variance(x, labels[:5])
    with pytest.raises(LimbeckError, match="float32"):
        class_variance(x, labels.float())
    with pytest.raises(LimbeckError, match="class 5 of real has 1 samples, at least 2"):
        class_variance_ratio(x, labels, x, torch.tensor([0, 0, 0, 1, 1, 5]))
    with pytest.raises(LimbeckError, match=r"x has the classes \[0, 1\] and real \[0, 2\]"):
        class_variance_ratio(x, labels, x, 2 * labels)
    with pytest.raises(LimbeckError, match="all real samples of class 0 are equal"):
        class_variance_ratio(x, labels, torch.ones(6, 2), labels)
    with pytest.raises(LimbeckError, match=r"\(2,\) and real of \(1,\)"):
        class_variance_ratio(x, labels, x[:, :1], labels)
