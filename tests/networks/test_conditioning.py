import math

import pytest
import torch

from limbeck.networks import Conditioning, sinusoids


def test_fourier_features_are_cosines_and_sines_of_low_frequencies():
    x = torch.tensor([-1.5, 0.0, 0.3, 1.1], dtype=torch.float64)
    found = sinusoids(x, 8, "fourier", scale=2.0)
    cycles = [1 / 16 * 32 ** (k / 3) for k in range(4)]
    assert cycles[-1] == pytest.approx(2)
    for row, value in zip(found, x.tolist(), strict=True):
        expected = [f(2 * math.pi * c * value) for f in (math.cos, math.sin) for c in cycles]
        assert row.tolist() == pytest.approx(expected, abs=1e-12)


def test_positional_features_span_a_thousand_timesteps():
    t = torch.arange(1001)
    found = sinusoids(t, 6, "positional")
    assert found.shape == (1001, 6) and found.dtype == torch.float32
    expected = [f(37 * 10000 ** (-k / 2)) for f in (math.cos, math.sin) for k in range(3)]
    assert found[37].tolist() == pytest.approx(expected, abs=1e-5)
    # no two timesteps look alike
    assert torch.pdist(sinusoids(t.double(), 64, "positional")).min() > 0.5


def test_features_are_computed_in_at_least_single_precision():
    x = torch.tensor([0.7, 999.0])
    assert sinusoids(x.bfloat16(), 8, "fourier").dtype == torch.float32
    assert sinusoids(x.double(), 8, "fourier").dtype == torch.float64


def test_per_token_noise_gives_a_vector_per_token():
    torch.manual_seed(0)
    net = Conditioning(6, classes=2).double()
    c = torch.rand(3, 4, dtype=torch.float64)
    cond = {"label": torch.tensor([0, 1, 2])}
    e = net(c, cond)
    assert e.shape == (3, 4, 6)
    for i in range(4):
        torch.testing.assert_close(e[:, i], net(c[:, i], cond), rtol=1e-12, atol=1e-12)
