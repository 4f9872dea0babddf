"""Two tokenisations of one text, cut into the shortest chunks that both agree on. Linear in the bytes of the text."""

import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.interop.tokenizers.byteform import ByteForm, Document, Special, parts
from limbeck.training import TensorSource

Chunks = NDArray[np.int64]


class Pair(NamedTuple):
    """A document in two vocabularies: ids, and for each token the number of its chunk (-1: of none)."""

    teacher_ids: list[int]
    teacher_chunks: Chunks
    student_ids: list[int]
    student_chunks: Chunks
    chunks: int


def align(a: Sequence[int], b: Sequence[int]) -> tuple[Chunks, Chunks, int]:
    """(chunk of each token of one side, of the other, number of chunks) from the tokens' widths in bytes.

    A chunk ends wherever both sides end a token after equally many bytes, so that none could be shorter. A token of width 0
    belongs to the chunk of the token after it, one of width -1 (no counterpart) to none. The sides may end at different places
    of the text (truncation): what is behind the last common end belongs to no chunk, -1.
    """
    widths = [np.asarray(side, dtype=np.int64).reshape(-1) for side in (a, b)]
    ends = [np.cumsum(np.maximum(w, 0)) for w in widths]
    last = min(int(e[-1]) if len(e) else 0 for e in ends)
    both = np.ones(last + 1, dtype=bool)
    for e in ends:
        mark = np.zeros(last + 1, dtype=bool)
        mark[e[e <= last]] = True
        both &= mark
    both[0] = False
    before = np.cumsum(both)  # ends of chunks up to a byte
    count = int(before[-1])
    found = []
    for w, e in zip(widths, ends, strict=True):
        chunk = before[np.minimum(e - np.maximum(w, 0), last)]
        found.append(np.where((chunk < count) & (w >= 0), chunk, -1))
    return found[0], found[1], count


def shared_roles(teacher: ByteForm, student: ByteForm) -> frozenset[str]:
    """Roles of special tokens that both sides have."""
    return frozenset(teacher.specials) & frozenset(student.specials)


def pair(document: Document, teacher: ByteForm, student: ByteForm, most: tuple[int, int] = (512, 512)) -> Pair:
    """A document in two vocabularies, aligned. ``most``: the longest number of tokens of teacher and student.

    A chunk with the first token of either side is dropped: nothing predicts that one. Roles that only one side has are masked.
    Raises LimbeckError for a role that neither has, and for a text that a side changes.
    """
    for part in parts(document):
        if isinstance(part, Special) and part.role not in {*teacher.specials, *student.specials}:
            raise LimbeckError(
                f"neither {teacher.name} nor {student.name} has a token for the role {part.role!r}; they know "
                f"{', '.join(sorted({*teacher.specials, *student.specials})) or 'none'}: say it in units= of byte_form"
            )
    shared = shared_roles(teacher, student)
    sides = [form.encode(document, shared) for form in (teacher, student)]
    ids = [side.ids[:n] for side, n in zip(sides, most, strict=True)]
    first, second, count = align(*[side.widths[:n] for side, n in zip(sides, most, strict=True)])
    if (len(first) and first[0] == 0) or (len(second) and second[0] == 0):
        first, second, count = np.maximum(first - 1, -1), np.maximum(second - 1, -1), max(count - 1, 0)
    return Pair(ids[0], first, ids[1], second, count)


class Texts(TensorSource):
    """Rows padded to one length, fetched as long as the longest of those asked for. ``kept``: the documents that they are of."""

    def __init__(self, cond: Cond, kept: Sequence[int]):
        super().__init__(None, cond)
        self.kept = tuple(kept)

    def fetch(self, rows: Tensor) -> tuple[Tensor | None, Cond | None]:
        x, cond = super().fetch(rows)
        assert cond is not None
        longest = {side: int(cond[f"{side}_length"].max()) for side in ("teacher", "student")}
        return x, {name: v if v.ndim == 1 else v[:, : longest[name.partition("_")[0]]] for name, v in cond.items()}


def paired(documents: Iterable[Document], teacher: ByteForm, student: ByteForm, most: tuple[int, int] = (512, 512)) -> "Texts":
    """Training data of :class:`limbeck.methods.sequences.alm.ALM`: a row per document, padded on the right.

    Conditions, all int64: ``teacher_ids``, ``teacher_chunks`` (N, T), ``student_ids``, ``student_chunks`` (N, S), and the
    lengths ``teacher_length``, ``student_length`` (N,), which tell padding apart, whatever token pads. Documents without a
    chunk are left out, with a warning. Raises LimbeckError where none is left.
    """
    found = [pair(document, teacher, student, most) for document in documents]
    kept = [p for p in found if p.chunks > 0]
    if not kept:
        raise LimbeckError(
            f"none of {len(found)} documents has a chunk that {teacher.name} and {student.name} agree on; are the documents longer "
            f"than a token, and most={most} larger than 1?"
        )
    if len(kept) < len(found):
        which = [i for i, p in enumerate(found) if p.chunks == 0]
        warnings.warn(
            f"{len(which)} of {len(found)} documents are left out (the first is number {which[0]}): {teacher.name} and "
            f"{student.name} agree on no chunk in them; longer documents, or a larger most={most}, have some",
            stacklevel=2,
        )
    return Texts(
        {
            "teacher_ids": padded([p.teacher_ids for p in kept], pad_of(teacher)),
            "teacher_chunks": padded([p.teacher_chunks for p in kept], -1),
            "student_ids": padded([p.student_ids for p in kept], pad_of(student)),
            "student_chunks": padded([p.student_chunks for p in kept], -1),
            "teacher_length": torch.tensor([len(p.teacher_ids) for p in kept]),
            "student_length": torch.tensor([len(p.student_ids) for p in kept]),
        },
        [i for i, p in enumerate(found) if p.chunks > 0],
    )


def pad_of(form: ByteForm) -> int:
    """The token that fills up rows: of the role pad, else of eos, else 0."""
    return next((form.specials[role][-1] for role in ("pad", "eos") if role in form.specials), 0)


def padded(rows: Sequence[Sequence[int] | Chunks], value: int) -> Tensor:
    """int64 (N, longest), filled up on the right."""
    out = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    for kept, row in zip(out, rows, strict=True):
        kept[: len(row)] = torch.as_tensor(np.asarray(row, dtype=np.int64))
    return out
