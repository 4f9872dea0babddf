"""Graphs through the command line and Python: distilled, judged by what is counted here, left behind, exported."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch_geometric.nn  # noqa: F401  (takes seconds, here and not in the first test)
from torch import nn
from torch_geometric.data import Data

import limbeck
from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.losses import high_frequency_loss
from limbeck.runs import open_run
from limbeck.tasks import AnyTask, build_task
from limbeck.tasks.graphs import GraphTeacherOptions, block_model, graph_task, load_perceptron, node_logits, train_teacher


def small(**changes):
    return block_model(240, separation=2.0, labels=10, **changes)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "one_thread", lambda: None)


def distilled(tmp_path, task, **more):
    given = {"iterations": 25, "hidden": 16, "quiet": True, "track": ("none",), "out": tmp_path / "run"} | more
    return limbeck.distill(method="ff-g2m", task=task, **given)


def test_figures_are_those_counted_here(tmp_path):
    g = small()
    options = GraphTeacherOptions(hidden=16, epochs=40)
    h = node_logits(train_teacher(g, options), g)
    task = graph_task(g, options)
    assert isinstance(task, AnyTask) and torch.equal(task.logits, h) and task.facts["origin"] == "trained"
    again = graph_task(g, options)
    assert again.facts["origin"] == "cached" and torch.equal(again.logits, h) and "seconds" not in again.facts
    done = distilled(tmp_path, task)
    with torch.no_grad():
        z = done.student.eval()(g.x)
    rows = done.summary["table"]["rows"]
    assert rows["student"]["accuracy"] == pytest.approx(float((z.argmax(1) == g.y)[g.test].double().mean()), abs=1e-12)
    assert rows["teacher"]["accuracy"] == pytest.approx(float((h.argmax(1) == g.y)[g.test].double().mean()), abs=1e-12)
    assert rows["student"]["lost"] == pytest.approx(float(high_frequency_loss(z, h, *g.edges).mean()), rel=1e-5)
    assert rows["teacher"]["lost"] == 0 and "hidden" not in rows["student"]
    last = done.summary["history"][-1][1]
    assert last["error"] == pytest.approx(float((z.argmax(1) != g.y)[g.val].double().mean()), abs=1e-12)
    assert last["test_error"] == pytest.approx(1 - rows["student"]["accuracy"], abs=1e-12)
    assert done.summary["headline"].startswith(f"{rows['student']['accuracy']:.1%} of the test nodes are right")
    left = load_perceptron(tmp_path / "run")
    assert torch.equal(left(g.x), z) and not left.training
    table = list(csv.reader((tmp_path / "run" / "answers.csv").open()))
    assert table[0] == ["node", "answer", "probability"] and [int(r[1]) for r in table[1:]] == z.argmax(1).tolist()
    assert float(table[3][2]) == pytest.approx(float(z[2].softmax(0).max()), abs=1e-6)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "High frequency lost" in page and "Confusion" in page


def test_the_confusion_counts_answers():
    g = small()
    task = graph_task(g, 5 * nn.functional.one_hot((g.y + 1) % 4, 4).float())
    picture = task._confusion(task.answers)
    cells = picture[0, 6::12, 6::12]
    assert picture.shape == (1, 48, 48) and torch.equal(cells, 2 * torch.eye(4).roll(1, 1) - 1)


class Mixed(nn.Module):
    """A teacher that needs its edges."""

    def forward(self, x, edges):
        return 3 * x[:, :4].index_add(0, edges[0], x[edges[1], :4])


def test_hidden_nodes_are_judged_with_all_edges():
    g = small()
    part = g.inductive(0.5, seed=1)
    task = graph_task(part, Mixed(), full=g)
    assert torch.equal(task.logits, Mixed()(g.x, part.edges)) and torch.equal(task.answers, Mixed()(g.x, g.edges))
    row = task._row(task.answers)
    correct = task.answers.argmax(1) == g.y
    assert row["hidden"] == pytest.approx(float(correct[part.hidden].double().mean())) and row["lost"] == 0
    wanted = high_frequency_loss(task.logits, task.answers, *g.edges).mean()
    assert task._row(task.logits)["lost"] == pytest.approx(float(wanted), rel=1e-5)


def test_the_command_line_distils_evaluates_and_exports(tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--nodes", "240", "--labelled", "10", "--teacher", "sage", "--teacher-epochs", "5", "--hidden-share", "0.2"]
    common = ["--out", str(run), "--quiet", "--track", "none", "--iterations", "12"]
    assert cli.main(["distill", "ff-g2m", "--task", "sbm", *flags, *common]) == 0
    assert "Hidden accuracy" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["teacher_origin"] == "trained" and set(summary["table"]["rows"]["student"]) == {
        "accuracy", "confidence", "lost", "hidden"
    }  # fmt: skip
    assert cli.main(["evaluate", str(run)]) == 0
    assert cli.main(["export", str(run), "--to", "torch-export", str(tmp_path / "p.pt2")]) == 0
    done, task = open_run(run, quiet=True)
    assert done.config.options["hidden"] == 128 and task.facts["origin"] == "cached" and len(task.graph.hidden) > 0
    program = torch.export.load(tmp_path / "p.pt2").module()
    for rows in (1, 7):
        torch.testing.assert_close(program(task.graph.x[:rows]), done.student.eval()(task.graph.x[:rows]), rtol=1e-5, atol=1e-6)


def test_tasks_have_their_graphs(tmp_path):
    names = [f"n{i} {i % 2} 1 k{i % 2}" for i in range(1600)]
    (tmp_path / "g.content").write_text("\n".join(names))
    (tmp_path / "g.cites").write_text("n0 n1\nn1 n5\n")
    found = build_task("planetoid", {"data": str(tmp_path), "graph": "g", "teacher_epochs": 2}, quiet=True)
    assert found.name == "planetoid" and found.graph.nodes == 1600 and found.options == {}
    digits = build_task("digits-graph", {"teacher_epochs": 1, "labelled": 3}, quiet=True)
    assert digits.graph.nodes == 1797 and len(digits.graph.train) == 30 and digits.options == {"ff-g2m": {"hidden": 128}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_task("planetoid"), r"the task planetoid needs --data \(data=\)"),
        (
            lambda: graph_task(replace(small(), test=torch.zeros(0, dtype=torch.int64)), torch.randn(240, 4)),
            "this graph has none",
        ),
        (lambda: graph_task(small(), torch.full((240, 4), 0.25)), "are probabilities"),
        (lambda: build_task("sbm", {"teacher": "gin"}), "unknown graph network 'gin'"),
        (lambda: load_perceptron("/nowhere"), "/nowhere holds no perceptron"),
    ],
)
def test_what_cannot_be_made(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def test_the_page_on_graphs_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "graphs.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    g = small()
    data = Data(x=g.x, edge_index=g.edges, y=g.y)
    for name in ("train", "val", "test"):
        data[f"{name}_mask"] = torch.zeros(240, dtype=torch.bool).index_fill(0, getattr(g, name), True)
    names = {"data": data, "teacher": Mixed()}
    exec(code.replace("iterations=200", "iterations=5, quiet=True, track=('none',)"), names)
    assert names["run"].student(g.x).shape == (240, 4) and names["run"].config.options["hidden"] == 128


def test_another_wings_task_is_refused():
    from limbeck.methods.structures.ff_g2m import FFG2M, FFG2MOptions

    class Other:
        name = "ring"

    with pytest.raises(LimbeckError, match="ff-g2m distils graphs, and ring is none"):
        FFG2M.on(Other(), FFG2MOptions(), 0)
