"""A graph with features and classes of its nodes, and a split of them."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.spectral import check_edges, is_undirected, undirected, without_loops


@dataclass(frozen=True)
class Graph:
    """Features x (N, F), undirected edges (2, E) listed both ways without loops, classes y (N,), negative where unknown.

    ``train``, ``val`` and ``test`` are numbers of nodes. ``hidden``: those that training must not see (:meth:`inductive`).
    """

    x: Tensor
    edges: Tensor
    y: Tensor
    train: Tensor
    val: Tensor
    test: Tensor
    hidden: Tensor
    name: str = "graph"

    @property
    def nodes(self) -> int:
        return len(self.x)

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1

    @property
    def seen(self) -> Tensor:
        """The numbers of the nodes that are not hidden."""
        keep = torch.ones(self.nodes, dtype=torch.bool, device=self.x.device)
        keep[self.hidden] = False
        return keep.nonzero()[:, 0]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Graph":
        """All tensors there, features in ``dtype``."""
        parts: dict[str, Any] = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **parts | {"x": self.x.to(device, dtype)})

    def without_edges_of(self, nodes: Tensor) -> "Graph":
        """The graph in which these nodes are hidden and their edges gone. The nodes keep their numbers."""
        gone = torch.zeros(self.nodes, dtype=torch.bool, device=self.x.device)
        gone[nodes] = True
        return replace(self, edges=self.edges[:, ~gone[self.edges].any(0)], hidden=gone.nonzero()[:, 0])

    def inductive(self, share: float = 0.2, seed: int = 0) -> "Graph":
        """The graph without that share of the test nodes: teacher and student train on it, the hidden nodes judge."""
        if not 0 < share <= 1:
            raise LimbeckError(f"share={share:g} of the test nodes that are hidden must lie in (0, 1]")
        order = torch.randperm(len(self.test), generator=torch.Generator().manual_seed(seed))
        return self.without_edges_of(self.test[order[: max(round(share * len(order)), 1)].to(self.test.device)])


def graph_of(
    data: Any = None,
    *,
    x: Tensor | None = None,
    edges: Tensor | None = None,
    y: Tensor | None = None,
    train: Tensor | None = None,
    val: Tensor | None = None,
    test: Tensor | None = None,
    name: str = "graph",
) -> Graph:
    """The graph of a torch-geometric ``Data``, or of its tensors.

    ``train``, ``val``, ``test``: masks (N,) or numbers of nodes; none given (of ``val`` or ``test``): no node. Directed edges are
    made undirected with a warning; loops and repetitions go silently. Raises LimbeckError for what does not fit together.
    """
    if data is not None:
        if hasattr(data, "node_types"):
            raise LimbeckError("a graph with several kinds of nodes has no one list of logits; give data.to_homogeneous()")
        x, edges, y = (getattr(data, key, None) for key in ("x", "edge_index", "y"))
        train, val, test = (getattr(data, f"{key}_mask", None) for key in ("train", "val", "test"))
    if x is None or edges is None or y is None or train is None:
        raise LimbeckError("a graph needs x (N, F), edges (2, E), y (N,), and which nodes are labelled (train, or train_mask)")
    y = y.flatten().long() if y.ndim == 2 and y.shape[1] == 1 else y
    if x.ndim != 2 or y.shape != (len(x),) or y.is_floating_point():
        raise LimbeckError(
            f"features {tuple(x.shape)} must be (N, F), and classes (N,) integers, not {y.dtype} {tuple(y.shape)}"
        )
    if len(bad := (~torch.isfinite(x)).any(1).nonzero()):
        raise LimbeckError(f"the features of {len(bad)} nodes (the first: {int(bad[0])}) hold NaN or infinity")
    check_edges(edges, len(x))
    if not is_undirected(without_loops(edges), len(x)):
        warnings.warn("the edges are directed; losses and filters are of undirected graphs: both ways are used", stacklevel=2)
    known, choose, judge = (
        _numbers(p, len(x), key).to(x.device) for p, key in ((train, "train"), (val, "val"), (test, "test"))
    )
    if not len(known) or bool((y[known] < 0).any()):
        raise LimbeckError(f"{len(known)} nodes are in train: it needs at least one, and each needs its class (0, 1, ...)")
    return Graph(x, undirected(edges, len(x)), y.long(), known, choose, judge, known[:0], name)


def per_class_split(y: Tensor, per_class: int = 20, val: int = 500, test: int = 1000, seed: int = 0) -> tuple[Tensor, ...]:
    """(train, val, test) as numbers of nodes: so many labels of every class, then so many of the rest. Negative y is in none.

    Raises LimbeckError where there are fewer.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y[order] >= 0]
    train = torch.cat([order[y[order] == c][:per_class] for c in range(int(y.max()) + 1)])
    rest = order[~torch.isin(order, train)]
    if len(train) < per_class * (int(y.max()) + 1) or len(rest) < val + test:
        raise LimbeckError(
            f"{len(order)} classified nodes do not hold {per_class} of each of {int(y.max()) + 1} classes and {val} + {test} others; "
            "ask for fewer"
        )
    return train, rest[:val], rest[val : val + test]


def _numbers(part: Tensor | None, nodes: int, key: str) -> Tensor:
    if part is None:
        return torch.zeros(0, dtype=torch.int64)
    if part.dtype == torch.bool and part.shape == (nodes,):
        return part.nonzero()[:, 0]
    bad = part.is_floating_point() or part.dtype == torch.bool or part.ndim != 1
    if bad or (part.numel() and (int(part.min()) < 0 or int(part.max()) >= nodes)):
        raise LimbeckError(
            f"{key} must be a mask ({nodes},) or numbers of nodes below {nodes}, not {part.dtype} {tuple(part.shape)}"
        )
    return part.long()
