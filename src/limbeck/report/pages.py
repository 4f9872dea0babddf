"""The pages: one run, several runs, a set of claims. Templates and style are in ``templates/``."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from math import inf, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import LimbeckError
from limbeck.report import words
from limbeck.report.curves import NOT_DRAWN, Chart, chart, is_main, order, positions
from limbeck.report.pictures import Picture, animation, picture
from limbeck.report.record import PICTURES, Figures, Record, Table, labels, read_record
from limbeck.report.viewer import Viewer, read_viewpoint, script, source_hash, viewer
from limbeck.scenes import load_splats
from limbeck.training.durable import put_in_place
from limbeck.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


def write_report(folder: Path | str) -> Path:
    """``report.html`` in a run's folder: what was achieved, pictures, figures, curves, how to do it again, warnings.

    What the folder lacks the page leaves out; an unfinished run gets a page that says so.

    Raises:
        LimbeckError: no run there, or a damaged file.
    """
    run = read_record(folder)
    references = {"frechet": {"teacher": _of(run.teacher, "frechet"), "perfect": run.noise_floor}}
    references["accuracy"] = {"teacher": _of(run.teacher, "accuracy")}
    charts = {name: chart(name, {run.method: curve}, references.get(name)) for name, curve in run.curves.items()}
    rows = _rows(run)
    still = picture(run.turntable) if run.turntable else None
    return _write(
        run.folder / "report.html",
        "run.html",
        run=run,
        pictures=_pictures(run, list(run.titles) or PICTURES),
        rows=rows,
        spots=positions([figures.frechet for _, _, figures in rows]),
        main=_shown(charts, main=True),
        more=_shown(charts, main=False),
        viewer=_viewer(run, still),
        turntable=run.turntable and animation(run.turntable),
        still=still,
        script=script() if run.scene else "",
    )


def write_comparison(folders: Sequence[Path | str], path: Path | str) -> Path:
    """One page of several runs, task by task: a table by Fréchet distance, the students' pictures, curves overlaid.

    Raises:
        LimbeckError: no folder given, one that is no run, or a damaged file.
    """
    if not folders:
        raise LimbeckError("a comparison needs at least one run's folder")
    runs = sorted((read_record(folder) for folder in folders), key=lambda run: (run.task, _rank(run)))
    tasks = []
    for task, group in groupby(runs, key=lambda run: run.task):
        members = list(group)
        names = labels(members)
        figures = sorted({name for run in members for name in run.curves}, key=order)
        overlaid = {name: _overlay(name, dict(zip(names, members, strict=True))) for name in figures}
        teacher = next((run for run in members if run.teacher is not None), members[0])
        tasks.append(
            {
                "name": task,
                "runs": list(zip(names, members, strict=True)),
                "spots": positions([_of(run.student, "frechet") for run in members] + [_of(teacher.teacher, "frechet")]),
                "teacher": teacher,
                "table": _students(names, members),
                "pictures": ([] if teacher.table else _pictures(teacher, ("real", "teacher")))
                + [
                    (name, _distance(run.student), picture(run.pictures["student"]))
                    for name, run in zip(names, members, strict=True)
                    if "student" in run.pictures
                ],
                "main": _shown(overlaid, main=True),
            }
        )
    return _write(Path(path), "comparison.html", tasks=tasks, runs=runs)


def write_claims(results: Sequence[Mapping[str, Any]], path: Path | str) -> Path:
    """A page of claims: ``[{"method", "arxiv", "seconds", "seeds", "claims": [{"statement", "gated", "holds", "measured",
    "bound"}]}]``. Gated claims hold or fail; the others are reported as they came out.

    Raises:
        LimbeckError: an entry lacks a name.
    """
    for result in results:
        _require(result, ("method", "claims"), "a method's result")
        for claim in result["claims"]:
            _require(claim, ("statement", "gated", "holds"), f"a claim of {result['method']}")
    return _write(Path(path), "claims.html", results=results)


def _write(path: Path, template: str, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    put_in_place(path, _templates().get_template(template).render(limbeck=__version__, **{"script": "", **content}))
    return path


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("limbeck.report")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.globals |= {name: getattr(words, name) for name in words.__all__}
    pages.filters["source_hash"] = source_hash
    return pages


def _rows(run: Record) -> list[tuple[str, str, Figures]]:
    """Rows of the table: (kind, name, figures), best possible first."""
    rows = [("floor", "Perfect model", Figures(frechet=run.noise_floor))] if run.noise_floor is not None else []
    same = run.teacher_at_student_nfe
    named = (
        ("teacher", "Teacher", run.teacher),
        ("same", "Teacher, as few calls", same),
        ("student", "Student", run.student),
    )
    return rows + [(kind, name, figures) for kind, name, figures in named if figures is not None]


def _pictures(run: Record, names: Sequence[str]) -> list[tuple[str, str, Picture]]:
    """(title, what stands beside it, picture) in the order in which they are compared."""
    if run.table is not None:
        return [(*run.titles[name], picture(path)) for name, path in run.pictures.items()]
    same = run.teacher_at_student_nfe
    about = {
        "real": ("Real", "data", None),
        "teacher": ("Teacher", words.calls(run.teacher), run.teacher),
        "teacher_at_student_nfe": ("Teacher, as few calls", words.calls(same or run.student), same),
        "student": ("Student", words.calls(run.student), run.student),
    }
    shown = []
    for name in names:
        if name in run.pictures:
            title, note, figures = about[name]
            beside = [note, _distance(figures)]
            shown.append((title, " · ".join(part for part in beside if part), picture(run.pictures[name])))
    return shown


def _viewer(run: Record, still: Picture | None) -> Viewer | None:
    if run.scene is None:
        return None
    return viewer(load_splats(run.scene), read_viewpoint(run.scene.with_suffix(".json")), still)


def _students(names: Sequence[str], runs: Sequence[Record]) -> Table | None:
    """The students of runs whose tasks judge by figures of their own, by the runs' names."""
    tables = {name: run.table for name, run in zip(names, runs, strict=True) if run.table is not None}
    if not tables:
        return None
    return Table({name: table.rows["student"] for name, table in tables.items()}, next(iter(tables.values())).columns)


def _distance(figures: Figures | None) -> str:
    distance = _of(figures, "frechet")
    return "" if distance is None else f"Fréchet{words.NBSP}{words.figure(distance)}"


def _shown(charts: Mapping[str, Chart | None], main: bool) -> list[Chart]:
    names = sorted((name for name in charts if is_main(name) == main and name not in NOT_DRAWN), key=order)
    return [drawn for name in names if (drawn := charts[name]) is not None]


def _overlay(name: str, runs: Mapping[str, Record]) -> Chart | None:
    # every run keeps its place, so that its colour is the same in all charts
    references = {"teacher": next((_of(run.teacher, name) for run in runs.values() if run.teacher), None)}
    return chart(name, {label: run.curves.get(name, ([], [])) for label, run in runs.items()}, references)


def _of(figures: Figures | None, name: str) -> float | None:
    return getattr(figures, name, None)


def _rank(run: Record) -> float:
    distance = _of(run.student, "frechet")
    return inf if distance is None or isnan(distance) else distance


def _require(entry: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    for name in names:
        if name not in entry:
            raise LimbeckError(f"{what} lacks {name!r}; it has {', '.join(entry)}")
