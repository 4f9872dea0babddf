import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from limbeck.errors import LimbeckError
from limbeck.metrics import precision_recall
from limbeck.metrics import samples as samples_module


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def oracle(support: torch.Tensor, points: torch.Tensor, k: int) -> float:
    """The share of points in the k-NN manifold of the support, by scikit-learn's neighbours."""
    neighbours = NearestNeighbors(algorithm="kd_tree").fit(support.numpy())
    radii = neighbours.kneighbors(support.numpy(), k + 1)[0][:, -1]
    distances, order = neighbours.kneighbors(points.numpy(), len(support))
    return float((distances <= radii[order]).any(1).mean())


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("entries", [2**22, 300])
def test_precision_and_recall_are_those_of_sklearns_neighbours(k, entries, monkeypatch):
    monkeypatch.setattr(samples_module, "BLOCK_ENTRIES", entries)
    real, fake = normal(120, 4, seed=1), 1.2 + 0.9 * normal(90, 4, seed=2)
    precision, recall = precision_recall(real, fake, k)
    assert 0 < recall < 1 and 0 < precision < 1 and precision != recall
    assert precision == pytest.approx(oracle(real, fake, k), abs=1e-12)
    assert recall == pytest.approx(oracle(fake, real, k), abs=1e-12)


def test_two_modes_of_which_the_fakes_have_one_and_a_false_one():
    line = torch.linspace(0, 1, 20)[:, None]
    real, fake = torch.cat([line, line + 10]), torch.cat([line + 0.01, line + 20, line + 30, line + 40])
    assert precision_recall(real, fake) == (0.25, 0.5)


def test_radii_end_at_the_kth_other_sample_and_balls_are_closed():
    real = torch.tensor([0.0, 1.0, 3.0, 7.0])
    # k = 1: radii 1, 1, 2, 4, so the manifold is [-1, 5] and [3, 11].
    fake = torch.tensor([-1.0, -1.5, 11.0, 11.5])
    assert precision_recall(real, fake, k=1).precision == 0.5


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.integers(4, 20), st.integers(4, 20), st.integers(1, 5))
def test_symmetries(seed, n, m, size):
    real, fake = normal(n, size, seed=seed), normal(m, size, seed=seed + 1)
    precision, recall = precision_recall(real, fake)
    assert precision_recall(fake, real) == (recall, precision)
    # Powers of two are exact, so that no tie is broken.
    assert precision_recall(4 * real, 4 * fake) == (precision, recall)
    assert precision_recall(real, real.flip(0)) == (1, 1)
    wider = precision_recall(real, fake, k=2)
    assert wider.precision <= precision and wider.recall <= recall


def test_bad_input_is_named():
    x = normal(5, 2)
    with pytest.raises(LimbeckError, match="fake has 3 samples, at least 4"):
        precision_recall(x, x[:3])
    with pytest.raises(LimbeckError, match="k is 0"):
        precision_recall(x, x, k=0)
    with pytest.raises(LimbeckError, match=r"real has .* \(2,\) and fake of \(1,\)"):
        precision_recall(x, x[:, :1])
    with pytest.raises(LimbeckError, match="real has NaN"):
        precision_recall(x * torch.nan, x)
