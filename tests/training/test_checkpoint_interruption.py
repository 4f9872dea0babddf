import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from limbeck.training.checkpoints import CheckpointError, load, save
from limbeck.training.durable import write_synced


def tiny(folder, step, **options):
    return save(folder, step, {"net": {"w": torch.tensor(step)}}, {"step": step}, best=True, **options)


class Stopped(BaseException):
    """The process is killed here."""


def interrupt(patch, tick):
    """Call `tick` before and after everything that a save does on the disk."""

    def around(target, name):
        original = getattr(target, name)

        def ticked(*args, **kwargs):
            tick()
            result = original(*args, **kwargs)
            tick()
            return result

        patch.setattr(target, name, ticked)

    for target, name in [
        (os, "fsync"),
        (os, "replace"),
        (Path, "rename"),
        (Path, "mkdir"),
        (shutil, "rmtree"),
    ]:
        around(target, name)


@pytest.mark.parametrize("again", [False, True], ids=["new", "again"])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(run, tmp_path, again):
    before = (1, 2) if again else (1,)
    for step in before:
        tiny(tmp_path / "before", step)
    moment, finished = 0, False
    while not finished:
        folder = shutil.copytree(tmp_path / "before", tmp_path / str(moment))
        passed = 0

        def tick():
            nonlocal passed
            passed += 1
            if passed > moment:  # noqa: B023
                raise Stopped

        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, tick)  # once stopped, nothing is cleaned up either: later calls are refused too
            try:
                tiny(folder, 2, keep=1)
                finished = True
            except Stopped:
                moment += 1
        for which in ("last", "best"):
            checkpoint = load(folder, which)
            assert checkpoint.step in (before[-1], 2)
            assert checkpoint.tensors["net"]["w"] == checkpoint.meta["step"] == checkpoint.step
            assert checkpoint.skipped == []
        tiny(folder, 3, keep=1)
        assert run.names(folder) == ["best.json", "step-00000003"]
    assert moment > 20


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), Stopped()])
@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("file", [0, 1, 2, 3])
def test_a_writer_that_fails_leaves_the_previous_checkpoint(run, tmp_path, error, when, file):
    run.saved(tmp_path, 1, best=True)
    calls = []

    def writer(path, data):
        calls.append(path)
        if len(calls) <= file:
            return write_synced(path, data)
        if when == "half":
            path.write_bytes(b"".join(data)[:50])
        elif when == "after":
            write_synced(path, data)
        raise error

    expected = CheckpointError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        save(tmp_path, 2, run.state(2), run.meta(2), keep=1, best=True, writer=writer)
    if expected is CheckpointError:
        message = str(caught.value)
        assert "step 2" in message
        assert "No space left on device" in message
    # The last file is best.json: the checkpoint itself is complete by then.
    newest = 2 if file == 3 else 1
    assert run.is_step(load(tmp_path), newest)
    assert run.is_step(load(tmp_path, "best"), 1)
    assert [name for name in run.names(tmp_path) if name.startswith("step")] == [
        f"step-0000000{n}" for n in range(1, newest + 1)
    ]
    assert not [path for path in tmp_path.glob(".partial-*") if path.is_dir()]


def test_a_full_disk_leaves_the_previous_checkpoint(run, tmp_path):
    resource = pytest.importorskip("resource")
    run.saved(tmp_path, 1, best=True)
    big = {"small": {"w": torch.ones(9)}, "net": {"w": torch.ones(100_000)}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 2 .*File too large.*steps: 1\)"):
            save(tmp_path, 2, big, {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert run.names(tmp_path) == ["best.json", "step-00000001"]
    assert run.is_step(load(tmp_path), 1)
    save(tmp_path, 2, big, {}, keep=1)
    assert torch.equal(load(tmp_path).tensors["net"]["w"], torch.ones(100_000))
