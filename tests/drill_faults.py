"""Damage, refusals of the disk, other formats and values that are not finite, on runs of the tiny task (see drill.py)."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._pytree import tree_map

import drill
from drill import in_child, outcome, train
from limbeck.training import Loop, checkpoints
from limbeck.training.durable import Chunks, write_synced
from limbeck.training.sealed import seal, unseal


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut off somewhere, or with one bit flipped."""
    if draw.random() < 1 / 3:
        return data[: draw.randrange(len(data))]
    flipped = bytearray(data)
    flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def drill_damage(whole: Path, tries: int, seed: int) -> list[str]:
    """Damage random files of a finished run's checkpoints, one at a time; what was not found out."""
    draw, wrong, folder = random.Random(seed), [], whole / "checkpoints"
    steps = sorted(int(path.name[5:]) for path in folder.glob("step-*"))
    good = {step: _bytes(checkpoints.load(folder, step)) for step in steps}
    for _ in range(tries):
        file = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        before = file.read_bytes()
        file.write_bytes(damaged(before, draw))
        last = checkpoints.load(folder)
        if file.parent.name == f"step-{steps[-1]:08d}":
            found = last.step == steps[-2] and len(last.skipped) == 1 and f"{file.parent.name}: {file.name}" in last.skipped[0]
        else:
            asked = "best" if file.name == "best.json" else int(file.parent.name[5:])
            found = last.step == steps[-1] and not last.skipped and file.name in _refused(folder, asked)
        if not found or _bytes(last) != good[last.step]:
            wrong.append(f"damage to {file.relative_to(folder)} was not found: step {last.step}, {last.skipped}")
        file.write_bytes(before)
    return wrong


def drill_damaged_resume(method: str, whole: Path, expected: dict[str, Any], seed: int) -> list[str]:
    """Go on with a run whose newest checkpoint is damaged: from the one before, to the same end."""
    folder = Path(shutil.copytree(whole, whole.with_name(f"{whole.name}-damaged")))
    newest = max((folder / "checkpoints").glob("step-*"))
    file = random.Random(seed).choice(sorted(newest.iterdir()))
    file.write_bytes(damaged(file.read_bytes(), random.Random(seed)))
    return _goes_on(method, folder, expected, f"after damage to {file.name}")


def drill_formats(method: str, whole: Path, expected: dict[str, Any]) -> list[str]:
    """A newest checkpoint of format 0 and one of format 99: refused by name, or migrated; the run ends as it would have."""
    wrong = []
    for version, reason in ((0, "no longer reads format 0"), (99, "update Limbeck")):
        folder = Path(shutil.copytree(whole, whole.with_name(f"{whole.name}-format-{version}")))
        newest = max((folder / "checkpoints").glob("step-*"))
        document = unseal((newest / "checkpoint.json").read_bytes(), checkpoints.FORMAT, {})
        (newest / "checkpoint.json").write_bytes(seal({**document, "format": version}))
        loaded = checkpoints.load(folder / "checkpoints")
        if len(loaded.skipped) != 1 or reason not in loaded.skipped[0]:
            wrong.append(f"format {version} was not refused by name: {loaded.skipped}")
        with mock.patch.dict(checkpoints.MIGRATIONS, {0: lambda old: old}):
            migrated = checkpoints.load(folder / "checkpoints")
        if version == 0 and (migrated.skipped or _bytes(migrated) != _bytes(checkpoints.load(whole / "checkpoints"))):
            wrong.append("format 0 was not migrated")
        wrong += _goes_on(method, folder, expected, f"with format {version}")
    return wrong


def _no_space(loop: Loop) -> None:
    save = checkpoints.save

    def full(path: Path, data: Chunks) -> None:
        write_synced(path, data)
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints.save = lambda *args, **options: save(*args, **options, writer=full)


def _small_files(loop: Loop) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


def _read_only(loop: Loop) -> None:
    assert loop.folder is not None
    for path in (loop.folder, *(path for path in loop.folder.rglob("*"))):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if not os.geteuid():
        os.seteuid(65534)  # root may write everywhere


REFUSALS: dict[str, Callable[[Loop], None]] = {
    "No space left on device": _no_space,
    "File too large": _small_files,
    "Permission denied": _read_only,
}


def drill_disk(method: str, place: Path, expected: dict[str, Any]) -> list[str]:
    """A full disk (an injected writer, and a limit on the size of files) and a folder that cannot be written, from step 10
    on: the run stops and says so, the last checkpoint is whole, and the run ends as it would have."""
    wrong = []
    for reason, refuse in REFUSALS.items():
        folder = place / f"{method}-{reason.split()[0].lower()}"
        ended = in_child(lambda: _until(10, refuse, lambda: train(method, folder)))  # noqa: B023
        for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            path.chmod(0o755)
        kept = checkpoints.load(folder / "checkpoints")
        if not re.search(rf"could not be written to .*{reason}.*intact", ended.said) or kept.step < 7 or kept.skipped:
            wrong.append(f"{reason}: {ended}, kept step {kept.step}, {kept.skipped}")
        for path in folder.rglob("*"):
            path.chmod(0o755)
        wrong += _goes_on(method, folder, expected, f"after {reason!r}")
    return wrong


def drill_poison(method: str, place: Path, role: str, step: int = 21) -> tuple[str, list[str]]:
    """Let a role (or the "reward") answer what is not a number in all iterations from a step on: (what the run said, what was
    wrong).

    The run must stop, name a role and the step, keep a whole checkpoint, and fail alike when it is resumed. It says "" where
    the role takes no part in training any more: it must then end like the undisturbed one (``METHOD-whole``).
    """
    folder, wrong = place / f"{method}-{role.replace(' ', '-')}", []

    def poison(loop: Loop) -> None:
        drill.poisoned.add(role)
        if role in loop.method.roles:
            loop.method.roles[role].module.register_forward_hook(_spoil)

    said = [in_child(lambda: _until(step, poison, lambda: train(method, folder))).said for _ in range(2)]
    if not said[0]:
        differ = drill.differences(outcome(place / f"{method}-whole"), outcome(folder))
        return "", [f"{role}, poisoned without a word: {text}" for text in differ[:4]]
    named = re.search(
        r"NonFiniteError: the (.*) of the role '(.+?)' is (nan|-?inf) at step (\d+)\. The last checkpoint", said[0]
    )
    if named is None or int(named[4]) < step:
        return said[0], [f"{role}: the run said {said[0]!r}"]
    if said[0] != said[1]:
        wrong.append(f"{role}: the failure was replayed as {said[1]!r}, it was {said[0]!r}")
    facts = json.loads((folder / "failure.json").read_text())
    if (facts["role"], facts["step"]) != (named[2], int(named[4])):
        wrong.append(f"{role}: failure.json says {facts}")
    checkpoint = checkpoints.load(folder / "checkpoints")
    finite = all(bool(t.isfinite().all()) for named in checkpoint.tensors.values() for t in named.values())
    if checkpoint.skipped or checkpoint.step > int(named[4]) or not finite:
        wrong.append(f"{role}: the last checkpoint is not good: step {checkpoint.step}, {checkpoint.skipped}, finite: {finite}")
    return said[0], wrong


def roles_of(method: str, place: Path) -> list[str]:
    """The roles of a method, and "reward" where its options name one."""
    file = place / f"{method}.roles"

    def tell(loop: Loop) -> None:
        file.write_text("\n".join(loop.method.roles))
        os._exit(0)

    in_child(lambda: _until(0, tell, lambda: train(method, place / f"{method}-roles")))
    return file.read_text().split("\n") + ["reward"] * ("drill:reward" in str(drill.OPTIONS.get(method)))


def _until(step: int, action: Callable[[Loop], None], run: Callable[[], None]) -> None:
    """Do something before the first iteration from ``step`` on."""
    iterate, acted = Loop.iterate, False

    def iterated(loop: Loop) -> dict[str, float]:
        nonlocal acted
        if loop.step >= step and not acted:
            acted = True
            action(loop)
        drill.poisoned.add("iterating")
        try:
            return iterate(loop)
        finally:
            drill.poisoned.discard("iterating")

    with mock.patch.object(Loop, "iterate", iterated):
        run()


def _spoil(module: Any, args: Any, answer: Any) -> Any:
    if "iterating" not in drill.poisoned:  # judged or sampled, a role answers as ever
        return answer
    return tree_map(lambda x: x * float("nan") if isinstance(x, Tensor) and x.is_floating_point() else x, answer)


def _goes_on(method: str, folder: Path, expected: dict[str, Any], when: str) -> list[str]:
    ended = in_child(lambda: train(method, folder))
    differ = [str(ended)] if ended != drill.Ended(0) else drill.differences(expected, outcome(folder))
    return [f"resumed {when}: {text}" for text in differ[:4]]


def _refused(folder: Path, which: str | int) -> str:
    try:
        checkpoints.load(folder, which)
    except checkpoints.CheckpointError as error:
        return str(error)
    return ""


def _bytes(checkpoint: checkpoints.Checkpoint) -> dict[str, Any]:
    return {f"{g}.{n}": drill.exact(t) for g, named in checkpoint.tensors.items() for n, t in named.items()}
