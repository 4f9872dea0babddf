"""What comes from somebody else: nothing is unpickled, no code is imported, no path leads out of a run's folder."""

import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import limbeck
from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.methods import METHODS
from limbeck.report import write_report
from limbeck.runs import distill, open_run
from limbeck.samplers import load_experts
from limbeck.tasks import imported, load_pictures, named_by
from limbeck.tasks.own_teacher import read_state, read_teacher
from limbeck.training import checkpoints
from limbeck.training.options import merged_options, options_to_dict
from limbeck.training.sealed import seal, unseal


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setattr(cli, "one_thread", lambda: None)


@pytest.fixture(scope="module")
def finished(tiny_task, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    return distill(method="dmd", task="tiny", out=out, options={"iterations": 2, "batch": 8}, quiet=True).path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module whose import leaves the file `sprung`."""
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\nraise RuntimeError('sprung')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path / "sprung"
    sys.modules.pop("trap", None)


def change(run, **values):
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**config, **values}))


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "wrap", [lambda b: b, lambda b: {"weight": torch.zeros(2), "bomb": b}], ids=["alone", "in a state dict"]
)
def test_a_pickle_is_refused_and_not_executed(wrap, tmp_path):
    bomb, file = tmp_path / "sprung", tmp_path / "teacher.pt"
    torch.save(wrap(Bomb(bomb)), file)
    with pytest.raises(LimbeckError, match="holds more than tensors, perhaps a whole pickled model, and is not opened"):
        read_state(file)
    with pytest.raises(LimbeckError, match="Limbeck opens no pickles"):
        load_pictures(file)
    for name in ("raw.pt", "raw.npy", "raw.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(bomb)))
        with pytest.raises(LimbeckError, match="cannot be read|opens no pickles|more than tensors"):
            load_pictures(tmp_path / name)
    assert not bomb.exists()
    torch.load(file, weights_only=False)  # the bomb works
    assert bomb.exists()


def test_no_source_unpickles_or_evaluates():
    """torch.export.load alone may (`load_exported`), and only for files that the user names."""
    found = []
    for path in sorted(Path(limbeck.__file__).parent.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(
                r"\bpickle\.load|yaml\.(unsafe_|full_)?load\(|allow_pickle=True|weights_only=False|(?<![.\w])(eval|exec)\(",
                line,
            ):
                found.append(f"{path.name}:{number}")
            if re.search(r"(?<!safetensors\.)torch\.load\(", line) and "weights_only=True" not in line:
                found.append(f"{path.name}:{number}")
    assert found == []


COMMANDS = {
    "resume": ["distill", "--resume", "run", "--quiet"],
    "config": ["distill", "--config", "run/config.yaml", "--out", "new", "--quiet"],
    "sample": ["sample", "run"],
    "evaluate": ["evaluate", "run"],
    "export": ["export", "run", "--to", "onnx", "new"],
    "from": [
        "distill",
        "dmd",
        "--task",
        "tiny",
        "--from-run",
        "run",
        "--out",
        "new",
        "--iterations",
        "1",
        "--batch",
        "8",
        "--quiet",
    ],
}


def _options(method, **changes):
    _, _, presets = METHODS[method].load()
    return options_to_dict(merged_options(presets["recommended"], {"iterations": 2, "batch": 8, **changes}))


NAMING = {
    "teacher": {"task": "own", "task_options": {"teacher": "trap:net", "data": "pictures.npy"}},
    "network": {"task": "own", "task_options": {"teacher": "bare.pt", "network": "trap:net", "data": "pictures.npy"}},
    "distance": {"method": "sim", "options": _options("sim", distance="trap:judge")},
    "reward": {"method": "swiftbrush", "options": _options("swiftbrush", rewards=({"name": "trap:reward"},))},
}


@pytest.mark.parametrize("named", NAMING)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_strangers_config_imports_nothing(command, named, run, trap, capsys):
    import numpy as np

    np.save("pictures.npy", np.random.default_rng(0).uniform(-1, 1, (8, 1, 4, 4)).astype(np.float32))
    torch.save(nn.Linear(1, 1).state_dict(), "bare.pt")
    change(run, **NAMING[named])
    for path in (run / "checkpoints").glob("step-*"):
        document = unseal((path / "checkpoint.json").read_bytes(), checkpoints.FORMAT, {})
        document["meta"]["method"] = NAMING[named].get("method", "dmd")
        (path / "checkpoint.json").write_bytes(seal(document))
    assert cli.main(COMMANDS[command]) == 2
    err = capsys.readouterr().err
    assert "'trap:" in err and "if you trust it say --trust-code" in err and err.count("\n") == 1
    assert not trap.exists() and "trap" not in sys.modules and not Path("new").exists()
    assert cli.main([*COMMANDS[command], "--trust-code"]) == 2
    assert "importing trap from" in capsys.readouterr().err and trap.exists()


def test_a_report_imports_nothing(run, trap):
    change(run, **NAMING["teacher"])
    assert cli.main(["report", "run"]) == 0 and not trap.exists()


def test_an_exported_teacher_of_a_stranger_is_not_loaded(tmp_path, monkeypatch):
    from limbeck.tasks import own_teacher

    opened = []
    monkeypatch.setattr(own_teacher, "load_exported", lambda path: (opened.append(path), None))
    (tmp_path / "net.pt2").write_bytes(b"")
    with named_by("run/config.yaml", trusted=False), pytest.raises(LimbeckError, match="names the exported teacher .*net.pt2"):
        read_teacher(tmp_path / "net.pt2")
    assert opened == []
    with named_by("run/config.yaml", trusted=True):
        read_teacher(tmp_path / "net.pt2")
    assert len(opened) == 1


def test_trust_ends_with_its_block(trap):
    with named_by("a", trusted=True), named_by("b", trusted=False), pytest.raises(LimbeckError, match="b names the judge"):
        imported("trap:judge", "the judge")
    assert not trap.exists()
    with pytest.raises(LimbeckError, match="sprung"):
        imported("trap:judge", "the judge")
    assert trap.exists()


def test_a_strangers_backtracking_writes_nowhere(run, tmp_path, monkeypatch):
    change(run, method="disback", options={"record": str(tmp_path / "elsewhere"), "iterations": 40, "interval": 1})
    with pytest.raises(LimbeckError, match="names the folder to write the path to, .*elsewhere"):
        open_run(run)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "inside", ["report.html", "metrics.jsonl", "samples", "checkpoints", "checkpoints/step-00000009", "new"]
)
@pytest.mark.parametrize("command", [["report", "run"], ["sample", "run"], ["distill", "--resume", "run", "--quiet"]])
def test_links_out_of_a_run_are_refused(inside, command, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "outside"
    target.mkdir()
    (target / "file").write_text("mine")
    path = run / inside
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to("../outside" if "/" not in inside else target / "file")
    assert cli.main(command) == 2
    assert f"{path} is a link out of the folder of its run" in capsys.readouterr().err
    assert [p.name for p in target.iterdir()] == ["file"] and (target / "file").read_text() == "mine"


def test_links_inside_a_run_and_loops(run):
    (run / "latest").symlink_to("checkpoints")
    assert open_run(run, quiet=True)[0].path == run
    (run / "loop").symlink_to("loop")
    assert open_run(run, quiet=True)[0].path == run


def test_a_checkpoint_of_links_is_damaged(run):
    folder = run / "checkpoints"
    newest = folder / "step-00000002"
    for name in ("student.safetensors", "checkpoint.json"):
        moved = (newest / name).rename(run / name.replace("student", "kept"))
        (newest / name).symlink_to(moved)
        assert checkpoints.load(folder).step < 2 and "is a link" in checkpoints.load(folder).skipped[0]
        (newest / name).unlink()
        moved.rename(newest / name)
    newest.rename(run / "moved")
    newest.symlink_to(run / "moved")
    assert "is a link" in checkpoints.load(folder).skipped[0]


@pytest.mark.parametrize("file", ["../student.safetensors", "/etc/passwd", "a/b", "..\\x", "", ".."])
def test_experts_are_read_from_beside_alone(file, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"experts": [{"low": 0, "high": 1, "file": file}], "info": {}}))
    with pytest.raises(LimbeckError, match="which is no file beside it"):
        load_experts(tmp_path / "x.json")


def test_the_report_escapes_what_a_run_says(run):
    evil = "<script>alert(1)</script>"
    change(run, task=evil, version=evil, options={evil: evil})
    summary = json.loads((run / "summary.json").read_text())
    named = {name: evil for name in ("title", "method", "arxiv", "command", "teacher_origin")}
    summary |= {**named, "messages": [evil], "versions": {evil: evil}, "history": [[1, {evil: 1.0}], [2, {evil: 2.0}]]}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "samples" / "columns.json").write_text(json.dumps([evil]))
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"step": n, f"loss/{evil}": float(n)}) + "\n" for n in (3, 4, 5))
    page = write_report(run).read_text()
    assert "<script" not in page.lower() and page.count("&lt;script&gt;") > 8
    assert not re.search(r'(href|src)="(?!data:image/|https://arxiv\.org/|#)', page)
