"""The runner of claims: seeds, medians, gates, exit codes, the JSON's layout; every gate of the digits' claims can fail."""

import json
import sys
from dataclasses import replace

import pytest

from limbeck import cli
from limbeck.claims import CLAIMS, Check, Claim, at_least, at_most, failed, medians, reproduce
from limbeck.claims.reproduce import load_claim
from limbeck.methods import METHODS


def measure(seed):
    return {"error": 1.0 + seed, "speed": 10.0}


def judge(runs):
    m = medians(runs)
    return [at_most("error", m["error"], 2.0), at_least("speed", m["speed"], 20.0, gated=False)]


CLAIM = Claim("dmd", "0000.00000", measure, judge)
LOSING = Claim("dmd", "0000.00000", measure, lambda runs: [at_most("error", medians(runs)["error"], 1.5)])


@pytest.fixture
def fake(monkeypatch):
    def use(claim):
        monkeypatch.setattr(sys.modules["limbeck.claims.reproduce"], "load_claim", lambda name: claim)

    return use


def test_json_and_exit_code(fake, tmp_path, capsys):
    fake(CLAIM)
    assert (
        reproduce(
            ["dmd", "--seeds", "3", "--jobs", "1", "--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
        )
        == 0
    )
    (entry,) = json.loads((tmp_path / "r.json").read_text())
    assert {"method", "arxiv", "seconds", "seeds", "claims"} <= entry.keys()
    assert (entry["method"], entry["arxiv"], entry["seeds"]) == ("dmd", "0000.00000", 3)
    assert entry["claims"] == [
        {"statement": "error", "holds": True, "measured": 2.0, "bound": "<= 2", "gated": True},
        {"statement": "speed", "holds": False, "measured": 10.0, "bound": ">= 20", "gated": False},
    ]
    out = capsys.readouterr().out
    assert "holds" in out and "not shown (reported)" in out
    page = (tmp_path / "r.md").read_text()
    assert "| error | 2 | <= 2 | holds |" in page and "| dmd | speed | 10 | >= 20 |" in page


def test_a_gate_that_fails_is_exit_code_1(fake, capsys):
    fake(LOSING)
    assert cli.main(["reproduce", "dmd2", "--seeds", "3", "--jobs", "1"]) == 1
    assert "dmd: error" in capsys.readouterr().err
    assert failed([{"method": "m", "claims": [{"statement": "s", "gated": False, "holds": False}]}]) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name the methods to reproduce"),
        (["dmd3"], "did you mean 'dmd'"),
        (["dmd", "--seeds", "0"], "must be at least 1"),
        (["dmd", "--json", "nowhere/r.json"], "the folder of nowhere/r.json does not exist"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert cli.main(["reproduce", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


GOOD = {
    "dmd": {
        "teacher frechet": 0.7, "teacher accuracy": 0.98, "student frechet": 0.8, "student accuracy": 0.98,
        "student images_per_second": 300.0, "teacher images_per_second": 10.0, "student seconds": 40.0,
        "teacher at 1 NFE frechet": 13.0, "dead critic frechet": 9.9, "shuffled accuracy": 0.0,
    },
    "ict": {
        "teacher frechet": 0.7, "iCT 1 step frechet": 1.3, "iCT 2 steps frechet": 1.2, "iCT 1 step accuracy": 0.98,
        "CT 1 step frechet": 2.9, "CT 2 steps frechet": 2.7, "CT 1 step accuracy": 0.97, "teacher at 1 NFE frechet": 11.6,
    },
}  # fmt: skip
BAD = [
    ("dmd", {"teacher frechet": 1.5, "student frechet": 1.6}),  # a weak teacher does not make a student pass
    ("dmd", {"teacher accuracy": 0.9, "student accuracy": 0.9}),
    ("dmd", {"student frechet": 1.0}),
    ("dmd", {"student accuracy": 0.9}),
    ("dmd", {"student images_per_second": 100.0}),
    ("dmd", {"student seconds": 90.0}),
    ("dmd", {"teacher at 1 NFE frechet": 1.0}),
    ("dmd", {"dead critic frechet": 1.0}),
    ("dmd", {"shuffled accuracy": 0.9}),
    ("ict", {"CT 1 step frechet": 1.5}),
    ("ict", {"iCT 1 step accuracy": 0.5}),
]


@pytest.mark.parametrize("name", GOOD)
def test_the_gates_pass_good_figures(name):
    assert all(check.holds for check in load_claim(name).judge([GOOD[name]]) if check.gated)


@pytest.mark.parametrize("name, change", BAD)
def test_every_gate_can_fail(name, change):
    checks = load_claim(name).judge([{**GOOD[name], **change}])
    lost = [check.statement for check in checks if check.gated and not check.holds]
    assert lost and isinstance(checks[0], Check)


def test_every_claim_loads():
    for name in CLAIMS:
        assert load_claim(name).method == name


def test_a_missing_extra_is_named_before_anything_runs(monkeypatch, capsys):
    entry = replace(METHODS["pld"], extra="graph", packages=("json", "no_such_package"))
    monkeypatch.setitem(METHODS, "pld", entry)
    assert cli.main(["reproduce", "dmd", "pld"]) == 2
    assert capsys.readouterr().err == "limbeck: pld needs no_such_package: pip install 'limbeck[graph]'\n"
