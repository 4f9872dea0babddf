import os
import random
import re

import pytest

from limbeck.training import checkpoints
from limbeck.training.checkpoints import CheckpointError, load, save
from limbeck.training.durable import write_synced
from limbeck.training.sealed import seal, unseal


def edit(path, change):
    """Rewrite a checkpoint's document with a right seal."""
    file = path / "checkpoint.json"
    document = unseal(file.read_bytes(), 99, dict.fromkeys(range(99), lambda old: old))
    file.write_bytes(seal(change(document) or document))


def test_random_damage_is_found_and_the_previous_checkpoint_used(run, tmp_path):
    run.saved(tmp_path, 1, 2)
    draw = random.Random(0)
    files = sorted((tmp_path / "step-00000002").iterdir())
    for n in range(120):
        file = draw.choice(files)
        whole = file.read_bytes()
        if n % 3:
            data = bytearray(whole)
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        else:
            data = whole[: draw.randrange(len(whole))]
        file.write_bytes(data)
        checkpoint = load(tmp_path)
        assert run.is_step(checkpoint, 1)
        assert len(checkpoint.skipped) == 1
        assert checkpoint.skipped[0].startswith(f"step-00000002: {file.name}")
        file.write_bytes(whole)
    assert run.is_step(load(tmp_path), 2)


def no_file(path):
    (path / "student.safetensors").unlink()


def no_document(path):
    (path / "checkpoint.json").unlink()


def cut(path):
    os.truncate(path / "student.safetensors", 100)


def padded(path):
    with open(path / "student.safetensors", "ab") as file:
        file.write(b"\0")


def malformed(path):
    (path / "checkpoint.json").write_text("{")


def newer(path):
    edit(path, lambda d: {**d, "format": 2})


def older(path):
    edit(path, lambda d: {**d, "format": 0})


def other_step(path):
    edit(path, lambda d: {**d, "step": 5})


def no_step(path):
    edit(path, lambda d: {**d, "step": "2"})


def no_meta(path):
    edit(path, lambda d: d.pop("meta") and None)


def no_facts(path):
    edit(path, lambda d: d["files"].update({"student.safetensors": {"size": 3}}))


def no_aliases(path):
    edit(path, lambda d: d.update(aliases={}))


def wrong_alias(path):
    edit(path, lambda d: d["aliases"].update(student={"tied": "gone"}))


def odd_alias(path):
    edit(path, lambda d: d["aliases"].update(student={"tied": []}))


def no_tensors(path):
    """A file of right size and sha256 that is no safetensors file."""
    from limbeck.training.durable import write_known

    (path / "student.safetensors").unlink()
    facts = write_known(write_synced, path / "student.safetensors", [b"\xff" * 20])
    edit(path, lambda d: d["files"].update({"student.safetensors": facts}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_file, "student.safetensors is missing"),
        (no_document, "checkpoint.json is missing"),
        (cut, "student.safetensors has 100 bytes instead of"),
        (padded, "bytes instead of"),
        (malformed, "checkpoint.json is not valid JSON"),
        (newer, "has format 2, and this Limbeck reads up to format 1: update Limbeck"),
        (older, "has format 0, and this Limbeck no longer reads format 0"),
        (other_step, r"step 5\) does not describe this folder"),
        (no_step, "names no step"),
        (no_meta, "does not describe this folder"),
        (no_facts, "no size and sha256"),
        (no_aliases, "no aliases of 'student'"),
        (wrong_alias, "ties 'tied' to 'gone'"),
        (odd_alias, r"ties 'tied' to \[\]"),
        (no_tensors, "step-00000002: .*header"),
    ],
)
def test_each_damage_has_its_reason(run, tmp_path, damage, reason):
    run.saved(tmp_path, 1, 2, best=True)
    damage(tmp_path / "step-00000002")
    checkpoint = load(tmp_path)
    assert run.is_step(checkpoint, 1)
    assert len(checkpoint.skipped) == 1
    assert re.search(reason, checkpoint.skipped[0])
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path, "best")  # what was asked for by name is never replaced by another checkpoint
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path, 2)
    damage(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match=r"(?s)step-00000002: .*step-00000001: .*start anew"):
        load(tmp_path)


def test_older_formats_are_migrated(run, tmp_path, monkeypatch):
    path = run.saved(tmp_path, 2) / "step-00000002"
    edit(path, lambda d: {"format": 0} | {k: v for k, v in d.items() if k not in ("format", "aliases")})
    monkeypatch.setitem(checkpoints.MIGRATIONS, 0, lambda d: {**d, "aliases": {"student": {}, "student.optimizer": {}}})
    assert run.is_step(load(tmp_path), 2)


@pytest.mark.parametrize(
    "name",
    [
        "../step-00000001/student.safetensors",
        "/etc/passwd",
        "..",
        "",
        ".safetensors",
        "..safetensors",
        "checkpoint.json",
        "a/b.safetensors",
        "a\\b.safetensors",
        "C:x.safetensors",
        "a\x00.safetensors",
    ],
)
def test_names_cannot_escape_the_folder(run, tmp_path, name):
    run.saved(tmp_path, 1, 2)

    def rename(document):
        document["files"][name] = document["files"].pop("student.safetensors")

    edit(tmp_path / "step-00000002", rename)
    checkpoint = load(tmp_path)
    assert run.is_step(checkpoint, 1)
    assert "no name of a tensor file" in checkpoint.skipped[0]


def test_a_damaged_pointer_to_the_best_is_told_and_nothing_is_pruned(run, tmp_path):
    run.saved(tmp_path, 1, best=True)
    run.saved(tmp_path, 2)
    (tmp_path / "best.json").write_text('{"format": 1, "step": 2}')
    with pytest.raises(CheckpointError, match=r"best.json .*sha256"):
        load(tmp_path, "best")
    with pytest.warns(UserWarning, match="not removed"):
        save(tmp_path, 3, run.state(3), run.meta(3), keep=1)
    assert [load(tmp_path, step).step for step in (1, 2, 3)] == [1, 2, 3]
