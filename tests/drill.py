"""Runs of the tiny task that are killed, damaged and poisoned, and what must be equal in the end, bit for bit.

Every run is a child forked from a process that holds torch and the task already, so that one kill and one resume cost
tenths of a second. Forking is safe here because torch computes in one thread, on the CPU: no pool exists that a child lacks.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from limbeck.runs import distill
from limbeck.training import checkpoints
from limbeck.training.durable import Chunks

ITERATIONS = 40
_ANEW = {"student": {"anew": (13, 27)}}
OPTIONS: dict[str, dict[str, Any]] = {
    "dmd": {"gan_weight": 0.1, "gan_features": ("network.blocks.0",), "sigmas": (5.0, 1.0), **_ANEW},
    "sid": _ANEW,
    "disback": {"degrade": 8, "every": 4, "interval": 6},
    "sfd": {"forget": ("0=1",)},
    "hyper-sd": {"lengths": (), "then": ("reward", "score"), "rewards": ("drill:reward",), "hinges": (9.0,)},
    "pso": {"reward": "drill:reward", "sigmas": (5.0, 2.0, 1.0)},
}
"""What the methods are given beside `iterations` and `batch`: every stage and every role gets its share of a short run."""

poisoned: set[str] = set()


def reward(x: Tensor, cond: Any = None) -> Tensor:
    """Brightness; not a number in iterations of the loop while "reward" is in `poisoned`."""
    return x.mean((1, 2, 3)) * (float("nan") if poisoned >= {"reward", "iterating"} else 1.0)


def train(method: str, folder: Path, **more: Any) -> None:
    """Begin a run of the tiny task, or go on with the one that the folder holds, as a person would."""
    start = {"from_run": folder.parent / "base"} if method == "pso" else {}
    options = {"iterations": ITERATIONS, "batch": 8, **OPTIONS.get(method, {}), **more}
    resume = (folder / "config.yaml").exists()
    seed = os.getpid() if checkpoints.exist(folder / "checkpoints") else 0  # what a resumed process drew before must not matter
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    distill(
        method=method, task="tiny", out=folder, options=options, resume=resume, checkpoint_every=4, quiet=True,
        track=("none",), trust_code=True, **start,
    )  # fmt: skip


def base(folder: Path) -> None:
    """The few-step student that preferences begin with."""
    distill(
        method="dmd",
        task="tiny",
        out=folder / "base",
        options={"iterations": 2, "batch": 8, "sigmas": (5.0, 2.0, 1.0)},
        quiet=True,
    )


@dataclass(frozen=True)
class Ended:
    """How a child ended: ``signal`` that killed it, or 0, and what it ``said`` where it raised an error ("": it finished)."""

    signal: int
    said: str = ""


def in_child(action: Callable[[], Any], kill_after: float | None = None) -> Ended:
    """Do something in a forked process, killed by SIGKILL after so many seconds."""
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # "resumed at step ..."
            os.fsync = lambda descriptor: None  # what a killed process wrote is safe in the kernel: no need to wait for a disk
            action()
        except BaseException as error:
            text = str(error) if isinstance(error, Exception) and hasattr(error, "__module__") else ""
            last = traceback.extract_tb(error.__traceback__)[-1]
            os.write(write, f"{type(error).__name__}: {text} ({Path(last.filename).name}:{last.lineno})".encode()[:60_000])
        finally:
            os._exit(0)
    os.close(write)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with open(read, "rb") as told:
        said = told.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return Ended(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, said)


@contextmanager
def on_disk(tick: Callable[[], None]) -> Iterator[None]:
    """Call ``tick`` before and after every operation that must not be half done, and in the middle of every piece of a file."""

    def around(target: Any, name: str) -> Any:
        original = getattr(target, name)

        def ticked(*args: Any, **options: Any) -> Any:
            tick()
            result = original(*args, **options)
            tick()
            return result

        return mock.patch.object(target, name, ticked)

    def halting(path: Path, data: Chunks) -> None:
        with open(path, "xb", buffering=0) as file:
            for chunk in data:
                half = len(chunk) // 2
                file.write(chunk[:half])
                tick()
                file.write(chunk[half:])
            os.fsync(file.fileno())

    save = checkpoints.save

    def saved(*args: Any, **options: Any) -> Path:
        return save(*args, **options, writer=halting)

    patches = [
        around(os, "fsync"),
        around(os, "replace"),
        around(shutil, "rmtree"),
        mock.patch.object(checkpoints, "save", saved),
    ]
    patches += [around(Path, name) for name in ("rename", "mkdir", "write_text", "write_bytes", "unlink")]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


def operations(method: str, folder: Path, moment: int | None = None) -> int:
    """Train; die by SIGKILL at that moment of `on_disk`. Returns how many moments there were."""
    passed = 0

    def tick() -> None:
        nonlocal passed
        passed += 1
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    with on_disk(tick):
        train(method, folder)
    return passed


def outcome(folder: Path) -> dict[str, Any]:
    """What must not depend on how often a run was killed: every tensor of the last and of the best checkpoint (weights,
    averages, optimizers, random states), metrics, student, pictures, summary but its times, and the names of all files."""
    found: dict[str, Any] = {"files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))}
    for which in ("last", "best"):
        checkpoint = checkpoints.load(folder / "checkpoints", which)
        found[f"{which} step"] = checkpoint.step
        found |= {f"{which} {g}.{n}": exact(t) for g, named in checkpoint.tensors.items() for n, t in named.items()}
        if "limbeck_typechecker" in sys.modules:  # which draws from Python's own generator to choose what it checks
            found.pop(f"{which} rng.python")
        found |= {f"{which} meta.{n}": v for n, v in checkpoint.meta.items() if n != "seconds"}
    summary = json.loads((folder / "summary.json").read_text())
    found |= {f"summary.{n}": _timeless(v) for n, v in summary.items() if n not in ("seconds", "command")}
    for file in [folder / "metrics.jsonl", *folder.glob("student*"), *(folder / "samples").glob("*.png")]:
        found[str(file.relative_to(folder))] = file.read_bytes()
    return found


def exact(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    return str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _timeless(value: Any) -> Any:
    return {n: v for n, v in value.items() if n != "images_per_second"} if isinstance(value, dict) else value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what differs, for the list of files those that one of them lacks."""
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    lacking = {*one["files"]} ^ {*other["files"]}
    return [f"files {', '.join(sorted(lacking))}" if name == "files" else name for name in names]


@dataclass
class Drilled:
    """What a drill counted; ``wrong`` says what was not as it must be."""

    method: str
    kills: int = 0
    inside: int = 0
    """Kills in the middle of an operation on the disk."""
    resumes: int = 0
    runs: int = 0
    damaged: int = 0
    """Files of checkpoints that were damaged."""
    poisoned: dict[str, str] = field(default_factory=dict)
    """What a run said when a role answered NaN ("": nothing, the role takes no part)."""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def whole(method: str, folder: Path) -> tuple[dict[str, Any], int, float]:
    """(outcome, moments on the disk, seconds) of a run that nothing disturbs."""
    start = time.perf_counter()
    count = folder.with_suffix(".count")
    ended = in_child(lambda: count.write_text(str(operations(method, folder))))
    if ended != Ended(0):
        raise RuntimeError(f"the undisturbed run of {method} failed: {ended}")
    return outcome(folder), int(count.read_text()), time.perf_counter() - start


def drill_kills(method: str, place: Path, kills: int, seed: int, timed: bool = True) -> Drilled:
    """Kill runs of a method, at moments on the disk and (``timed``: every second one) at any time; resume after each kill.

    A run that ends before its next kill is compared and another one begun; the last one is resumed until it ends.
    """
    draw, done = random.Random(f"{seed} {method}"), Drilled(method)
    start = time.perf_counter()
    expected, moments, seconds = whole(method, place / f"{method}-whole")
    folder = place / f"{method}-0"
    while True:
        begun = (folder / "config.yaml").exists()
        last, delay = done.kills >= kills, None
        if last or (timed and done.kills % 2):
            delay = None if last else draw.uniform(0.0, seconds)
            ended = in_child(lambda: train(method, folder), delay)  # noqa: B023
        else:
            moment = draw.randrange(1, moments if draw.random() < 0.25 else moments // 8)
            ended = in_child(lambda: operations(method, folder, moment))  # noqa: B023
        done.resumes += begun
        if ended.signal:
            done.kills += 1
            done.inside += delay is None or any((folder / "checkpoints").glob(".partial-*"))
            continue
        done.runs += 1
        differ = [ended.said] if ended.said else differences(expected, outcome(folder))
        done.wrong += [f"{folder.name}, kill {done.kills}: {text}" for text in differ[:4]]
        if ended.said or last:
            break
        shutil.rmtree(folder)
        folder = place / f"{method}-{done.runs}"
    done.seconds = time.perf_counter() - start
    return done
