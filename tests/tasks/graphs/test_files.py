"""Files of citation graphs: written here as scipy and numpy write them, read back; and pickles that would run something."""

import builtins
import os
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from limbeck.errors import LimbeckError
from limbeck.spectral import undirected
from limbeck.tasks.graphs import load_graph
from limbeck.tasks.graphs.pickles import read_arrays

KNOWN, TESTED, NODES = 620, 40, 662  # two nodes of the test range have no row: isolated, as in Citeseer


def raw(folder, protocol):
    """A graph as Planetoid's files hold it; returns dense features, classes, edges and the test nodes."""
    rng = np.random.default_rng(0)
    x = (rng.random((NODES, 30)) < 0.2).astype(np.float32)
    y = rng.integers(0, 3, NODES)
    test = np.sort(rng.choice(np.arange(KNOWN + 1, NODES - 1), TESTED - 2, replace=False))
    test = np.concatenate([[KNOWN], test, [NODES - 1]])
    gone = np.setdiff1d(np.arange(KNOWN, NODES), test)
    x[gone], y[gone] = 0, -1
    pairs = [(int(a), int(b)) for a, b in rng.integers(0, KNOWN, (900, 2))] + [(0, int(test[3])), (5, 5)]
    lists = defaultdict(list)
    for a, b in pairs:
        lists[a].append(b)
        lists[b].append(a)
    onehot = np.eye(3, dtype=np.int32)[np.maximum(y, 0)]
    order = rng.permutation(test)
    parts = {
        "x": scipy.sparse.csr_matrix(x[:60]), "y": onehot[:60], "allx": scipy.sparse.csr_matrix(x[:KNOWN]), "ally": onehot[:KNOWN],
        "tx": scipy.sparse.csr_matrix(x[order]), "ty": onehot[order], "graph": lists,
    }  # fmt: skip
    for part, value in parts.items():
        (folder / f"ind.tiny.{part}").write_bytes(pickle.dumps(value, protocol=protocol))
    (folder / "ind.tiny.test.index").write_text("\n".join(map(str, order)) + "\n")
    return torch.from_numpy(x), torch.from_numpy(y), undirected(torch.tensor(pairs).T, NODES), torch.from_numpy(test)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_planetoids_files(tmp_path, protocol):
    x, y, edges, test = raw(tmp_path, protocol)
    g = load_graph(tmp_path, "tiny", normalise=False)
    assert torch.equal(g.x, x) and torch.equal(g.y, y) and torch.equal(g.edges, edges) and torch.equal(g.test, test)
    assert torch.equal(g.train, torch.arange(60)) and torch.equal(g.val, torch.arange(60, 560)) and g.name == "tiny"
    gone = (y < 0).nonzero()[:, 0]
    assert len(gone) == 2 and not bool(torch.isin(gone, g.edges).any()) and not bool(torch.isin(gone, g.test).any())
    normal = load_graph(tmp_path, "tiny").x
    assert torch.equal(normal[gone], torch.zeros(2, 30))
    torch.testing.assert_close(normal[:60].sum(1), torch.ones(60))


def python_2(value: np.ndarray) -> bytes:
    """An array as Python 2 pickled it: text without a kind of bytes, under the old names."""
    data = "".join(f"\\x{b:02x}" for b in value.tobytes())
    kind = value.dtype.str[1:]
    return (
        f"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I{len(value)}\ntcnumpy\ndtype\n"
        f"(S'{kind}'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'{data}'\ntb."
    ).encode()


def test_pickles_of_python_2(tmp_path):
    value = np.array([1.5, -2.0, 3e7], dtype=np.float32)
    file = tmp_path / "old"
    file.write_bytes(python_2(value))
    assert np.array_equal(pickle.loads(file.read_bytes(), encoding="latin1"), value)
    assert np.array_equal(read_arrays(file), value)


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "i4", "i2", "u1", "?", ">f4", ">i4"])
def test_arrays_of_every_kind(tmp_path, dtype):
    value = np.arange(12).reshape(3, 4).astype(dtype)
    for given in (value, np.asfortranarray(value)):
        (tmp_path / "a").write_bytes(pickle.dumps(given, protocol=2))
        found = read_arrays(tmp_path / "a")
        assert np.array_equal(found, value) and found.dtype.isnative


class Runs:
    """What is called with which arguments when this is unpickled."""

    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def as_graph(value):
    return {0: [1], 1: value}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("call", "name"),
    [(os.system, f"{os.system.__module__}.system"), (builtins.eval, r"(builtins|__builtin__).eval"),
     (builtins.getattr, r"(builtins|__builtin__).getattr"), (Path.touch, "(pathlib|builtins|__builtin__)"), (np.load, "numpy.load")],
)  # fmt: skip
def test_a_pickle_that_would_run_something_is_refused_and_not_run(tmp_path, call, name, protocol):
    witness = tmp_path / "witness"
    arguments = {os.system: (f"touch {witness}",), builtins.eval: (f"open({str(witness)!r}, 'w')",)}
    given = arguments.get(call, (witness,))
    raw(tmp_path, 2)
    (tmp_path / "ind.tiny.graph").write_bytes(pickle.dumps(as_graph(Runs(call, *given)), protocol=protocol))
    with pytest.raises(LimbeckError, match=rf"ind.tiny.graph is no pickle of numbers alone, and is not opened \(names {name}"):
        load_graph(tmp_path, "tiny")
    assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Ran out of input"),
        (b"not a pickle", "is no pickle of numbers alone"),
        (pickle.dumps({"a": [1]}), "a dict of something else than lists of integers"),
        (pickle.dumps({1: [1.5]}), "a dict of something else"),
        (pickle.dumps("text"), "holds a str"),
        (pickle.dumps(np.array([object, None]), protocol=2), "names builtins|names __builtin__|an array of O8"),
        (pickle.dumps(np.array(["text"]), protocol=2), "an array of U4"),
        (b"cnumpy\ndtype\n}S'make'\nNsb.", "sets the state of a function"),
        (b"cscipy.sparse.csr\ncsr_matrix\n}S'state'\nNsb.", "is no pickle of numbers alone"),
        (pickle.dumps(np.arange(4), protocol=2)[:-9] + b".", "is no pickle of numbers alone"),
    ],
)
def test_damaged_and_odd_pickles(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(LimbeckError, match=message):
        read_arrays(tmp_path / "a")


def test_a_sparse_matrix_whose_parts_do_not_fit_is_refused(tmp_path):
    for name, value in (("indices", [0, 9]), ("indices", [0, -1]), ("indptr", [0, 5, 2]), ("indptr", [1, 1, 2])):
        matrix = scipy.sparse.csr_matrix(np.eye(2, dtype=np.float32))
        setattr(matrix, name, np.array(value, dtype=np.int32))
        (tmp_path / "a").write_bytes(pickle.dumps(matrix, protocol=2))
        with pytest.raises(LimbeckError, match="a sparse matrix that does not fit together"):
            read_arrays(tmp_path / "a")


def test_files_that_do_not_fit_or_are_missing(tmp_path):
    with pytest.raises(
        LimbeckError, match=r"holds no graph 'tiny': looked for ind.tiny.x \(and its seven companions\), tiny.npz"
    ):
        load_graph(tmp_path, "tiny")
    raw(tmp_path, 2)
    (tmp_path / "ind.tiny.test.index").write_text("3 4 5")
    with pytest.raises(LimbeckError, match="do not fit together .test nodes begin at 3, after 620 others"):
        load_graph(tmp_path, "tiny")
    (tmp_path / "ind.tiny.ally").unlink()
    with pytest.raises(LimbeckError, match="ind.tiny.ally does not exist"):
        load_graph(tmp_path, "tiny")


def test_content_and_cites(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2, (1600, 6)), rng.integers(0, 3, 1600)
    names = [f"paper-{i * 7}" for i in range(1600)]
    lines = ["\t".join([names[i], *map(str, x[i]), f"kind{y[i]}"]) for i in range(1600)]
    (tmp_path / "c.content").write_text("\n".join(lines) + "\n")
    (tmp_path / "c.cites").write_text(
        f"{names[0]}\t{names[3]}\n{names[3]}\t{names[9]}\n{names[2]}\tunknown\n{names[4]} {names[4]}\n"
    )
    g = load_graph(tmp_path, "c", seed=1, normalise=False)
    assert torch.equal(g.x, torch.from_numpy(x).float()) and g.y.tolist() == y.tolist()
    assert g.edges.tolist() == [[0, 3, 3, 9], [3, 0, 9, 3]]
    assert torch.bincount(g.y[g.train]).tolist() == [20, 20, 20] and (len(g.val), len(g.test)) == (500, 1000)
    assert not set(g.train.tolist()) & set(g.val.tolist() + g.test.tolist())
    assert not torch.equal(g.train, load_graph(tmp_path, "c", seed=2).train)
    (tmp_path / "c.cites").write_text("a b c\n")
    with pytest.raises(LimbeckError, match=r"c.content or c.cites is damaged \(too many values"):
        load_graph(tmp_path, "c")
    (tmp_path / "c.cites").unlink()
    with pytest.raises(LimbeckError, match=r"c.content needs .*c.cites, rows of one length"):
        load_graph(tmp_path, "c")


def test_npz(tmp_path):
    dense = np.eye(6, 4, dtype=np.float32)
    matrix = scipy.sparse.csr_matrix(dense)
    parts = {
        "x_data": matrix.data, "x_indices": matrix.indices, "x_indptr": matrix.indptr, "x_shape": np.array([6, 4]),
        "y": np.array([0, 1, 0, 1, 0, 1], dtype=np.int16), "edge_index": np.array([[0, 1], [1, 2]], dtype=np.int32),
        "train": np.array([0, 1]), "val": np.array([2]), "test": np.array([3, 4]),
    }  # fmt: skip
    np.savez(tmp_path / "g.npz", **parts)
    g = load_graph(tmp_path, "g")
    assert torch.equal(g.x, torch.from_numpy(dense)) and g.edges.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert (g.train.tolist(), g.val.tolist(), g.test.tolist(), g.y.tolist()) == ([0, 1], [2], [3, 4], [0, 1, 0, 1, 0, 1])
    np.savez(tmp_path / "g.npz", **{k: v for k, v in parts.items() if k != "val"})
    with pytest.raises(LimbeckError, match="g.npz is no graph .*val"):
        load_graph(tmp_path, "g")
    np.savez(tmp_path / "g.npz", **parts | {"y": np.array([Runs(os.system, "true")], dtype=object)})
    with pytest.raises(LimbeckError, match="g.npz is no graph"):
        load_graph(tmp_path, "g")
