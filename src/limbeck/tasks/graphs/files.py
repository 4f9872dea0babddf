"""Citation graphs in files: Planetoid's raw pickles with their public split, CONTENT and CITES tables, and .npz."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.spectral import undirected
from limbeck.tasks.graphs.graph import Graph, graph_of, per_class_split
from limbeck.tasks.graphs.pickles import read_arrays

PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph")


def load_graph(folder: Path | str, name: str = "cora", seed: int = 0, normalise: bool = True) -> Graph:
    """The citation graph NAME of a folder.

    FOLDER/ind.NAME.{x,y,tx,ty,allx,ally,graph,test.index}: Planetoid's files (arXiv 1603.08861) with the public split (20 labels
    per class, 500 nodes to choose, 1000 to judge); a test node without a file row is isolated, with zero features and the class -1.
    FOLDER/NAME.npz: x as a CSR matrix (x_data, x_indices, x_indptr, x_shape), y, edge_index, train, val, test.
    FOLDER/NAME.content and NAME.cites: a split of such sizes, drawn by ``seed``. Citations of papers that are not there are dropped.
    ``normalise``: every row of features has the sum 1 (none that is 0). Edges are made undirected.
    """
    folder = Path(folder)
    if (folder / f"ind.{name}.x").is_file():
        x, y, edges, split = _planetoid(folder, name)
    elif (folder / f"{name}.npz").is_file():
        x, y, edges, split = _npz(folder / f"{name}.npz")
    elif (folder / f"{name}.content").is_file():
        x, y, edges = _tables(folder, name)
        split = per_class_split(y, seed=seed)
    else:
        raise LimbeckError(
            f"{folder} holds no graph {name!r}: looked for ind.{name}.x (and its seven companions), {name}.npz, and {name}.content "
            f"with {name}.cites"
        )
    if normalise:
        x = x / x.sum(1, keepdim=True).clamp(min=1e-12)
    train, val, test = split
    return graph_of(x=x, edges=undirected(edges, len(x)), y=y, train=train, val=val, test=test, name=name)


def _planetoid(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    read = {part: read_arrays(folder / f"ind.{name}.{part}") for part in PARTS}
    try:
        order = np.array((folder / f"ind.{name}.test.index").read_text().split(), dtype=np.int64)
        known, first = len(read["allx"]), int(order.min())
        if first != known or len(order) != len(read["tx"]) or len(read["x"]) != len(read["y"]):
            raise ValueError(f"test nodes begin at {first}, after {known} others")
        nodes = int(order.max()) + 1
        x = np.zeros((nodes, read["allx"].shape[1]), np.float32)
        onehot = np.zeros((nodes, read["ally"].shape[1]), np.int64)
        x[:known], onehot[:known] = read["allx"], read["ally"]
        x[order], onehot[order] = read["tx"], read["ty"]
        pairs = [(i, j) for i, others in read["graph"].items() for j in others]
    except (OSError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise LimbeckError(f"the files {folder}/ind.{name}.* do not fit together ({error}); get them again") from None
    y = torch.from_numpy(np.where(onehot.sum(1) > 0, onehot.argmax(1), -1))
    train = torch.arange(len(read["y"]))
    split = train, torch.arange(len(train), min(len(train) + 500, known)), torch.from_numpy(np.sort(order))
    return torch.from_numpy(x), y, _edges(pairs), split


def _npz(file: Path) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    try:
        with np.load(file, allow_pickle=False) as data:
            shape = tuple(int(n) for n in data["x_shape"])
            x = np.zeros(shape, np.float32)
            rows = np.repeat(np.arange(shape[0]), np.diff(data["x_indptr"]))
            np.add.at(x, (rows, data["x_indices"]), data["x_data"])
            y, edges, *split = (torch.from_numpy(data[k].astype(np.int64)) for k in ("y", "edge_index", "train", "val", "test"))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise LimbeckError(f"{file} is no graph ({error}); load_graph's documentation says what it holds") from None
    return torch.from_numpy(x), y, edges, tuple(split)


def _tables(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor]:
    rows = [line.split() for line in (folder / f"{name}.content").read_text().splitlines() if line.strip()]
    number = {row[0]: i for i, row in enumerate(rows)}
    kinds = {kind: c for c, kind in enumerate(sorted({row[-1] for row in rows}))}
    cites = folder / f"{name}.cites"
    if not cites.is_file() or len({len(row) for row in rows}) != 1 or len(number) != len(rows):
        raise LimbeckError(f"{name}.content needs {cites}, rows of one length, and every paper once")
    try:
        x = torch.from_numpy(np.array([row[1:-1] for row in rows], dtype=np.float32))
        pairs = [line.split() for line in cites.read_text().splitlines() if line.strip()]
        edges = _edges([(number[a], number[b]) for a, b in pairs if a in number and b in number])
    except ValueError as error:
        raise LimbeckError(f"{folder}/{name}.content or {name}.cites is damaged ({error})") from None
    return x, torch.tensor([kinds[row[-1]] for row in rows]), edges


def _edges(pairs: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
