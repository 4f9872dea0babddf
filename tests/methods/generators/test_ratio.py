"""Averages of a ratio by noise level: what they hold, what they do to one sample alone, and what they are for."""

import pytest
import torch

from limbeck.denoisers import MixtureDenoiser
from limbeck.errors import LimbeckError
from limbeck.methods.generators.ratio import RatioBins
from limbeck.noise import VE
from limbeck.rules import density_ratio

F64 = torch.float64


def test_a_bin_holds_the_average_of_its_ratios_and_an_empty_one_keeps_its_own():
    bins = RatioBins(4, ema=0.5)
    r, u = torch.tensor([2.0, 4.0, 5.0], dtype=F64), torch.tensor([0.1, 0.2, 0.99], dtype=F64)
    sums = bins.sums(r, u)
    assert sums.tolist() == [[6, 0, 0, 5], [2, 0, 0, 1]]
    got = bins.normalise(r, u, sums)
    assert bins.mean.tolist() == [1, 1, 1, 1]  # not before the iteration is over
    bins.finish()
    assert bins.mean.tolist() == [2, 1, 1, 3]
    torch.testing.assert_close(got, r / (torch.tensor([2, 2, 3], dtype=F64) + 1e-6), rtol=1e-15, atol=0)
    bins.finish()
    assert bins.mean.tolist() == [2, 1, 1, 3]
    assert bins.sums(r[:2], torch.tensor([0.0, 1.0], dtype=F64))[1].tolist() == [1, 0, 0, 1]  # the ends lie inside


def test_a_ratio_alone_in_its_bin_becomes_one():
    bins = RatioBins(4)
    r, u = torch.tensor([0.3, 7.0], dtype=F64), torch.tensor([0.1, 0.6], dtype=F64)
    assert bins.normalise(r, u, bins.sums(r, u)).tolist() == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("given", [{"bins": 0}, {"ema": 1.0}, {"ema": -0.1}])
def test_impossible_bins(given):
    with pytest.raises(LimbeckError, match=r"ratio_bins=\d+ must be at least 1 and ratio_ema=.* in \[0, 1\)"):
        RatioBins(**given)


@pytest.mark.parametrize("clamped", [True, False])
def test_without_the_normalisations_kl_is_three_times_as_noisy(clamped):
    # 200 batches of 64 from a student that has collapsed on the big mode, with the exact ratio
    means, weights = torch.tensor([[-2.0], [2.0]], dtype=F64), torch.tensor([0.7, 0.3], dtype=F64)
    student = MixtureDenoiser(torch.ones(1, dtype=F64), torch.full((1, 1), -1.5, dtype=F64), 0.36, VE())
    teacher, shape = MixtureDenoiser(weights, means, 0.25, VE()), (200, 64)
    generator = torch.Generator().manual_seed(0)
    z, e = torch.randn(2, 200 * 64, 1, generator=generator, dtype=F64)
    u = torch.rand(200 * 64, generator=generator, dtype=F64)
    t = 0.05 + 0.95 * u
    x_t = -1.5 + 0.6 * z + t[:, None] * e
    logits = teacher.log_prob(x_t, t) - student.log_prob(x_t, t)
    r = (density_ratio(logits) if clamped else logits.exp()).view(shape)
    delta, places = (student(x_t, t) - teacher(x_t, t)).view(shape), u.view(shape)

    def variance(h):
        along_mean, along_std = (h * delta).mean(1), (h * delta * 0.6 * z.view(shape)).mean(1)
        return float(torch.stack([along_mean, along_std]).norm(dim=0).var())

    bins = RatioBins(10)
    once = torch.stack([bins.normalise(part, at, bins.sums(part, at)) for part, at in zip(r, places, strict=True)])
    assert variance(r) > (3 if clamped else 50) * variance(once / (once.mean(1, keepdim=True) + 1e-6))
