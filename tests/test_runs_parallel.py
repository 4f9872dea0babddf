"""Runs of several processes: the folder is that of one process, rank 0 alone writes it, and torchrun starts it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.errors import LimbeckError
from limbeck.runs import distill, open_run
from limbeck.training import checkpoints, read_metrics

SMALL = {"iterations": 3, "batch": 7, "sigmas": (5.0, 1.0)}


def small(out, method="dmd", resume=False, **more):
    options = {**SMALL, **more.pop("options", {})}
    return distill(method=method, task="tiny", out=out, options=options, dtype="float64", quiet=True, resume=resume, **more)


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("way", ["replicate", "shard"])
def test_the_folder_is_that_of_one_process(way, ranks, tiny_task, tmp_path, capfd):
    def work():
        done = small(tmp_path / "two", parallel=way)
        return str(done.path), sorted(done.summary)

    answers = ranks(2, work)
    one = small(tmp_path / "one")
    assert answers[0] == (str(tmp_path / "two"), sorted(one.summary))
    assert answers[1] == (str(tmp_path / "two"), [])
    assert files(tmp_path / "two") == files(tmp_path / "one")
    config = "config.yaml"  # knows nothing of the number of processes
    assert (tmp_path / "two" / config).read_text() == (tmp_path / "one" / config).read_text()
    mine, theirs = (load_file(tmp_path / name / "student.safetensors") for name in ("two", "one"))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-8, atol=1e-10)
    figures, expected = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("two", "one"))
    assert figures["student"]["frechet"] == pytest.approx(expected["student"]["frechet"], rel=1e-6)
    assert figures["history"] == [[step, pytest.approx(shown)] for step, shown in expected["history"]]
    seen, wanted = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert seen.keys() == wanted.keys() and seen["loss/critic"][1] == pytest.approx(wanted["loss/critic"][1])
    again, _ = open_run(tmp_path / "two", quiet=True)
    assert again.summary["student"] == figures["student"]


def test_a_run_of_two_is_resumed_by_one_and_a_run_of_one_by_two(ranks, tiny_task, tmp_path, monkeypatch):
    from limbeck.training import Interrupted, Loop

    iterate = Loop.iterate

    def until(self):
        figures = iterate(self)
        if self.step == 1:
            self._signal = 15
        return figures

    def cut(folder):
        def work():
            monkeypatch.setattr(Loop, "iterate", until)
            try:
                small(folder, options={"iterations": 4})
            except Interrupted as error:
                return str(error)

        return work

    small(tmp_path / "uncut", options={"iterations": 4})
    told = ranks(2, cut(tmp_path / "a"))
    assert told[0] == told[1] and "stopped by SIGTERM after step 2" in told[0]  # agreed upon in the next iteration
    with monkeypatch.context():
        assert "stopped by SIGTERM after step 1" in cut(tmp_path / "b")()
        monkeypatch.undo()
    small(tmp_path / "a", resume=True, options={"iterations": 4})
    ranks(2, lambda: small(tmp_path / "b", resume=True, parallel="shard", options={"iterations": 4}).path)
    expected = load_file(tmp_path / "uncut" / "student.safetensors")
    for name in ("a", "b"):
        for key, value in load_file(tmp_path / name / "student.safetensors").items():
            torch.testing.assert_close(value, expected[key], rtol=1e-8, atol=1e-10)


def test_a_script_may_distil_twice(ranks, tiny_task, tmp_path):
    def work():
        return [len(small(tmp_path / name, parallel=way).summary) > 0 for name, way in (("a", "shard"), ("b", "replicate"))]

    assert ranks(2, work) == [[True, True], [False, False]]
    torch.testing.assert_close(*(load_file(tmp_path / name / "student.safetensors") for name in "ab"), rtol=1e-8, atol=1e-10)


def test_a_folder_that_is_taken_is_refused_in_all_processes(ranks, tiny_task, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    def work():
        try:
            small(tmp_path)
        except LimbeckError as error:
            return str(error)

    first, second = ranks(2, work)
    assert first == second and "is not a run (no config.yaml) and will not be overwritten" in first


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from limbeck.cli import main
from limbeck.tasks import TASKS

TASKS["tiny"] = "tiny_task:tiny"
sys.exit(main(sys.argv[1:]))
"""


def torchrun(tmp_path, script, *options):
    (tmp_path / "script.py").write_text(script.format(tests=str(Path(__file__).parent)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = ["--task", "tiny", "--batch", "7", "--dtype", "float64", "--out", str(tmp_path / "run"), *options]
    env = {**os.environ, "LIMBECK_TYPECHECK": "0", "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    command = [*launch, str(tmp_path / "script.py"), "distill", "dmd", *given]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["replicate", "shard"])
def test_torchrun_starts_a_run(way, tmp_path):
    done = torchrun(tmp_path, SCRIPT, "--iterations", "3", "--parallel", way)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1 and done.stderr.count("3/3") == 1  # one process speaks
    assert checkpoints.load(tmp_path / "run" / "checkpoints").step == 3
    assert (tmp_path / "run" / "report.html").is_file()
    again = torchrun(tmp_path, SCRIPT, "--iterations", "3", "--parallel", way)
    assert again.returncode != 0 and "limbeck: " in again.stderr and "already exists" in again.stderr
    assert "limbeck (rank 1): " in again.stderr


KILLED = """
import os, signal
from limbeck.training import Loop

iterate = Loop.iterate

def until(self):
    if self.step == 7 and self.world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return iterate(self)

Loop.iterate = until
"""


@pytest.mark.slow
def test_a_killed_process_of_torchrun_is_named(tmp_path):
    start = time.perf_counter()
    done = torchrun(tmp_path, KILLED + SCRIPT, "--iterations", "50", "--checkpoint-every", "5")
    assert done.returncode != 0 and time.perf_counter() - start < 120  # most of it to start
    assert re.search(r"^limbeck: rank 1 \(.+, pid \d+\) died at step 7$", done.stderr, re.MULTILINE)
    assert checkpoints.load(tmp_path / "run" / "checkpoints").step == 5
