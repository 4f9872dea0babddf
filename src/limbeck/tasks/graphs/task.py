"""A graph and its teacher as a task: students are judged on the test nodes, and by how much of the high frequency they lost."""

import csv
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.losses import check_teacher_logits, high_frequency_loss
from limbeck.networks import perceptron
from limbeck.rules import evaluating
from limbeck.tasks.confusion import confusion
from limbeck.tasks.contract import Column, Figures, Picture, judgement, student_of
from limbeck.tasks.graphs.graph import Graph
from limbeck.tasks.graphs.teachers import GraphTeacherOptions, mean_confidence, node_logits, train_teacher
from limbeck.tasks.tensor_cache import cached_tensors, digest_of
from limbeck.training import TensorSource


@dataclass(frozen=True)
class GraphTask:
    """``logits`` (N, C): the teacher's on ``graph``, to learn from; ``answers`` (N, C): its own with all edges, to be judged by.

    They differ where nodes of ``graph`` are hidden, whose edges are in ``edges`` alone.
    """

    name: str
    graph: Graph
    logits: Tensor
    answers: Tensor
    edges: Tensor
    source: TensorSource
    facts: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    best: str | None = "error"

    def watched(self, method: Any) -> Figures:
        """The share of nodes classified wrong: of the validation nodes ("error", where there are any), and of the test nodes."""
        z, g = self._answer(method), self.graph
        found = {"error": 1 - _accuracy(z, g, g.val)} if len(g.val) else {}
        return {**found, "test_error": 1 - _accuracy(z, g, g.test)}

    def judged(self, method: Any) -> dict[str, Any]:
        """Teacher and student on the test nodes, and on hidden ones apart."""
        columns = {"accuracy": Column("Test accuracy", "higher", "percent")}
        if len(self.graph.hidden):
            columns["hidden"] = Column("Hidden accuracy", "higher", "percent")
        columns |= {"lost": Column("High frequency lost", "lower"), "confidence": Column("Mean confidence", "", "percent")}
        rows = {"teacher": self._row(self.answers), "student": self._row(self._answer(method))}
        right, wanted = rows["student"]["accuracy"], rows["teacher"]["accuracy"]
        headline = f"{right:.1%} of the test nodes are right without a neighbour; the teacher, with them, {wanted:.1%}"
        seen = "nodes that training saw without labels" if not len(self.graph.hidden) else "nodes of which some were hidden"
        return judgement(rows, columns, headline, [f"Judged on {len(self.graph.test)} test {seen}."])

    def album(self, method: Any) -> dict[str, Picture]:
        """Which classes are taken for which, by the teacher and by the student."""
        images = torch.stack([self._confusion(v) for v in (self.answers, self._answer(method))])
        note = "rows: the true class; columns: the answer; teacher on the left, student on the right"
        return {"confusion": Picture(images, 2, "Confusion", note)}

    def leave(self, folder: Path, method: Any, about: Mapping[str, Any]) -> None:
        """student.safetensors and student.json (:func:`load_perceptron`; of a network of one's own its weights), and answers.csv."""
        student = student_of(method)
        save_file({k: v.contiguous() for k, v in student.state_dict().items()}, folder / "student.safetensors")
        (folder / "student.json").write_text(json.dumps({**about, **_sizes(student)}, indent=2) + "\n")
        self._table(method, folder / "answers.csv")

    def exports(self) -> Mapping[str, Callable[[Any, Path], None]]:
        """torch-export: features (B, F) -> logits (B, C), any B; csv: the student's answer at every node."""
        return {"torch-export": self._program, "csv": self._table}

    @torch.no_grad()
    def _answer(self, method: Any) -> Tensor:
        student = student_of(method)
        with evaluating(student):
            return student(self.graph.x)

    def _row(self, z: Tensor) -> Figures:
        g, (src, dst) = self.graph, self.edges
        lost = high_frequency_loss(z, self.answers, src, dst)
        row = {
            "accuracy": _accuracy(z, g, g.test),
            "confidence": mean_confidence(z),
            "lost": float(lost.sum()) / max(len(lost), 1),
        }
        return row | ({"hidden": _accuracy(z, g, g.hidden)} if len(g.hidden) else {})

    def _confusion(self, z: Tensor) -> Tensor:
        test = self.graph.test
        return confusion(self.graph.y[test], z.argmax(1)[test], z.shape[1])

    def _program(self, method: Any, path: Path) -> None:
        from limbeck.interop.export import write_program

        student = student_of(method)
        with evaluating(student):
            write_program(path, student, (self.graph.x[:3],))

    def _table(self, method: Any, path: Path) -> None:
        chance, answer = self._answer(method).softmax(1).max(1)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["node", "answer", "probability"])
            writer.writerows([i, c, f"{p:.6f}"] for i, (c, p) in enumerate(zip(answer.tolist(), chance.tolist(), strict=True)))


def graph_task(
    graph: Graph,
    teacher: nn.Module | Tensor | GraphTeacherOptions = GraphTeacherOptions(),  # noqa: B008
    *,
    full: Graph | None = None,
    name: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    quiet: bool = True,
) -> GraphTask:
    """The task of a graph. ``teacher``: a module (x, edges) -> (N, C), its logits, or how a graph network is trained (cached).

    ``full``: the graph with all edges, where ``graph`` hides nodes of it; a module is then asked on it to be judged (of logits, those
    given are taken). Raises LimbeckError for a graph without test nodes, and for logits that are none.
    """
    if not len(graph.test):
        raise LimbeckError("students are judged on test nodes, and this graph has none; give test= to graph_of")
    whole, facts = full or graph, {"reference": "the classes of the test nodes"}
    if isinstance(teacher, GraphTeacherOptions):
        begun, trained = time.perf_counter(), teacher

        def compute() -> dict[str, Tensor]:
            network = train_teacher(graph, trained)
            return {"logits": node_logits(network, graph), "answers": node_logits(network, whole)}

        parts = [value for g in (graph, whole) for value in vars(g).values() if isinstance(value, Tensor)]
        key: list[str | None] = [digest_of(*parts), json.dumps(asdict(trained)), str(torch.__version__), str(graph.x.device)]
        found, origin = cached_tensors(f"graph-{trained.kind}", key, compute, quiet)
        logits, answers = (found[k].to(graph.x.device) for k in ("logits", "answers"))
        facts |= {"origin": "cached" if origin == "cached" else "trained", "kind": trained.kind}
        if origin != "cached":
            facts["seconds"] = round(time.perf_counter() - begun, 1)  # type: ignore[assignment]
    elif isinstance(teacher, nn.Module):
        logits, answers = node_logits(teacher, graph), node_logits(teacher, whole)
    else:
        logits = answers = teacher.detach()
    check_teacher_logits(logits, graph.nodes)
    source = TensorSource(None, size=graph.nodes)
    best = "error" if len(graph.val) else None
    return GraphTask(name or graph.name, graph, logits, answers, whole.edges, source, facts, options or {}, best)


def load_perceptron(folder: Path | str) -> nn.Sequential:
    """The perceptron that a run left in its folder, in eval mode. Raises LimbeckError where it is missing or damaged."""
    folder = Path(folder)
    try:
        sizes = json.loads((folder / "student.json").read_text())
        net = perceptron(*(int(sizes[key]) for key in ("inputs", "hidden", "outputs", "layers")))
        weights = load_file(folder / "student.safetensors")
        net.to(next(iter(weights.values())).dtype).load_state_dict(weights)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise LimbeckError(f"{folder} holds no perceptron (student.json, student.safetensors): {said}") from None
    return net.eval()


def _sizes(student: nn.Module) -> dict[str, int]:
    """What :func:`load_perceptron` needs beside the weights; nothing of other networks."""
    layers = [m for m in student.children() if isinstance(m, nn.Linear)]
    if not isinstance(student, nn.Sequential) or not layers:
        return {}
    first, last = layers[0], layers[-1]
    return {"inputs": first.in_features, "hidden": first.out_features, "outputs": last.out_features, "layers": len(layers)}


def _accuracy(logits: Tensor, graph: Graph, nodes: Tensor) -> float:
    return float((logits.argmax(1) == graph.y)[nodes].double().mean())
