"""Language models that read and write text by tokenizers of their own, as a task: folders of transformers, and texts.

The student is a folder too, or the teacher itself with another tokenizer, whose embeddings are carried over. Documents are
aligned once; every so many are held out and judged by bits per byte, which all tokenizers share, and by how far the two models'
likelihoods of a chunk of text lie apart. Nothing is downloaded, and no code of the folders runs.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import LimbeckError, missing_extra
from limbeck.interop.tokenizers import ByteForm, Document, Special, Texts, byte_form, byte_tokenizer, paired, transplant
from limbeck.losses.chunks import chunk_sums, next_log_probs
from limbeck.tasks.contract import Column, Figures, Picture, judgement, student_of

JUDGED = 256  # documents of an evaluation, at most
COLUMNS = {
    "bits_per_byte": Column("Bits per byte of held-out text", "lower"),
    "chunk_gap": Column("Mean |log-likelihood ratio| to the teacher per chunk", "lower"),
}


@dataclass(frozen=True)
class LanguageOptions:
    """What there is to say of two language models and their texts."""

    teacher: str | None = None
    """The folder of a causal language model of transformers with its fast tokenizer."""
    student_model: str | None = None
    """The folder of the student's model and tokenizer (default: the teacher, with --tokenizer)."""
    tokenizer: str | None = None
    """The folder of the student's tokenizer, or bytes."""
    data: Path | None = None
    """FILE.txt, FILE.jsonl ({"text": ...} in each line), or a folder of them."""
    tokens: int | None = None
    """The longest document, in tokens of either side (default: 512)."""
    judged_every: int | None = None
    """Every so many-th document is judged, not learned from (default: 10)."""


OPTIONS = LanguageOptions


@dataclass(frozen=True)
class LanguageTask:
    """See the module. ``judged_source``: held-out texts of ``judged_bytes`` bytes; ``tokenizer``: the student's, to be saved."""

    teacher: Any
    student: Any
    vocabularies: tuple[ByteForm, ByteForm]
    source: Texts
    judged_source: Texts
    judged_bytes: int
    tokenizer: Any = None
    name: str = "language"
    facts: Mapping[str, Any] = field(default_factory=lambda: {"origin": "given", "reference": "the teacher"})
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    best: str | None = "bits_per_byte"

    def new_student(self) -> Any:
        """The student as it begins."""
        return copy.deepcopy(self.student)

    def watched(self, method: Any) -> Figures:
        return self.figures(student_of(method))

    def judged(self, method: Any) -> dict[str, Any]:
        teacher = {
            "bits_per_byte": bits_per_byte(self.teacher, self.judged_source, "teacher", self.judged_bytes),
            "chunk_gap": 0.0,
        }
        rows = {"teacher": teacher, "student as it began": self.figures(self.student), "student": self.watched(method)}
        bits = rows["student"]["bits_per_byte"]
        headline = f"{bits:.3f} bits per byte in {self.vocabularies[1].name}, the teacher {teacher['bits_per_byte']:.3f}"
        return judgement(
            rows, COLUMNS, headline, [f"Judged on {self.judged_source.size} documents that were not learned from."]
        )

    def figures(self, student: Any) -> Figures:
        """Of a student, on what is held out."""
        training = student.training
        student.eval()
        found = {
            "bits_per_byte": bits_per_byte(student, self.judged_source, "student", self.judged_bytes),
            "chunk_gap": chunk_gap(self.teacher, student, self.judged_source),
        }
        student.train(training)
        return found

    def album(self, method: Any) -> dict[str, Picture]:
        return {}

    def leave(self, folder: Path, method: Any, about: Mapping[str, Any]) -> None:
        self.write(method, folder / "student")

    def exports(self) -> Mapping[str, Callable[[Any, Path], None]]:
        return {"transformers": self.write}

    def write(self, method: Any, place: Path) -> None:
        """The student's folder, as transformers load it."""
        student_of(method).save_pretrained(place)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(place)


def language(
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    student_model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    *,
    tokens: int = 512,
    judged_every: int = 10,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> LanguageTask:
    """The task. Raises LimbeckError for folders and texts that cannot be used, and tokenizers that cannot be aligned."""
    if teacher is None or data is None or (student_model is None) == (tokenizer is None):
        raise LimbeckError(
            "the task language needs --teacher FOLDER, --data TEXTS, and one of --student-model FOLDER and --tokenizer FOLDER (or bytes)"
        )
    if tokens < 8 or judged_every < 2:
        raise LimbeckError(f"tokens={tokens} and judged_every={judged_every} must be at least 8 and 2")
    place = {"device": device, "dtype": getattr(torch, dtype)}
    own = None if tokenizer == "bytes" else load_tokenizer(student_model or tokenizer)
    forms = byte_form(load_tokenizer(teacher)), byte_tokenizer() if own is None else byte_form(own)
    model = load_model(teacher, **place)
    learner = load_model(student_model, **place) if student_model is not None else transplant(model, *forms)
    documents = [*read_documents(Path(data), 3 * tokens)]
    if len(documents) < 2 * judged_every:
        raise LimbeckError(
            f"{data} has {len(documents)} documents, of which every {judged_every}th is held out; give at least {2 * judged_every}, or a "
            "smaller --judged-every"
        )
    shorter = [piece for text in documents[::judged_every] for piece in pieces(text, tokens - 2)]  # whole in both vocabularies
    judged = [text for text in shorter if len(text.encode()) <= tokens - 2][:JUDGED]
    learned = [text for i, text in enumerate(documents) if i % judged_every]
    source, held_out = (paired([framed(t, forms) for t in some], *forms, (tokens, tokens)) for some in (learned, judged))
    return LanguageTask(
        model,
        learner,
        forms,
        source,
        held_out,
        sum(len(judged[i].encode()) for i in held_out.kept),
        own,
    )


def framed(text: str, forms: tuple[ByteForm, ByteForm]) -> Document:
    """A text between the tokens for its start and its end, as far as there are any."""
    known = {*forms[0].specials, *forms[1].specials}
    return [*[Special("bos")] * ("bos" in known), text, *[Special("eos")] * ("eos" in known)]


def load_model(folder: Any, device: str, dtype: torch.dtype) -> Any:
    """A causal language model from a folder. Raises LimbeckError where there is none."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise missing_extra("llm", "language models need transformers") from None
    _check_folder(folder, "config.json")
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype
        )
    except (OSError, ValueError, KeyError) as error:
        raise LimbeckError(f"{folder} holds no causal language model of transformers in safetensors: {error}") from None
    return model.to(device).eval()


def load_tokenizer(folder: Any) -> Any:
    """The fast tokenizer in a folder. Raises LimbeckError where there is none."""
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise missing_extra("llm", "tokenizers need transformers") from None
    _check_folder(folder, "tokenizer.json")
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _check_folder(folder: Any, file: str) -> None:
    if not (Path(folder) / file).is_file():
        raise LimbeckError(
            f"{folder} is no folder with a {file}: save the model and its fast tokenizer there (save_pretrained)"
        )


def read_documents(place: Path, most: int) -> Iterator[str]:
    """The documents of FILE.txt (pieces of whole lines of about ``most`` bytes), FILE.jsonl (one in each line), or a folder."""
    files = sorted(p for p in place.rglob("*") if p.suffix in (".txt", ".jsonl")) if place.is_dir() else [place]
    if not files or not all(file.is_file() and file.suffix in (".txt", ".jsonl") for file in files):
        raise LimbeckError(f"{place} is no FILE.txt, FILE.jsonl or a folder with some")
    for file in files:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".txt":
            yield from pieces(text, most)
            continue
        for number, line in enumerate(text.splitlines(), 1):
            try:
                yield json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise LimbeckError(f'line {number} of {file} is not of the form {{"text": "..."}}') from None


def pieces(text: str, most: int) -> Iterator[str]:
    """A text in pieces of whole lines: each as long as ``most`` bytes allow, a longer line alone."""
    some, size = "", 0
    for line in text.splitlines(keepends=True):
        width = len(line.encode())
        if some and size + width > most:
            yield some
            some, size = "", 0
        some, size = some + line, size + width
    if some:
        yield some


@torch.no_grad()
def bits_per_byte(model: Any, source: Texts, side: str, size: int) -> float:
    """What a model needs for a source's texts of ``size`` bytes, of which it is the teacher or the student."""
    nats = sum(float(log_p.double().sum()) for log_p, _ in _scored(model, source, side))
    return -nats / math.log(2) / size


@torch.no_grad()
def chunk_gap(teacher: Any, student: Any, source: Texts) -> float:
    """mean |L_T - L_S| over all chunks of a source."""
    total, count = 0.0, 0
    for (t, chunk_t), (s, chunk_s) in zip(
        _scored(teacher, source, "teacher"), _scored(student, source, "student"), strict=True
    ):
        chunks = int(chunk_t.max()) + 1
        total += float((chunk_sums(t, chunk_t, chunks) - chunk_sums(s, chunk_s, chunks)).abs().double().sum())
        count += int((chunk_t.amax(1) + 1).sum())
    return total / count


def _scored(model: Any, source: Texts, side: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(log p of each token, 0 in the padding; chunks) of some rows after the other."""
    device = next(model.parameters()).device
    for rows in torch.arange(source.size).split(16):
        _, cond = source.fetch(rows)
        assert cond is not None
        ids, length = cond[f"{side}_ids"].to(device), cond[f"{side}_length"].to(device)
        answer = model(ids)
        log_p = next_log_probs(getattr(answer, "logits", answer), ids)
        yield log_p * (torch.arange(ids.shape[1], device=device) < length[:, None]), cond[f"{side}_chunks"].to(device)
