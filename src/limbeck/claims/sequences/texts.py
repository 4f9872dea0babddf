"""What the claim on texts needs: Python's own sources as a corpus, byte-level BPEs, a small recurrent model, and its figures."""

import sysconfig
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.interop.tokenizers import ByteForm, Special, Texts, byte_form, paired
from limbeck.methods.sequences.alm import ALM
from limbeck.tasks.language import pieces

# modules of the standard library that are one file in every version from 3.11 on
MODULES = (
    "argparse", "ast", "bdb", "calendar", "cmd", "codecs", "configparser", "copy", "csv", "difflib", "dis", "doctest", "enum",
    "fractions", "ftplib", "functools", "getopt", "gettext", "gzip", "heapq", "inspect", "ipaddress", "locale", "mailbox",
    "mimetypes", "netrc", "optparse", "os", "pdb", "pickle", "pickletools", "platform", "plistlib", "poplib", "pprint", "random",
    "sched", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver", "ssl", "statistics", "string",
    "subprocess", "tabnanny", "tarfile", "tempfile", "textwrap", "threading", "timeit", "trace", "traceback", "typing", "uuid",
    "warnings", "weakref", "webbrowser",
)  # fmt: skip
HELD_OUT = ("difflib", "mimetypes", "shutil", "statistics", "textwrap", "uuid")
MOST = 24_000  # bytes taken of a module
BYTES = 240  # of a document, at most, and more than half of that; lines stay whole


@lru_cache(maxsize=1)
def documents() -> tuple[list[str], list[str]]:
    """(documents to learn from, held out), each of a few lines, of modules in a fixed order."""
    folder = Path(sysconfig.get_path("stdlib"))
    found: tuple[list[str], list[str]] = ([], [])
    for name in MODULES:
        file = folder / f"{name}.py"
        if not file.is_file():
            raise LimbeckError(
                f"{file} is missing: this claim reads the standard library's sources; run it on a Python that has them"
            )
        text = file.read_text(encoding="utf-8")[:MOST]
        found[name in HELD_OUT].extend(p for p in pieces(text, BYTES) if len(p) > BYTES // 2)
    return found


def byte_level_bpe(size: int, texts: Sequence[str]) -> ByteForm:
    """A byte-level BPE with a token for the start of a text, trained on texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return byte_form(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", name_or_path=f"BPE of {size}"))


class Recurrent(nn.Module):
    """ids (B, T) -> logits (B, T, V): an embedding, one GRU, and a layer over the vocabulary."""

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.body = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(ids))[0])


def rows(texts: Sequence[str], teacher: ByteForm, student: ByteForm) -> Texts:
    """The texts in both vocabularies, each behind a start."""
    return paired([[Special("bos"), text] for text in texts], teacher, student)


def chunk_gaps(method: ALM, source: Texts) -> tuple[float, float]:
    """mean |L_T - L_S| over (all chunks, those that the method compares) of a source."""
    sums = torch.zeros(2, 2, dtype=torch.float64)
    for rows in torch.arange(source.size).split(64):
        _, cond = source.fetch(rows)
        assert cond is not None
        for total, found in zip(sums, method.likelihoods(cond), strict=True):
            gap = (found.teacher - found.student).abs()[found.valid].double()
            total += torch.stack([gap.sum(), gap.new_tensor(len(gap))])
    return float(sums[0, 0] / sums[0, 1]), float(sums[1, 0] / sums[1, 1])
