"""The processes of a run: which they are, what rank 0 does for all, how a batch and its gradients are cut."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.training import ALONE, Loop, LoopOptions, TensorSource, launched
from limbeck.training.ranks import BUCKET, _buckets

sys.path.insert(0, str(Path(__file__).parent))
toys = import_module("test_loop")


def test_what_rank_0_makes_or_refuses_is_everybodys(ranks):
    def work():
        with launched() as world:
            made, told = [], []
            for make_it in (lambda: made.append(world.rank) or world.rank, lambda: (_ for _ in ()).throw(LimbeckError("no"))):
                try:
                    told.append(world.first(make_it))
                except LimbeckError as error:
                    told.append(str(error))
            turn = world.in_turn(lambda: made.append("own") or world.rank)
            return told, made, turn, world.any(world.rank == 1), world.any(False), world.writes

    assert ranks(2, work) == [([0, "no"], [0, "own"], 0, True, False, True), ([0, "no"], ["own"], 1, True, False, False)]


def test_a_batch_that_is_too_small_for_the_processes_says_so(ranks):
    def work():
        answers = []
        with launched() as world:
            for options in ({"batch": 1}, {"micro_batches": 4}):
                try:
                    given = LoopOptions(**{"iterations": 1, "batch": 7, **options})
                    Loop(toys.Toy(), TensorSource(torch.zeros(7, 2)), given, quiet=True, world=world).iterate()
                except LimbeckError as error:
                    answers.append(str(error))
        return answers

    first, second = ranks(2, work)[1]
    assert "a batch of 1 over 2 processes leaves 0 samples to one of them" in first and "a batch of at least 2" in first
    assert "leaves 3 samples to one of them, which cannot be cut into micro_batches=4; use a batch of at least 8" in second


def test_only_processes_of_a_launcher_are_several(monkeypatch):
    with launched() as world:
        assert world is ALONE and world.writes and world.evaluates
    with (
        pytest.raises(LimbeckError, match="unknown way to be parallel 'split': .*Allowed: replicate, shard"),
        launched("cpu", "split"),
    ):
        pass
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(LimbeckError, match="process 1 of this machine has no GPU, there are 1; start --nproc-per-node 1"),
        launched("cuda"),
    ):
        pass
    with pytest.raises(LimbeckError, match="every process takes a GPU of its own; give --device cuda"), launched("cuda:0"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launched() as world:
        assert world is ALONE


def test_gradients_are_summed_in_buckets_of_one_dtype():
    half = BUCKET // 8 // 2
    grads = [torch.zeros(half, dtype=torch.float64), torch.zeros(3), torch.zeros(half, dtype=torch.float64), torch.zeros(5)]
    grads += [torch.zeros(1, dtype=torch.float64), torch.zeros(3 * half, dtype=torch.float64), torch.zeros(1)]
    found = _buckets(grads)
    assert sorted(id(g) for b in found for g in b) == sorted(map(id, grads))
    assert [[g.numel() for g in b] for b in found] == [[half, half], [3, 5, 1], [1], [3 * half]]
    assert all(len({g.dtype for g in b}) == 1 for b in found)
