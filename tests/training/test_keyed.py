import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from limbeck.errors import LimbeckError
from limbeck.training.keyed import SMALL, Keyed, philox4x32, sample_order

SHAPES = [(), (1,), (5,), (2, 3), (SMALL,), (SMALL + 1,), (3, 10, 10)]


def keyed(index, seed=3, step=5):
    return Keyed(seed, step, torch.as_tensor(index, dtype=torch.int64))


def draws(source, shape):
    return [
        source.normal("z", shape),
        source.normal("z", shape, torch.float64, call=1),
        source.uniform("u", shape),
        source.randint("i", -7, 1000, shape),
    ]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    words = np.array([int(word, 16) for word in counter.split()], dtype=np.uint64)
    k0, k1 = (int(word, 16) for word in key.split())
    # Twice, with another counter between, so that the layout of many counters is checked too.
    out = philox4x32(np.stack([words, words ^ np.uint64(9), words], axis=1), (k0, k1))
    assert [f"{word:08x}" for word in out[:, 0]] == expected.split()
    assert [f"{word:08x}" for word in out[:, 2]] == expected.split()
    assert (out[:, 1] != out[:, 0]).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_do_not_depend_on_the_rest_of_the_batch(shape):
    ids = torch.tensor([4, 0, 2**40 + 1, 17, 2**32 + 4, 9, 2**63 - 1])
    for order in (torch.tensor([3]), torch.tensor([6, 1, 4]), torch.arange(7).flip(0)):
        for whole, part in zip(draws(keyed(ids), shape), draws(keyed(ids[order]), shape), strict=True):
            assert whole.shape == (7, *shape)
            assert torch.equal(whole[order], part)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_split_batch_draws_the_same_bits(shape):
    ids = torch.arange(100, 137)
    whole = draws(keyed(ids), shape)
    for parts in (1, 2, 3, 5, 37):
        split = zip(*(draws(keyed(chunk), shape) for chunk in ids.chunk(parts)), strict=True)
        for one, many in zip(whole, split, strict=True):
            assert torch.equal(one, torch.cat(many))


def test_ids_that_share_32_bits_differ():
    for shape in ((4,), (SMALL + 4,)):
        a, b = keyed([7, 7 + 2**32]).normal("z", shape)
        assert not torch.equal(a, b)


@pytest.mark.parametrize("size", [16, 7, SMALL + 44])
def test_normal_numbers_are_normal(size):
    z = keyed(range(60_000 // size)).normal("z", (size,), torch.float64).numpy()
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    # Along samples and along places of one sample alike.
    assert stats.kstest(z[:, 0], "norm").pvalue > 1e-3
    assert stats.kstest(z[:, -1], "norm").pvalue > 1e-3
    assert abs(np.corrcoef(z[:, :-1].ravel(), z[:, 1:].ravel())[0, 1]) < 4 / np.sqrt(z.size)
    assert abs(np.corrcoef(z[:-1].ravel(), z[1:].ravel())[0, 1]) < 4 / np.sqrt(z.size)


@pytest.mark.parametrize("size", [16, SMALL + 44])
def test_uniform_numbers_are_uniform(size):
    u = keyed(range(60_000 // size)).uniform("u", (size,)).numpy()
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert u.min() >= 0
    assert u.max() < 1


@pytest.mark.parametrize("size", [10, SMALL + 44])
def test_integers_are_equally_frequent(size):
    i = keyed(range(40_000 // size)).randint("i", -3, 8, (size,))
    assert i.dtype == torch.int64
    counts = torch.bincount(i.flatten() + 3)
    assert len(counts) == 11
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_seeds_steps_streams_calls_and_kinds_are_uncorrelated():
    ids = range(2000)
    sources = {
        "base": keyed(ids).normal("z", (8,)),
        "seed": keyed(ids, seed=4).normal("z", (8,)),
        "step": keyed(ids, step=6).normal("z", (8,)),
        "swapped": keyed(ids, seed=5, step=3).normal("z", (8,)),
        "stream": keyed(ids).normal("y", (8,)),
        "call": keyed(ids).normal("z", (8,), call=1),
        "uniform": keyed(ids).uniform("z", (8,), torch.float32),
    }
    correlation = np.corrcoef(np.stack([values.numpy().ravel() for values in sources.values()]))
    assert np.abs(correlation - np.eye(len(sources))).max() < 4 / np.sqrt(16_000)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(200,), (SMALL + 9,)])
def test_dtypes_round_the_same_numbers(dtype, shape):
    source = keyed(range(300))
    assert torch.equal(source.normal("z", shape, dtype), source.normal("z", shape, torch.float64).to(dtype))
    exact, u = source.uniform("u", shape), source.uniform("u", shape, dtype)
    assert u.dtype == dtype
    assert u.max() < 1  # rounding 60,000 numbers to bfloat16 would reach 1
    difference = exact - u.double()
    assert difference.min() >= 0
    assert difference.max() <= torch.finfo(dtype).eps / 2


def test_shared_draws_depend_on_the_key_alone():
    a, b = keyed([0, 1]), keyed([5])
    assert a.shared_uniform("t") == b.shared_uniform("t")
    assert a.shared_randint("k", 0, 2**40) == b.shared_randint("k", 0, 2**40)
    steps = [keyed([0], step=n) for n in range(2000)]
    u = [source.shared_uniform("t") for source in steps]
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    counts = np.bincount([source.shared_randint("k", 2, 6) - 2 for source in steps])
    assert len(counts) == 4
    assert stats.chisquare(counts).pvalue > 1e-3
    assert a.shared_uniform("t") != a.shared_uniform("t", call=1)


def test_the_numbers_never_change():
    # A resumed run must see the noise it was started with: these values hold for good.
    source = keyed([0, 12345678901])
    assert source.randint("i", 0, 2**20, (2,)).tolist() == [[694919, 794903], [435106, 187857]]
    assert source.randint("i", 0, 2**20, (SMALL + 1,))[:, -1].tolist() == [175270, 810333]
    z = source.normal("z", (1,), torch.float64).flatten()
    np.testing.assert_allclose(z, [0.8325402656472943, -1.4925372718084746], rtol=1e-14)
    assert (source.shared_uniform("t"), source.shared_randint("k", 0, 1000)) == (0.007950754795728932, 778)
    assert sample_order(3, 5, 8, 10).tolist() == [0, 7, 4, 8, 6, 1, 7, 9]


def test_empty_batches_and_shapes():
    assert keyed([]).normal("z", (4,)).shape == (0, 4)
    assert keyed([]).normal("z", (3, 16, 16)).shape == (0, 3, 16, 16)
    assert keyed([1, 2]).uniform("u", (0, 3)).shape == (2, 0, 3)
    assert keyed([1, 2]).normal("z", (0, 3)).shape == (2, 0, 3)


def test_integers_reach_all_64_bits():
    i = keyed(range(500)).randint("i", -(2**63), 2**63)
    assert i.min() < -(2**62)
    assert i.max() > 2**62
    assert keyed([0]).randint("i", 2**63 - 1, 2**63).item() == 2**63 - 1


@pytest.mark.parametrize(("low", "high"), [(3, 3), (4, 3), (0, 2**64)])
def test_an_empty_range_is_named(low, high):
    with pytest.raises(LimbeckError, match=rf"\[{low}, {high}\)"):
        keyed([0]).randint("i", low, high)
    with pytest.raises(LimbeckError, match=rf"\[{low}, {high}\)"):
        keyed([0]).shared_randint("i", low, high)


@pytest.mark.parametrize("index", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.tensor(4)])
def test_ids_must_be_a_vector_of_integers(index):
    with pytest.raises(LimbeckError, match="sample ids"):
        Keyed(0, 0, index)


@given(seed=st.integers(0, 2**64), size=st.integers(1, 40), epoch=st.integers(0, 10**6))
def test_each_epoch_is_a_permutation(seed, size, epoch):
    assert sorted(sample_order(seed, epoch * size, size, size).tolist()) == list(range(size))


@settings(max_examples=50)
@given(start=st.integers(0, 200), count=st.integers(0, 100), size=st.integers(1, 60))
def test_any_start_is_a_slice_of_the_whole_sequence(start, count, size):
    whole = sample_order(11, 0, 300, size)
    assert torch.equal(sample_order(11, start, count, size), whole[start : start + count])


def test_all_permutations_are_equally_frequent():
    orders = [sample_order(seed, 0, 2400 * 4, 4).reshape(2400, 4) for seed in (0, 1)]
    assert not torch.equal(*orders)
    permutations, counts = orders[0].unique(dim=0, return_counts=True)
    assert len(permutations) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_changing_what_was_returned_does_not_change_the_sequence():
    first = sample_order(0, 0, 10, 10)
    expected = first.clone()
    first.zero_()
    assert torch.equal(sample_order(0, 0, 10, 10), expected)


@pytest.mark.parametrize(("start", "count", "size"), [(0, 1, 0), (-1, 1, 5), (0, -1, 5)])
def test_impossible_orders_are_named(start, count, size):
    with pytest.raises(LimbeckError, match=f"{count} samples from place {start} of a set of {size}"):
        sample_order(0, start, count, size)
