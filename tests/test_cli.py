"""The command line: exit codes, one-line errors with the nearest name, and what each command prints."""

import inspect
import json
from dataclasses import fields, replace

import pytest

from limbeck import __version__, cli
from limbeck.cli.catalogue import documented
from limbeck.cli.distilling import Shared, task_flags
from limbeck.methods import METHODS
from limbeck.runs import Execution, distill


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setattr(cli, "one_thread", lambda: None)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["distil"], "unknown command 'distil': did you mean 'distill'?"),
        (["distill", "dmdd"], "unknown method 'dmdd': did you mean 'dmd'?"),
        (["distill", "--task", "digit"], "unknown task 'digit': did you mean 'digits'?"),
        (["distill", "dmd", "--preset", "paper-imagenet"], "unknown preset 'paper-imagenet': did you mean 'paper-imagenet64'?"),
        (["distill", "gaussian-score"], "gaussian-score is a sampler and distils nothing"),
        (["distill", "lsd", "--task", "digits"], "unknown task for this method 'digits': Allowed: symbols"),
        (["distill", "pld", "--task", "ring"], "unknown task for methods of the wing recognition 'ring': Allowed: classify"),
        (["distill", "--resume", "nowhere"], "nowhere is not a run"),
        (["distill", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["sample"], "limbeck sample needs the folder of a run first"),
        (["sample", "nowhere"], "nowhere is not a run"),
        (["evaluate", "nowhere"], "nowhere is not a run"),
        (["report"], "limbeck report needs the folder of a run"),
        (["methods", "sidd"], "unknown method 'sidd': did you mean 'sid'?"),
    ],
)
def test_errors_are_one_line_and_exit_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("limbeck: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, near",
    [(["distill", "dmd", "--tasks", "digits"], "--task"), (["distill", "sid", "--alpa", "1"], "--alpha")],
)
def test_unknown_options_name_the_nearest(arguments, near, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert near in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_help_and_version(capsys):
    assert cli.main([]) == cli.main(["--help"]) == cli.main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.count("limbeck distill [METHOD]") == 2 and out.endswith(f"limbeck {__version__}\n")
    assert cli.main(["distill", "sid", "--help"]) == 0
    assert "--alpha" in capsys.readouterr().out


def test_methods(capsys):
    assert cli.main(["methods", "--json"]) == 0
    facts = {entry["id"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(facts) >= {"dmd", "sid", "ict", "gaussian-score"}
    assert facts["sid"]["gradients_through_teacher"] and not facts["dmd"]["gradients_through_teacher"]
    assert cli.main(["methods"]) == 0
    assert "arXiv 2404.04057" in capsys.readouterr().out
    assert cli.main(["methods", "ct"]) == 0
    out = capsys.readouterr().out
    assert "Consistency training" in out and "(1) f(x, t) = c_skip x + c_out F(c_in x, ln(t)/4)" in out
    assert "later = (0.821,): The times of the second and later steps of a sample, decreasing." in out  # what an option says
    assert "  ct: target: student -> ema" in out.replace("'", "") and "  recommended: the defaults" in out
    assert "title = {Improved Techniques for Training Consistency Models}" in out and "eprint = {2310.14189}" in out


@pytest.mark.parametrize("entry", [e for e in METHODS.values() if e.module], ids=lambda e: e.id)
def test_no_option_of_a_method_hides_one_of_all_methods(entry):
    _, options, _ = entry.load()
    of_all = {f.name for kind in (Shared, Execution, task_flags(entry.wing, entry.fits)) for f in fields(kind)} | set(
        inspect.signature(distill).parameters
    )
    assert {f.name for f in fields(options)} & of_all <= {"iterations"}  # which both set alike


@pytest.mark.parametrize("entry", [e for e in METHODS.values() if e.module], ids=lambda e: e.id)
def test_every_entry_is_complete(entry):
    _, options, presets = entry.load()
    assert entry.networks and entry.data and entry.null and "recommended" in presets
    assert bool(entry.paper) == bool(entry.arxiv) == bool(entry.year) == any(name.startswith("paper-") for name in presets)
    said = documented(options)
    assert said and set(said) <= {f.name for f in fields(options)}


def test_a_run_from_the_command_line(tiny_task, tmp_path, capsys):
    run = str(tmp_path / "run")
    asked = ["distill", "sid", "--task", "tiny", "--iterations", "2", "--batch", "4", "--quiet", "--out", run]
    assert cli.main(asked) == 0
    out = capsys.readouterr().out
    assert "Frechet distance" in out and "report.html" in out
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "alpha: 1.1" in config and "lr: 0.003" in config and "iterations: 2" in config  # the task's own preferences
    assert cli.main(asked) == 2
    assert "already exists" in capsys.readouterr().err
    assert cli.main([*asked, "--overwrite", "--alpha", "1.0"]) == 0
    assert "alpha: 1.0" in (tmp_path / "run" / "config.yaml").read_text()
    capsys.readouterr()
    assert cli.main(["distill", "--resume", run, "--alpha", "0.9"]) == 2
    assert "options.alpha: 1.0 -> 0.9" in capsys.readouterr().err
    assert cli.main(["distill", "dmd", "--resume", run]) == 2
    assert "of the method 'sid', not of 'dmd'" in capsys.readouterr().err
    assert cli.main(["distill", "--resume", run, "--quiet"]) == 0
    assert cli.main(["distill", "--config", f"{run}/config.yaml", "--out", f"{run}2", "--quiet"]) == 0
    student = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("run", "run2")]
    assert student[0] == student[1]
    assert cli.main([*asked, "--overwrite", "--fail-above", "1e-9"]) == 1
    assert "times the teacher's, above 1e-09" in capsys.readouterr().err
    assert cli.main([*asked, "--overwrite", "--fail-above", "1e9"]) == 0
    assert cli.main(["sample", run, "--count", "6", "--columns", "3"]) == 0
    assert (tmp_path / "run" / "samples" / "sample-0.png").is_file()
    assert cli.main(["evaluate", run]) == 0
    assert "student" in capsys.readouterr().out
    assert cli.main(["report", run]) == 0
    assert cli.main(["report", run, f"{run}2", "--out", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").is_file()
    assert cli.main(["sample", run, "--count", "0"]) == 2


def test_interrupted_is_130(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "methods", interrupted)
    assert cli.main(["methods"]) == 130


def test_a_method_can_be_read_about_without_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "pld", replace(METHODS["pld"], extra="graph", packages=("no_such_package",)))
    assert cli.main(["methods", "pld"]) == 0
    assert "tau = 4.0" in capsys.readouterr().out
    assert cli.main(["distill", "pld"]) == 2
    assert "pld needs no_such_package: pip install 'limbeck[graph]'" in capsys.readouterr().err
