import random

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.networks import RngCapture
from limbeck.training.rng import restore_rng, rng_state


def draws():
    return [
        *torch.rand(3).tolist(),
        torch.randn(()).item(),
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
    ]


def seed_all():
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)


@pytest.fixture(autouse=True)
def seeded():
    before = rng_state()
    seed_all()
    yield
    restore_rng(before)


# After an odd number of draws by gauss and randn one normal number is in store: it belongs to the state.
@pytest.mark.parametrize("drawn", [0, 1, 2, 700])
def test_restored_generators_repeat_their_numbers(drawn):
    for _ in range(drawn):
        draws()
    state = rng_state()
    assert all(t.dtype in (torch.uint8, torch.int64, torch.float64) for t in state.values())
    first = [draws() for _ in range(3)]
    restore_rng({name: t.clone() for name, t in state.items()})
    assert [draws() for _ in range(3)] == first


def test_capturing_the_state_changes_nothing():
    expected = draws()
    seed_all()
    rng_state()
    assert draws() == expected


def test_a_state_that_lacks_a_generator_is_named():
    state = rng_state()
    del state["numpy"]
    with pytest.raises(LimbeckError, match="lack numpy"):
        restore_rng(state)


def test_a_cuda_device_that_is_not_here_is_told():
    state = rng_state() | {"cuda/99": torch.zeros(16, dtype=torch.uint8)}
    with pytest.warns(UserWarning, match="cuda/99"):
        restore_rng(state)


def test_replayed_forwards_see_the_same_mask_and_use_the_numbers_of_one():
    net = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 4), nn.Dropout(0.2))
    x = torch.randn(5, 6)
    state = rng_state()
    alone = net(x)
    after_one_forward = torch.rand(4)

    restore_rng(state)
    capture = RngCapture()
    first = net(x)
    with capture.replay():
        second = net(x)
    assert torch.equal(first, alone)
    assert torch.equal(second, first)
    assert torch.equal(torch.rand(4), after_one_forward)
    with capture.replay():
        assert torch.equal(net(x), first)
    assert not torch.equal(net(x), first)


def test_a_replay_that_fails_leaves_the_generators_as_they_were():
    capture = RngCapture("cpu")
    torch.rand(5)
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), capture.replay():
        torch.rand(5)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), state)


def test_replays_nest():
    outer = RngCapture()
    a = torch.rand(2)
    inner = RngCapture()
    b = torch.rand(2)
    with outer.replay():
        assert torch.equal(torch.rand(2), a)
        with inner.replay():
            assert torch.equal(torch.rand(2), b)
        assert torch.equal(torch.rand(2), b)  # the outer replay goes on after its first draw


def test_other_devices_are_refused():
    with pytest.raises(LimbeckError, match="meta"):
        RngCapture("meta")


def test_apples_generator_is_replayed_and_put_back(monkeypatch):
    """torch.mps in miniature: one generator without a device index, whose numbers a forward there would draw."""
    generator = torch.Generator().manual_seed(3)
    monkeypatch.setattr(torch.mps, "get_rng_state", generator.get_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", generator.set_state)
    capture = RngCapture("mps")
    first, on_cpu = torch.rand(3, generator=generator), torch.rand(2)
    with capture.replay():
        assert torch.equal(torch.rand(3, generator=generator), first) and torch.equal(torch.rand(2), on_cpu)
    after = generator.get_state()
    with pytest.raises(ZeroDivisionError), capture.replay():
        torch.rand(5, generator=generator)
        raise ZeroDivisionError
    assert torch.equal(generator.get_state(), after) and not torch.equal(torch.rand(3, generator=generator), first)


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs MPS")
def test_masks_on_mps_are_shared():
    capture = RngCapture("mps")
    first = torch.rand(8, device="mps")
    with capture.replay():
        assert torch.equal(torch.rand(8, device="mps"), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_generators_are_restored_and_replayed():
    torch.rand(1, device="cuda")
    state = rng_state()
    capture = RngCapture("cuda")
    first = torch.rand(8, device="cuda")
    with capture.replay():
        assert torch.equal(torch.rand(8, device="cuda"), first)
    second = torch.rand(8, device="cuda")
    restore_rng(state)
    assert torch.equal(torch.rand(8, device="cuda"), first)
    assert torch.equal(torch.rand(8, device="cuda"), second)
