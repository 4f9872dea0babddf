"""Pickles of numpy arrays and scipy's sparse matrices, read without running what they name.

A pickle is a program: it may name any function and call it. Here a fixed list of names is known, and each of them stands for a
plain record of ours; nothing of numpy or scipy is called on what the file says until it has been checked.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import LimbeckError

MOST_BYTES, MOST_NUMBERS = 2**30, 2**28
KINDS = {"f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _Record:
    """What a pickle says of one object: its arguments and its state."""

    def __init__(self, *arguments: Any):
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type(_Record):
    """A numpy dtype, by its name."""


class _Array(_Record):
    """A numpy array: (version, shape, dtype, Fortran order, bytes)."""


class _Sparse(_Record):
    """A CSR matrix: its attributes by name."""


class _Name:
    """A name in a pickle: calling it makes the record, and nothing can be set on it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]):
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("sets the state of a function")


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    return str(text).encode("latin1")


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    **{(f"{m}.multiarray", "_reconstruct"): lambda *a: _Array() for m in ("numpy.core", "numpy._core")},
    ("numpy", "ndarray"): lambda *a: None,
    ("numpy", "dtype"): lambda *a: _Type(*a),
    **{(f"scipy.sparse.{m}", "csr_matrix"): lambda *a: _Sparse() for m in ("csr", "_csr")},
    **{(m, "_reconstructor"): lambda *a: _Sparse() for m in ("copy_reg", "copyreg")},
    **{(m, name): lambda *a: None for m in ("__builtin__", "builtins") for name in ("object", "list")},
    ("collections", "defaultdict"): lambda *a: {},
    ("_codecs", "encode"): _bytes,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"names {module}.{name}")
        if name == "csr_matrix":  # protocol 2 makes an object of a class, and asks for one
            return type("_Sparse", (_Sparse,), {})
        return _Name(KNOWN[module, name])


def read_arrays(path: Path) -> Any:
    """What a pickle holds: an array, a dense array of a CSR matrix, or a dict of lists of integers.

    Raises LimbeckError where it names anything else, is damaged, or is larger than 1 GB. Nothing that it names is run.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"has more than {MOST_BYTES} bytes")
        return _decoded(_Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load())
    except FileNotFoundError:
        raise LimbeckError(f"{path} does not exist; the raw files of a Planetoid graph lie in one folder") from None
    except Exception as error:  # damaged pickles fail in any way
        said = " ".join(str(error).split()) or type(error).__name__
        raise LimbeckError(
            f"{path} is no pickle of numbers alone, and is not opened ({said[:200]}); only arrays, CSR matrices and lists are read"
        ) from None


def _decoded(value: Any) -> Any:
    if isinstance(value, _Array):
        return _array(value)
    if isinstance(value, _Sparse):
        return _dense(value)
    if isinstance(value, dict):
        if not all(type(k) is int and type(v) is list and all(type(i) is int for i in v) for k, v in value.items()):
            raise ValueError("a dict of something else than lists of integers")
        return value
    raise ValueError(f"holds a {type(value).__name__}")


def _array(record: _Array) -> np.ndarray:
    state: Any = record.state
    _, shape, kind, fortran, data = state
    name, order = str(kind.arguments[0]), str(kind.state[1]) if kind.state else "<"
    if name not in KINDS or order not in ("<", ">", "=", "|"):
        raise ValueError(f"an array of {name[:20]}")
    data = data if isinstance(data, bytes) else data.encode("latin1")
    array = np.frombuffer(data, np.dtype(order + name))
    return array.reshape(tuple(int(n) for n in shape), order="F" if fortran else "C").astype(name)


def _dense(record: _Sparse) -> np.ndarray:
    state: Any = record.state
    data, columns, starts = (_array(state[key]) for key in ("data", "indices", "indptr"))
    rows, width = (int(n) for n in state.get("_shape", state.get("shape")))
    inside = len(columns) == 0 or 0 <= columns.min() <= columns.max() < width
    if (
        rows * width > MOST_NUMBERS
        or len(starts) != rows + 1
        or starts[0] != 0
        or np.diff(starts).min(initial=0) < 0
        or not inside
    ):
        raise ValueError("a sparse matrix that does not fit together")
    dense = np.zeros((rows, width), data.dtype)
    np.add.at(dense, (np.repeat(np.arange(rows), np.diff(starts)), columns), data)
    return dense
