"""Which rank is gone: told by the others at once where a collective fails, by its silence where nothing else tells."""

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

from limbeck.training import Loop, LoopOptions, TensorSource, heartbeat, launched
from limbeck.training.heartbeat import DONE, Heartbeat
from limbeck.training.ranks import RankLost

sys.path.insert(0, str(Path(__file__).parent))
toys = import_module("test_loop")


class Store(dict):
    """A key-value store as torch.distributed has them, which can be lost."""

    lost = False

    def set(self, key, value):
        self._check()
        self[key] = value

    def multi_get(self, keys):
        self._check()
        return [self[key].encode() for key in keys]

    def _check(self):
        if self.lost:
            raise RuntimeError("Connection reset by peer")


@pytest.fixture
def hearts(monkeypatch):
    """Three that beat only when told so, at a time of our own."""
    clock = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(heartbeat.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    store = Store()
    found = [Heartbeat(store, rank, 3) for rank in range(3)]
    for heart in found:
        heart._look()
    return found, clock, store


def beat(heart):
    heart.mine.beat += 1
    heart._tell()


def test_a_rank_that_falls_silent_is_named_with_host_process_and_step(hearts):
    found, clock, _ = hearts
    found[0].mine.step = 7
    found[2].mine.host = "other"
    for _ in range(25):
        clock[0] += 1
        beat(found[0])
        beat(found[1])
        found[0]._look()
        found[1]._look()
    assert found[0]._gone() == found[1]._gone().replace("step 0", "step 7")
    assert found[0]._gone() == f"rank 2 ({Heartbeat(Store(), 0, 1).mine.host}, pid {os.getpid()}) died at step 7"


def test_a_rank_that_is_done_is_not_missed_and_one_that_failed_says_why(hearts):
    found, clock, _ = hearts
    found[1].leave()
    clock[0] += 60
    beat(found[2])
    found[0]._look()
    assert found[1].mine.left == DONE and found[0]._gone() is None
    found[2].leave("no space left")
    assert found[0].lost(patience=0).endswith("failed at step 0: no space left")


def test_silence_is_waited_for_and_a_lost_store_is_the_end_of_the_rank_that_held_it(hearts):
    found, clock, store = hearts
    store.lost = True
    start = clock[0]
    assert "rank 0 (" in found[1].lost(patience=30) and clock[0] - start == pytest.approx(heartbeat.STALE, abs=1)
    store.lost = False
    beat(found[0])
    beat(found[2])
    assert found[1].lost(patience=2) is None


def test_a_process_that_ended_here_is_known_at_once():
    child = os.fork()
    if child == 0:
        os._exit(0)
    time.sleep(0.1)
    assert heartbeat._dead(child)  # ended, not yet waited for
    os.waitpid(child, 0)
    assert heartbeat._dead(child) and not heartbeat._dead(os.getpid())


def test_signs_are_json():
    store = Store()
    Heartbeat(store, 3, 4)
    assert json.loads(store["limbeck/3"])["pid"] == os.getpid()


@pytest.mark.parametrize("way", ["replicate", "shard"])
@pytest.mark.parametrize("end", ["killed", "raised"])
def test_the_others_end_where_one_does(way, end, ranks):
    def work():
        with launched("cpu", way) as world:
            loop = Loop(toys.Toy(), TensorSource(torch.zeros(7, 2)), LoopOptions(50, 7), quiet=True, world=world)
            iterate = loop.iterate

            def until():
                if loop.step == 5 and world.rank == 1:
                    if end == "killed":
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise ValueError("no space left")
                return iterate()

            loop.iterate = until
            loop.train()

    def caught():
        try:
            work()
        except (RankLost, ValueError) as error:
            return type(error).__name__, str(error), getattr(error, "exit_code", None), os.getpid()

    start = time.perf_counter()
    mine, theirs = ranks(2, caught, may_die=True)
    assert time.perf_counter() - start < 60
    assert mine[0] == "RankLost" and mine[2] == 1 and mine[1].startswith("rank 1 (")
    if end == "killed":
        assert theirs is None and mine[1].endswith("died at step 5")
    else:
        assert theirs[0] == "ValueError" and mine[1].endswith(f"pid {theirs[3]}) failed at step 5: no space left")


def test_a_process_that_does_not_notice_is_ended(ranks, capfd):
    def work():
        heartbeat.STALE, heartbeat.GRACE = 1.0, 0.5
        with launched() as world:
            if world.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # as in a collective on a GPU, which never returns

    start = time.perf_counter()
    assert ranks(2, work, may_die=True) == [None, None]
    assert time.perf_counter() - start < 30
    err = capfd.readouterr().err
    assert "limbeck: rank 1 (" in err and "died at step 0; ended" in err
