"""Images and their classes: a small classifier learns from a larger one, or from itself. Digits, or a person's own pictures.

Digits: the teacher is the library's classifier of 1,437 of them (`DigitFeatures`), students learn from 150 of these, and the 360
that it has not seen judge both.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.metrics import kendall_tau
from limbeck.tasks.classifiers import (
    answers,
    given_teacher,
    images_per_second,
    save_classifier,
    student_factory,
)
from limbeck.tasks.confusion import confusion
from limbeck.tasks.contract import Column, Figures, Picture, judgement, student_of
from limbeck.tasks.digit_features import digit_split, load_digit_features, load_digits
from limbeck.tasks.own import given_pictures
from limbeck.training import TensorSource

FEW = 150  # digits that students learn from
SMALL, USUAL = 4, 16  # channels of a student of digits, and of a person's pictures
SHOWN = 10  # mistakes that are looked at
COLUMNS = {
    "accuracy": Column("Accuracy", "higher", "percent"),
    "agreement": Column("Same answer as the teacher", "higher", "percent"),
    "kendall": Column("Kendall's tau to the teacher", "higher"),
    "parameters": Column("Parameters", "lower", "count"),
    "images_per_second": Column("Images per second", "higher", "count"),
}


@dataclass(frozen=True)
class ClassifyOptions:
    """What there is to say of a person's images and classifiers."""

    teacher: str | None = None
    """Your classifier: MODULE:NAME, images (B, C, H, W) in [-1, 1] -> logits (B, classes); or a file of logits, a row per image."""
    data: Path | None = None
    """Your images: a folder with a subfolder per class, or a file of tensors "images" and "labels" (default: digits)."""
    student_network: str | None = None
    """The student: MODULE:NAME, a class or function that is called without arguments (default: a small convolutional network)."""
    image_size: int | None = None
    """Cut the centre square of every picture and resize it to N x N."""
    held_out: int | None = None
    """Every so many-th image of a class of your data is judged, not learned from (default: 5)."""
    train_images: int | None = None
    """Students learn from so many of the others (default: all; of digits 150)."""
    wrong_labels: float | None = None
    """Share of the labels learned from that are replaced by wrong ones (default: 0)."""


OPTIONS = ClassifyOptions
FURTHER = ("labels",)  # of images in memory


@dataclass(frozen=True)
class Classification:
    """See the module. ``logits`` (a row per row of the source) and ``judged_logits`` (of the images held out) are the teacher's."""

    source: TensorSource
    images: Tensor
    """Those held out."""
    labels: Tensor
    classes: tuple[str, ...]
    factory: Callable[[], nn.Module]
    """Makes students."""
    teacher: nn.Module | None = None
    logits: Tensor | None = None
    judged_logits: Tensor | None = None
    name: str = "classify"
    facts: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    best: str | None = "error"

    def new_student(self, seed: int) -> nn.Module:
        """A student of its own; new weights come from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return copy.deepcopy(self.factory())

    def watched(self, method: Any) -> Figures:
        """The share of images held out that the student gets wrong, and Kendall's tau to the teacher."""
        figures = self.figures(answers(student_of(method), self.images))
        return {"error": 1 - figures["accuracy"], **{n: v for n, v in figures.items() if n == "kendall"}}

    def judged(self, method: Any) -> dict[str, Any]:
        """Teacher, where there is one, the round before, where there are rounds, and student."""
        student, rows = student_of(method), dict[str, Figures]()
        notes = [f"Learned from {self.source.size} images of {len(self.classes)} classes."]
        if self.judged_logits is not None:
            rows["teacher"] = {**self.figures(self.judged_logits), **_costs(self.teacher, self.images)}
        if "teacher" in method.roles:  # a round taught itself; PLD has logits in the teacher's place
            before = method.roles["teacher"].module
            rows["round before"] = {**self.figures(answers(before, self.images)), **_costs(before, self.images)}
            notes.append("The round before is what the student learned from, beside the labels.")
            notes += ["The teacher taught neither: it is there to be compared with."] * ("teacher" in rows)
        rows["student"] = {**self.figures(answers(student, self.images)), **_costs(student, self.images)}
        columns = {n: column for n, column in COLUMNS.items() if any(n in row for row in rows.values())}
        headline = f"{rows['student']['accuracy']:.1%} of {len(self.images)} images held out are right"
        if "teacher" in rows:
            headline += f"; the teacher's {rows['teacher']['accuracy']:.1%}"
            if (share := rows["teacher"].get("parameters", 0) / rows["student"]["parameters"]) > 1:
                headline += f", with {share:.1f} times the parameters"
        return judgement(rows, columns, headline, notes)

    def figures(self, logits: Tensor) -> Figures:
        """Of logits (N, C) of the images held out; agreement and Kendall's tau where there is a teacher."""
        found = {"accuracy": float((logits.argmax(1) == self.labels).double().mean())}
        if self.judged_logits is not None:
            found["agreement"] = float((logits.argmax(1) == self.judged_logits.argmax(1)).double().mean())
            found["kendall"] = float(kendall_tau(logits, self.judged_logits).nanmean())
        return found

    def album(self, method: Any) -> dict[str, Picture]:
        """Which classes are taken for which, and what the student gets wrong."""
        logits = answers(student_of(method), self.images)
        known = {"teacher": self.judged_logits, "student": logits}
        who = {name: z.argmax(1) for name, z in known.items() if z is not None}
        whole = [confusion(self.labels, said, len(self.classes)) for said in who.values()]
        note = f"rows: the true class; columns: the answer; {', '.join(who)}"
        album = {"confusion": Picture(torch.stack(whole), len(whole), "Confusion", note)}
        wrong = (logits.argmax(1) != self.labels).nonzero()[:SHOWN, 0]
        if len(wrong) and self.images.shape[1] in (1, 3):
            note = "; ".join(self._mistake(int(i), logits) for i in wrong)
            album["mistakes"] = Picture(self.images[wrong].float().cpu(), SHOWN, "Mistakes of the student", note)
        return album

    def _mistake(self, i: int, logits: Tensor) -> str:
        said = f"{self.classes[self.labels[i]]} taken for {self.classes[logits[i].argmax()]}"
        return said if self.judged_logits is None else f"{said} (teacher: {self.classes[self.judged_logits[i].argmax()]})"

    def leave(self, folder: Path, method: Any, about: Mapping[str, Any]) -> None:
        """student.safetensors and student.json (:func:`limbeck.tasks.load_classifier`)."""
        save_classifier(folder / "student", student_of(method), {**about, "classes": list(self.classes)})

    def exports(self) -> Mapping[str, Callable[[Any, Path], None]]:
        """Programs, images (B, C, H, W) in [-1, 1] -> logits (B, C), any B."""
        return {"torch-export": self._program, "onnx": self._onnx}

    def _program(self, method: Any, path: Path) -> None:
        from limbeck.interop.export import write_program

        write_program(path, *self._taken_home(method))

    def _onnx(self, method: Any, path: Path) -> None:
        from limbeck.interop.export import write_onnx

        write_onnx(path, *self._taken_home(method), names=("images",), output="logits")

    def _taken_home(self, method: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
        few = self.images[torch.arange(3) % len(self.images)]
        return copy.deepcopy(student_of(method)).cpu().float().eval(), (few.cpu().float(),)


def classify(
    teacher: Any = None,
    data: Any = None,
    student_network: Any = None,
    labels: Any = None,
    *,
    image_size: int | None = None,
    held_out: int | None = None,
    train_images: int | None = None,
    wrong_labels: float = 0.0,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> Classification:
    """The task; see `ClassifyOptions`. From Python ``teacher`` may be a module or logits (N, C), ``data`` images with ``labels``
    (N,), ``student_network`` a class, a function or a module. A person's images need no teacher where the method has none.

    Raises LimbeckError for what it cannot use.
    """
    facts = {"origin": "given", "reference": "the labels"}
    if data is None:
        if labels is not None or image_size is not None or held_out is not None:
            raise LimbeckError("labels=, --image-size and --held-out are for images of your own: give --data (data=) too")
        (x, y), names = load_digits(), tuple(map(str, range(10)))
        learned, judged = digit_split(y)
        if teacher is None:
            teacher, facts["origin"] = load_digit_features(), "of the library"
    else:
        pictures = given_pictures(data, labels, image_size)
        if pictures.labels is None:
            raise LimbeckError(
                f"{data if isinstance(data, (str, Path)) else 'data'} has no classes; give a folder with a subfolder per class, a "
                'file with "images" and "labels", or labels='
            )
        x, y, names = pictures.images, pictures.labels, pictures.classes
        learned, judged = held_out_rows(y, 5 if held_out is None else held_out)
    x = x.to(getattr(torch, dtype))
    placed = x.to(device)
    module, logits = (None, None) if teacher is None else given_teacher(teacher, placed)
    if logits is not None and logits.shape[1] != len(names):
        raise LimbeckError(
            f"the teacher has {logits.shape[1]} classes and the data {len(names)} ({', '.join(names[:5])}, ...): give one list"
        )
    make = student_factory(student_network, tuple(x.shape[1:]), len(names), SMALL if data is None else USUAL)
    rows = chosen_rows(learned, FEW if data is None and train_images is None else train_images)
    told = with_wrong(y[rows], wrong_labels, len(names))
    task = Classification(
        TensorSource(x[rows], {"label": told}),
        placed[judged],
        y[judged],
        names,
        lambda: make().to(placed),
        module,
        None if logits is None else logits[rows],
        None if logits is None else logits[judged],
        facts=facts,
    )
    width = answers(task.new_student(0), task.images[:2]).shape[1]
    if width != len(names):
        raise LimbeckError(f"the student has {width} outputs and the data {len(names)} classes: give it as many")
    return task


def held_out_rows(labels: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """(rows to learn from, rows to judge by): of each class every so many-th is judged."""
    if every < 2:
        raise LimbeckError(f"held_out={every}: every 2nd image of a class or fewer can be held out; 5 holds out a fifth")
    judged = torch.cat([(labels == c).nonzero()[every - 1 :: every, 0] for c in labels.unique()]).sort().values
    if not len(judged):
        raise LimbeckError(f"no class has {every} images, so none is held out; give more images, or a smaller --held-out")
    keep = torch.ones(len(labels), dtype=torch.bool)
    keep[judged] = False
    return keep.nonzero()[:, 0], judged


def chosen_rows(rows: Tensor, count: int | None) -> Tensor:
    """So many of the rows (None: all), always the same."""
    if count is None:
        return rows
    if not 1 <= count <= len(rows):
        raise LimbeckError(f"train_images={count}: there are {len(rows)} images to learn from; give 1 to {len(rows)}")
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]]


def with_wrong(labels: Tensor, share: float, classes: int) -> Tensor:
    """Labels of which a share, always the same ones, is replaced by another class."""
    if not 0 <= share < 1:
        raise LimbeckError(f"wrong_labels={share:g} is a share of the labels, in [0, 1)")
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    found = labels.clone()
    found[places] = (labels[places] + torch.randint(1, classes, places.shape, generator=generator)) % classes
    return found


def _costs(module: nn.Module | None, images: Tensor) -> Figures:
    if module is None:
        return {}
    parameters = sum(p.numel() for p in module.parameters())
    return {"parameters": parameters, "images_per_second": images_per_second(module, images)}
