"""Full-frequency distillation of a graph network into a perceptron that needs no neighbours (FF-G2M, arXiv 2305.10758).

A graph of N nodes with undirected edges E (both ways, without loops), E+ = E and a loop at every node. Teacher logits h_i (fixed),
student logits z_i = MLP(x_i), C classes, labels y_i of the nodes T.

(1) L_low = mean over (i, j) in E+ of KL(softmax(h_j) | softmax(z_i))            a node answers as its neighbours and itself do
(2) K(a, b) = softmax(|a - b| / tau), entry by entry                             in which classes two nodes differ, on raw logits
(3) L_high = mean over (i, j) in E of KL(K(h_i, h_j) | K(z_i, z_j))              a node differs from its neighbours as there
(4) L_lab = mean over T of cross-entropy
(5) L = lambda L_lab + (1 - lambda) (L_low + L_high)

The best student of (1) alone answers with the teacher's mean probability of the neighbourhood: one more step of propagation. (3) does
not see the sign of a difference, and so cannot teach classes alone. ``arm`` leaves terms out: "mlp" has (4) alone, "glnn" (1) over
the loops alone (GLNN, arXiv 2110.08727), "lfd" no (3), "hfd" no (1). Without edges, "ff-g2m" is "glnn".

A row of the data is an edge or a loop, and a label belongs to its node's loop (:meth:`FFG2M.source`). With ``batch=None`` an
iteration takes all of them, else that many at random. Every term is scaled by what there is of it in the whole graph, so that the
mean over the batches of an epoch is (5), and so are micro-batches together. The student sees each node of a batch once.

The teacher is a tensor of logits (N, C), or a module (x, edges) -> (N, C) that is asked once, in eval mode, on this graph. Where
nodes are hidden (``Graph.inductive``) neither they nor their edges are used.

Differs from the paper: the paper's text gives both distillation terms a temperature, its published code, as here, (3) alone.
``teacher_temperature`` divides h, for a teacher that is hardly surer than chance. Training has a fixed length, and nothing is chosen by
validation; the published code stops by it, and never takes the best student back. Presets hold that code's options, of which it calls
the student's dropout the teacher's and the reverse. Its GAT and SAGE are of another library: their layers may differ.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.losses import check_teacher_logits, high_frequency_loss, low_frequency_loss
from limbeck.methods.classifiers import check_apart, logits_of
from limbeck.networks import perceptron
from limbeck.tasks.graphs import Graph, GraphTask, GraphTeacherOptions, mean_confidence, node_logits
from limbeck.training import Batch, EmaOptions, Method, OptimizerOptions, Role, Step, TensorSource, Update

ADAM = OptimizerOptions(lr=1e-2, betas=(0.9, 0.999), weight_decay=5e-4)
UNSURE = 0.25  # (mean confidence - 1/C) / (1 - 1/C) below which a teacher is said to be close to chance
UNLABELLED = -100


@dataclass(frozen=True)
class FFG2MOptions:
    """Options of full-frequency distillation. The defaults suit citation graphs with a two-layer teacher."""

    iterations: int = 200
    batch: int | None = None
    """Edges and loops of an iteration (None: all)."""
    student: OptimizerOptions = ADAM
    ema: EmaOptions | None = None
    arm: Literal["ff-g2m", "mlp", "glnn", "lfd", "hfd"] = "ff-g2m"
    tau: float = 1.5
    """The temperature in (2)."""
    label_weight: float = 0.4
    """lambda in (5)."""
    teacher_temperature: float = 1.0
    """The teacher's logits are divided by it; below 1 they become surer."""
    layers: int = 2
    """The student of :func:`new_student`: its layers, their width, dropout between them."""
    hidden: int = 64
    dropout: float = 0.5

    def __post_init__(self):
        if not self.tau > 0 or not self.teacher_temperature > 0:
            raise LimbeckError(f"tau={self.tau:g} and teacher_temperature={self.teacher_temperature:g} must be positive")
        if not 0 <= self.label_weight <= 1:
            raise LimbeckError(
                f"label_weight={self.label_weight:g} must lie in [0, 1]: 1 learns labels alone, 0 the teacher alone"
            )
        if self.batch is not None and self.batch < 1:
            raise LimbeckError(f"batch={self.batch} must be at least 1 edge, or None: all")


_PAPER = {  # layers and rate of a data set; per teacher: width, the student's dropout, the teacher's, tau, lambda
    "cora": (3, 1e-2, (512, 0.6, 0.5, 1.5, 0.4), (1024, 0.3, 0.6, 1.2, 0.5), (512, 0.4, 0.3, 1.3, 0.5)),
    "citeseer": (2, 1e-2, (256, 0.5, 0.5, 1.5, 0.1), (2048, 0.4, 0.5, 1.0, 0.1), (1024, 0.5, 0.5, 1.2, 0.1)),
    "pubmed": (2, 1e-2, (1024, 0.3, 0.6, 1.5, 0.0), (2048, 0.3, 0.5, 1.2, 0.0), (2048, 0.6, 0.3, 1.3, 0.0)),
    "coauthor-cs": (2, 1e-2, (1024, 0.5, 0.6, 1.5, 0.3), (128, 0.4, 0.5, 1.1, 0.3), (256, 0.6, 0.3, 1.4, 0.5)),
    "coauthor-phy": (2, 1e-2, (2048, 0.3, 0.4, 1.2, 0.2), (256, 0.3, 0.4, 1.4, 0.3), (1024, 0.5, 0.6, 1.1, 0.5)),
    "amazon-photo": (3, 1e-3, (2048, 0.5, 0.6, 1.3, 0.1), (256, 0.3, 0.3, 1.4, 0.3), (1024, 0.4, 0.4, 1.5, 0.2)),
}
PRESETS = {"recommended": FFG2MOptions()}
TEACHERS = {"recommended": GraphTeacherOptions()}
"""The graph network that goes with each preset."""
for _data, (_layers, _rate, *_per_teacher) in _PAPER.items():
    for _kind, (_hidden, _drop, _teacher_drop, _tau, _weight) in zip(("gcn", "gat", "sage"), _per_teacher, strict=True):
        _adam = OptimizerOptions(lr=_rate, betas=(0.9, 0.999), weight_decay=5e-4)
        PRESETS[f"paper-{_data}-{_kind}"] = FFG2MOptions(
            500, student=_adam, tau=_tau, label_weight=_weight, layers=_layers, hidden=_hidden, dropout=_drop
        )
        TEACHERS[f"paper-{_data}-{_kind}"] = GraphTeacherOptions(_kind, _layers, _hidden, _teacher_drop, 4, 500, choose=True)


def new_student(graph: Graph, options: FFG2MOptions = PRESETS["recommended"]) -> nn.Sequential:
    """A new student for a graph: a perceptron of the options' layers, width and dropout."""
    return perceptron(graph.x.shape[1], options.hidden, graph.classes, options.layers, options.dropout).to(graph.x)


class FFG2M(Method):
    """See the module. ``teacher``: logits (N, C), a module (x, edges) -> logits, or None (``arm="mlp"`` alone)."""

    def __init__(
        self,
        teacher: nn.Module | Tensor | None,
        student: nn.Module,
        graph: Graph,
        options: FFG2MOptions = PRESETS["recommended"],
    ):
        self.student, self.graph, self.options = student, graph, options
        _check_hidden(graph)
        if teacher is None and options.arm != "mlp":
            raise LimbeckError(f"arm={options.arm!r} needs a teacher: a module, or its logits; arm='mlp' alone learns without")
        if isinstance(teacher, nn.Module):
            check_apart(teacher, student)
            teacher = node_logits(teacher, graph)
        self.logits = None if teacher is None else self._checked(teacher)
        self.roles = {"student": Role(student, options.student, options.ema)}
        self.rows, self.labels = self._rows()
        self.edges, self.labelled = int((self.rows[0] != self.rows[1]).sum()), int((self.labels != UNLABELLED).sum())
        self.batch = options.batch or self.rows.shape[1]

    @classmethod
    def on(cls, task: Any, options: FFG2MOptions, seed: int) -> "FFG2M":
        """A new student of the seed on a graph and the logits of its teacher (:func:`limbeck.tasks.graphs.graph_task`)."""
        if not isinstance(task, GraphTask):
            raise LimbeckError(
                f"ff-g2m distils graphs, and {task.name} is none; limbeck.tasks.graphs.graph_task makes a task of one"
            )
        torch.manual_seed(seed)
        return cls(task.logits, new_student(task.graph, options), task.graph, options)

    def source(self, given: Any = None) -> TensorSource:
        """The data of the loop: a row is an edge (src, dst) or a loop, with its node's label where that is known."""
        return TensorSource(None, {"src": self.rows[0], "dst": self.rows[1], "label": self.labels})

    def step(self, batch: Batch) -> Step:
        if batch.cond is None or "src" not in batch.cond or batch.source.size != self.rows.shape[1]:
            raise LimbeckError("the method's rows are its own edges: give the loop method.source(), and method.batch of them")
        o, src, dst, label = self.options, *(batch.cond[k] for k in ("src", "dst", "label"))
        nodes, place = torch.unique(torch.cat([src, dst]), return_inverse=True)
        z = logits_of(self.student, self.graph.x[nodes.to(self.graph.x.device)].to(batch.device))
        i, j = place.chunk(2)
        known, loop = label != UNLABELLED, src == dst
        self._check_classes(z, label)
        labelled = self._mean(F.cross_entropy(z[i[known]], label[known], reduction="none"), batch, self.labelled)  # (4)
        if o.arm == "mlp" or self.logits is None:
            yield Update("student", labelled)
            return
        h = self.logits[nodes.to(self.logits.device)].to(z)
        low = high = z.sum() * 0
        if o.arm != "hfd":
            low = self._mean(low_frequency_loss(z, h, i, j), batch, self.rows.shape[1])  # (1)
        if o.arm in ("ff-g2m", "hfd"):
            edge = ~loop
            high = self._mean(high_frequency_loss(z, h, i[edge], j[edge], o.tau), batch, self.edges)  # (2), (3)
        loss = o.label_weight * labelled + (1 - o.label_weight) * (low + high)  # (5)
        yield Update("student", loss, {"label": labelled.detach(), "low": low.detach(), "high": high.detach()})

    def _mean(self, values: Tensor, batch: Batch, count: int) -> Tensor:
        """What these rows say of the mean over the ``count`` such rows of the whole graph; without bias."""
        return values.sum() * (batch.source.size / (batch.size * max(count, 1)))

    def _rows(self) -> tuple[Tensor, Tensor]:
        """The rows (2, R) that the arm uses, and their labels (R,), UNLABELLED where none is known."""
        g = self.graph
        known = torch.full((g.nodes,), UNLABELLED, dtype=torch.int64, device=g.y.device)
        known[g.train] = g.y[g.train]
        nodes = g.train if self.options.arm == "mlp" else g.seen
        edges = g.edges if self.options.arm in ("ff-g2m", "lfd", "hfd") else g.edges[:, :0]
        if not edges.shape[1] and self.options.arm in ("ff-g2m", "lfd", "hfd"):
            warnings.warn(
                "the graph has no edges: nothing is of high frequency, and low frequency is node-wise distillation (arm='glnn')",
                stacklevel=3,
            )
        rows = torch.cat([edges, nodes.expand(2, -1)], 1)
        return rows, torch.where(rows[0] == rows[1], known[rows[0]], UNLABELLED)

    def _checked(self, teacher: Tensor) -> Tensor:
        g, logits = self.graph, teacher.detach()
        check_teacher_logits(logits, g.nodes)
        logits, classes = logits / self.options.teacher_temperature, logits.shape[1]
        sure = mean_confidence(logits[g.seen.to(logits.device)])
        if (sure - 1 / classes) / (1 - 1 / classes) < UNSURE:
            warnings.warn(
                f"the teacher's mean confidence is {sure:.2f}, and chance is {1 / classes:.2f}: students have little to follow. Train "
                "it for a fixed number of epochs instead of choosing an early one, or give teacher_temperature < 1",
                stacklevel=3,
            )
        return logits

    def _check_classes(self, z: Tensor, label: Tensor) -> None:
        if self.logits is not None and z.shape[1:] != self.logits.shape[1:]:
            raise LimbeckError(
                f"student and teacher need the same class list; got {z.shape[1]} vs {self.logits.shape[1]} classes: give the student "
                "as many outputs"
            )
        if label.numel() and int(label.max()) >= z.shape[1]:
            raise LimbeckError(f"label {int(label.max())} lies outside [0, {z.shape[1]}), the classes of the student")


def _check_hidden(graph: Graph) -> None:
    hidden = torch.zeros(graph.nodes, dtype=torch.bool, device=graph.x.device)
    hidden[graph.hidden] = True
    if touching := int(hidden[graph.edges].any(0).sum()):
        raise LimbeckError(
            f"{touching} edges touch hidden nodes, which training must not see: give graph.without_edges_of(hidden), as "
            "graph.inductive() does"
        )
    if bool(hidden[graph.train].any()):
        raise LimbeckError(f"{int(hidden[graph.train].sum())} labelled nodes are hidden: hide nodes of the test set alone")


METHOD, OPTIONS = FFG2M, FFG2MOptions
__all__ = ["FFG2M", "PRESETS", "TEACHERS", "FFG2MOptions", "new_student"]
