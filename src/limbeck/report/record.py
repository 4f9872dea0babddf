"""A run's record, read from its folder: what was run, what came out, the figures by step, the pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.training.durable import refuse_links
from limbeck.training.plain import read_plain
from limbeck.training.tracking import read_metrics

Curve = tuple[list[int], list[float]]  # steps, values
PICTURES = ("real", "teacher", "teacher_at_student_nfe", "student")


@dataclass(frozen=True)
class Figures:
    """What was measured of a sampler; None is not known, a number may be nan."""

    nfe: float | None = None
    frechet: float | None = None
    accuracy: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class Table:
    """``rows``: figures by the name of who has them; ``columns``: (name, title, better, unit) in order, as in
    :class:`limbeck.tasks.Column`."""

    rows: dict[str, dict[str, float | None]]
    columns: list[tuple[str, str, str, str]]


@dataclass(frozen=True)
class Record:
    """``student`` is None while a run is unfinished, ``teacher`` also for methods without one."""

    folder: Path
    method: str
    title: str
    task: str
    seed: str
    arxiv: str = ""
    teacher: Figures | None = None
    teacher_at_student_nfe: Figures | None = None
    student: Figures | None = None
    noise_floor: float | None = None
    reference: str = "the real data"
    """What the Frechet distances are against."""
    seconds: float | None = None
    teacher_seconds: float | None = None
    teacher_origin: str = ""
    messages: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    config_text: str = ""
    options: dict[str, str] = field(default_factory=dict)
    """The config, nested names joined by dots."""
    curves: dict[str, Curve] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    """What the columns of the pictures show, if known."""
    table: Table | None = None
    """The figures of a student that is no few-step generator, in place of the four above."""
    headline: str = ""
    notes: list[str] = field(default_factory=list)
    titles: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Title of each picture and what stands beside it."""
    turntable: Path | None = None
    """A GIF of the object seen from around."""
    scene: Path | None = None
    """The object's Gaussian splats."""


def read_record(folder: Path | str) -> Record:
    """A run from ``config.yaml``, ``summary.json``, ``metrics.jsonl``, ``samples/*.png`` and ``samples/columns.json`` (a
    list of names), ``samples/turntable.gif``, and ``scene.ply`` with ``scene.json`` (:func:`limbeck.scenes.save_scene`); one of the
    first two is enough.

    Raises:
        LimbeckError: no run there, or a damaged file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LimbeckError(f"no folder at {folder}: give the folder of a run, as `limbeck distill` makes it")
    refuse_links(folder)
    config_text, config = _read(folder / "config.yaml")
    _, summary = _read(folder / "summary.json")
    if config is None and summary is None:
        raise LimbeckError(f"{folder} is no run: config.yaml and summary.json are missing; give a folder of `limbeck distill`")
    about = {**_mapping(config, folder / "config.yaml"), **_mapping(summary, folder / "summary.json")}
    where = str(folder / "summary.json")
    curves = _history(_typed(about, "history", list, where), where)
    if (folder / "metrics.jsonl").exists():
        curves |= read_metrics(folder / "metrics.jsonl")
    _, columns = _read(folder / "samples" / "columns.json")
    titles = _titles(_typed(about, "pictures", list, where), where)
    method = str(about.get("method", "unknown method"))
    return Record(
        folder=folder,
        method=method,
        title=str(about.get("title") or method),
        task=str(about.get("task", "unknown task")),
        seed="" if about.get("seed") is None else str(about["seed"]),
        arxiv=str(about.get("arxiv") or ""),
        teacher=_figures(about, "teacher", where),
        teacher_at_student_nfe=_figures(about, "teacher_at_student_nfe", where),
        student=_figures(about, "student", where),
        noise_floor=_number(about, "noise_floor", where),
        reference=str(about.get("reference") or "the real data"),
        seconds=_number(about, "seconds", where),
        teacher_seconds=_number(about, "teacher_seconds", where),
        teacher_origin=str(about.get("teacher_origin") or ""),
        messages=[str(message) for message in _typed(about, "messages", list, where)],
        versions={str(name): str(version) for name, version in _typed(about, "versions", dict, where).items()},
        command=str(about.get("command") or ""),
        config_text=config_text,
        options=flat(config or {}),
        curves=curves,
        pictures={name: path for name in titles or PICTURES if (path := folder / "samples" / f"{name}.png").exists()},
        columns=[str(name) for name in _typed({"columns": columns}, "columns", list, str(folder / "samples"))],
        table=_table(about, where),
        headline=str(about.get("headline") or ""),
        notes=[str(note) for note in _typed(about, "notes", list, where)],
        titles=titles,
        turntable=_present(folder / "samples" / "turntable.gif"),
        scene=_present(folder / "scene.ply"),
    )


def flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """Leaves of nested mappings by their dotted names.

    >>> flat({"seed": 0, "options": {"student": {"lr": 0.1}}})
    {'seed': '0', 'options.student.lr': '0.1'}
    """
    if not isinstance(tree, Mapping):
        return {prefix: str(tree)}
    leaves: dict[str, str] = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return leaves


def labels(runs: list[Record]) -> list[str]:
    """A short name per run: its method, with the options in which runs of the same method and task differ."""
    names = []
    for run in runs:
        peers = [peer.options for peer in runs if (peer.method, peer.task) == (run.method, run.task)]
        differing = [key for key in run.options if len({peer.get(key) for peer in peers}) > 1]
        words = [f"{key.removeprefix('options.')}={run.options[key]}" for key in differing]
        names.append(" ".join([run.method, *words]) if len(words) <= 3 else f"{run.method} {run.folder.name}")
    return [
        name if names.count(name) == 1 else f"{run.method} {run.folder.name}" for name, run in zip(names, runs, strict=True)
    ]


def _read(path: Path) -> tuple[str, Any]:
    """Text and content of a JSON or YAML file; ("", None) where there is none."""
    try:
        return read_plain(path)
    except FileNotFoundError:
        return "", None


def _present(path: Path) -> Path | None:
    return path if path.exists() else None


def _mapping(content: Any, path: Path) -> dict[str, Any]:
    if content is not None and not isinstance(content, dict):
        raise LimbeckError(f"{path} holds a {type(content).__name__}, not names with values: repair or remove it")
    return content or {}


def _typed(values: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    value = values.get(name)
    if not isinstance(value, kind | None):
        raise LimbeckError(f"{where}: {name} is {value!r}, not a {kind.__name__}")
    return kind() if value is None else value


def _number(values: Mapping[str, Any], name: str, where: str) -> float | None:
    value = values.get(name)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise LimbeckError(f"{where}: {name} is {value!r}, which is no number") from None


def _figures(values: Mapping[str, Any], name: str, where: str) -> Figures | None:
    if values.get(name) is None:
        return None
    figures = _typed(values, name, dict, where)
    return Figures(**{key: _number(figures, key, where) for key in Figures.__dataclass_fields__})


def _titles(pictures: list[Any], where: str) -> dict[str, tuple[str, str]]:
    found = {}
    for picture in pictures:
        name = picture.get("name") if isinstance(picture, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise LimbeckError(f"{where}: pictures is no list of names with titles: {picture!r}")
        found[name] = (str(picture.get("title") or name), str(picture.get("note") or ""))
    return found


def _table(about: Mapping[str, Any], where: str) -> Table | None:
    if about.get("table") is None:
        return None
    table = _typed(about, "table", dict, where)
    rows, columns = _typed(table, "rows", dict, where), _typed(table, "columns", dict, where)
    try:
        read = [(str(name), str(c["title"]), str(c["better"]), str(c["unit"])) for name, c in columns.items()]
        figures = {str(who): {n: _number(row, n, where) for n, *_ in read} for who, row in rows.items()}
    except (KeyError, TypeError, AttributeError):
        raise LimbeckError(
            f"{where}: table has no rows of figures by name, or columns without title, better and unit"
        ) from None
    return Table(figures, read)


def _history(history: list[Any], where: str) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    try:
        for step, figures in history:
            for name, value in figures.items():
                if value is not None:
                    curves.setdefault(name, ([], []))[0].append(int(step))
                    curves[name][1].append(float(value))
    except (TypeError, ValueError, AttributeError):
        raise LimbeckError(f"{where}: history is no list of [step, figures by name]") from None
    return curves
