"""A vocabulary in bytes: what each of its tokens writes, so that two tokenizers can be compared on one text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.errors import LimbeckError

BOUNDARY = (b" ", b"\n", b"\t")  # bytes that begin a new word in every tokenizer


@dataclass(frozen=True)
class Special:
    """A place in a document that is no text, by its role: bos, eos, or what a chat template writes between turns."""

    role: str


Document = str | Sequence[str | Special]


class Encoded(NamedTuple):
    """Ids, and the bytes of the text that each of them stands for.

    A place of a role counts as one byte, of the last of its tokens; tokens of a role that the other side lacks have -1.
    """

    ids: list[int]
    widths: list[int]


@dataclass(frozen=True, eq=False)
class ByteForm:
    """A tokenizer in bytes; :func:`byte_form` makes it of a fast one of transformers, :func:`byte_tokenizer` of bytes."""

    name: str
    pieces: tuple[bytes | None, ...]
    """By id: the bytes it writes; None: it writes no text (special); empty: nobody has this id."""
    specials: Mapping[str, tuple[int, ...]]
    """By role: its tokens, one unit."""
    read: Callable[[str], list[int]]
    """The ids of a text, in which nothing is special."""
    split: Callable[[bytes], list[int]]
    """The ids of loose bytes, without what a tokenizer adds at the start of a text; empty where it has none."""

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, document: Document, shared: frozenset[str] | None = None) -> Encoded:
        """Ids and widths of a document. ``shared``: roles that the other side knows too (None: all).

        Raises LimbeckError where the ids do not give the text back byte by byte.
        """
        ids: list[int] = []
        widths: list[int] = []
        for part in parts(document):
            if isinstance(part, Special):
                unit = self.specials.get(part.role, ())
                alike = shared is None or part.role in shared
                ids += unit
                widths += [0] * (len(unit) - 1) + [1] * bool(unit) if alike else [-1] * len(unit)
            else:
                found = self.read(part)
                ids += found
                widths += self._widths(part, found)
        return Encoded(ids, widths)

    def boundary(self) -> Tensor:
        """Bool (V,): tokens that can follow the end of a word: they begin with a space, newline or tab, or are special."""
        return torch.tensor([piece is None or piece.startswith(BOUNDARY) for piece in self.pieces])

    def token_of(self) -> dict[bytes, int]:
        """The id that writes these bytes; the lowest of several."""
        found: dict[bytes, int] = {}
        for i, piece in enumerate(self.pieces):
            if piece:
                found.setdefault(piece, i)
        return found

    def _widths(self, text: str, ids: list[int]) -> list[int]:
        try:
            wanted = text.encode()
        except UnicodeEncodeError as error:
            raise LimbeckError(f"the text holds {text[error.start]!r}, which is no character: {error.reason}") from None
        written: list[bytes] = []
        for i in ids:
            piece = self.pieces[i]
            if piece is None:
                raise LimbeckError(
                    f"cannot recover the bytes of token {i} that {self.name} writes for {_near(text, b''.join(written))!r}: it "
                    "stands for what the tokenizer does not know; leave this text out, or take a tokenizer with byte fallback"
                )
            written.append(piece)
        joined, widths = b"".join(written), [len(piece) for piece in written]
        if joined == wanted:
            return widths
        if joined == b" " + wanted:  # the space before the first word, which many tokenizers add
            return [widths[0] - 1, *widths[1:]]
        raise LimbeckError(
            f"{self.name} changes the text: at {_near(text, joined)!r} its tokens no longer give it back, so nothing can be "
            'aligned; normalise the text first (unicodedata.normalize("NFC", text)), or take another tokenizer'
        )


def parts(document: Document) -> Iterator[str | Special]:
    """The parts of a document; a text is one part, and empty texts are none."""
    for part in [document] if isinstance(document, str) else document:
        if part != "":
            yield part


def byte_tokenizer(roles: Sequence[str] = ("bos", "eos", "pad"), name: str = "bytes") -> ByteForm:
    """The tokenizer of bytes: ids 0..255 are the bytes, then one special token per role."""
    pieces = (*(bytes([i]) for i in range(256)), *[None] * len(roles))
    specials = {role: (256 + i,) for i, role in enumerate(roles)}
    return ByteForm(name, pieces, specials, lambda text: list(text.encode("utf-8", "surrogatepass")), list)


def _near(text: str, written: bytes) -> str:
    """Twenty characters of the text from where the bytes written stop being its own."""
    wanted = text.encode()
    written = written[1:] if written[:1] == b" " != wanted[:1] else written
    same = next((i for i, (a, b) in enumerate(zip(wanted, written, strict=False)) if a != b), min(len(wanted), len(written)))
    return text[len(wanted[:same].decode(errors="ignore")) :][:20]
