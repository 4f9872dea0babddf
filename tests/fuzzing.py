"""Malformed configs, run folders, schedules and pictures, and what the command line must make of them."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import yaml

from limbeck import cli
from limbeck.training import Loop

NUMBERS = [0, -1, 1, 2**31, 2**63, 10**30, -(10**400), 1e308, float("inf"), float("-inf"), float("nan"), 0.5, True]
TEXTS = ["", "x", "..", "/etc/passwd", "a:b", "dmd", "ve", "\x00", "é" * 300, "null", "cuda:99", "meta", "cpu", "999999"]
LEAVES = st.sampled_from([*NUMBERS, *TEXTS, None])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TEXTS[1:]), inner, max_size=3),
    max_leaves=5,
)


class Accepted(Exception):
    """A run was valid after all, and would have been trained."""


def accept(loop: Loop, title: str = "") -> None:
    """In the place of `Loop.train`."""
    raise Accepted


def contents(folder: Path) -> str:
    """A hash of the names, links and bytes in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        if path.is_symlink():
            digest.update(os.readlink(path).encode())
        elif path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def judge(arguments: list[str], folder: Path, said: Callable[[], Any], wrong: bool = False) -> int:
    """Run a command on a folder: one clear line and exit code 2, and nothing changed, or (not where it is surely ``wrong``)
    success. Returns the exit code; -1 for a valid run that would be trained."""
    before = contents(folder)
    said()
    try:
        code = cli.main(arguments)
    except Accepted:
        code = -1
    err = said().err
    assert code in (-1, 0, 2), (arguments, code, err)
    assert not wrong or code == 2, (arguments, code)
    assert "Traceback" not in err
    if code == 2:
        lines = [line for line in err.splitlines() if not line.startswith("skipped a damaged checkpoint: ")]
        assert len(lines) == 1 and lines[0].startswith("limbeck: ") and 20 < len(lines[0]) < 2000, err
        assert contents(folder) == before, (arguments, err)
    return code


def paths_of(tree: Any, here: tuple = ()) -> list[tuple]:
    """Where values stand in nested mappings and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [p for key, value in inner for p in [(*here, key), *paths_of(value, (*here, key))]]


def changed(tree: Any, path: tuple, value: Any) -> Any:
    """The tree with a value replaced, inserted (a new key), or removed (``...``)."""
    tree = json.loads(json.dumps(tree))
    at = tree
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return tree


@st.composite
def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """A tree with one to three values replaced, removed, or added."""
    for _ in range(draw(st.integers(1, 3))):
        paths = paths_of(tree)
        path = draw(st.sampled_from(paths)) if paths else ("x",)
        if draw(st.integers(0, 5)) == 0:
            path = (*path[:-1], draw(st.sampled_from(TEXTS[1:]))) if isinstance(path[-1], str) else path
        value = draw(st.one_of(VALUES, st.just(...)))
        try:
            tree = changed(tree, path, value)
        except (KeyError, IndexError, TypeError):
            continue
    return tree


@st.composite
def spoiled(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes truncated, flipped, replaced or with something put in."""
    kind = draw(st.sampled_from(["truncated", "flipped", "empty", "noise", "inserted", "text"]))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    return {
        "truncated": data[:at],
        "flipped": data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :] if data else b"\0",
        "empty": b"",
        "noise": draw(st.binary(min_size=1, max_size=40)),
        "inserted": data[:at]
        + draw(st.sampled_from([b"\xff\xfe", b"\x00", b"[" * 3000, b"{", b"&a [*a]", b"1e999", b"NaN"]))
        + data[at:],
        "text": draw(st.sampled_from(LAUGHS)),
    }[kind]


NINEFOLD = [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)]
LAUGHS = [
    "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *NINEFOLD]).encode(),
    b"&a [*a]",
    b"method: dmd\noptions: &o {student: *o}\n",
    b"method: dmd\n" + b"task_options: " + b"{x: " * 40 + b"1" + b"}" * 40,
    b"!!python/object/apply:os.system ['touch sprung']",
    b"method: 2001-99-99",
    b"? [a]\n: b",
    b"step: 1\n---\nmethod: dmd",
]  # fmt: skip


def write_yaml(path: Path, tree: Any) -> None:
    """As somebody's editor might: YAML takes what JSON does not."""
    path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
