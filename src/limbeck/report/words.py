"""Numbers and sentences of the pages."""
# ruff: noqa: RUF001

from collections.abc import Mapping, Sequence
from math import isfinite, isnan
from typing import Any, TypeGuard

from limbeck.report.record import Figures, Record

__all__ = [
    "achievement",
    "best_of",
    "calls",
    "claims_outcome",
    "context",
    "count",
    "duration",
    "figure",
    "measured",
    "percent",
    "speedup",
    "times",
    "verdict",
]

NBSP = "\u00a0"


def figure(value: float | None) -> str:
    """Three significant digits; whole numbers from 1,000 on.

    >>> [figure(value) for value in (1.8312, 41.0, 1899.6, 0.21, 3e-5, None, float("nan"))]
    ['1.83', '41.0', '1,900', '0.210', '3.00e-05', '–', 'nan']
    """
    if value is None:
        return "–"
    if not isfinite(value):
        return "nan" if isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 999.5:
        return f"{value:,.0f}" if size < 1e7 else f"{value:.2e}"
    if size < 1e-3:
        return f"{value:.2e}" if value else "0"
    return f"{value:#.3g}".rstrip(".")


def count(value: float | int | None) -> str:
    """A number of things: ``35``, ``1,000``."""
    return f"{value:,.0f}" if value is not None and isfinite(value) else figure(value)


def percent(value: float | None) -> str:
    """A share: 0.985 is ``98.5%``."""
    return f"{100 * value:.1f}%" if _known(value) else "–"


def times(ratio: float) -> str:
    """A factor: ``38×``, ``0.8×``."""
    return f"{count(ratio)}×" if ratio >= 9.95 else f"{ratio:.2g}×"


def duration(seconds: float | None) -> str:
    r"""Seconds in the unit that suits them; its spaces do not break.

    >>> [duration(value) for value in (0.52, 52.1, 200, 7260)]
    ['0.5\xa0s', '52\xa0s', '3\xa0min\xa020\xa0s', '2\xa0h\xa01\xa0min']
    """
    if seconds is None or not isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.{0 if seconds >= 9.5 else 1}f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    words = (minutes, "min", rest, "s") if minutes < 60 else (minutes // 60, "h", minutes % 60, "min")
    return NBSP.join(map(str, words))


def calls(figures: Figures | None) -> str:
    """``1 network call``, ``35 network calls``, or nothing where it is not known."""
    if figures is None or not _known(figures.nfe):
        return ""
    return f"{count(figures.nfe)} network call{'' if figures.nfe == 1 else 's'}"


def speedup(figures: Figures | None, teacher: Figures | None) -> float | None:
    """Images per second over the teacher's."""
    ours, theirs = (None if which is None else which.images_per_second for which in (figures, teacher))
    return ours / theirs if _known(ours) and _known(theirs) and theirs else None


def achievement(run: Record) -> str:
    """What a run achieved, in one sentence with its numbers."""
    if run.headline:
        return run.headline
    student, teacher = run.student, run.teacher
    if student is None:
        done = max((steps[-1] for steps, _ in run.curves.values() if steps), default=0)
        _, distances = run.curves.get("frechet", ([], []))
        last = f", Fréchet distance {figure(distances[-1])} when last measured" if distances else ""
        return f"Not finished: {count(done)} iteration{'' if done == 1 else 's'} so far{last}"
    what = calls(student).replace("1 network call", "One network call") if student.nfe == 1 else calls(student)
    if what and teacher is not None and _known(teacher.nfe) and teacher.nfe != student.nfe:
        what += f" instead of {count(teacher.nfe)}"
    parts = []
    theirs = f"the teacher’s {figure(teacher.frechet)}" if teacher is not None and _known(teacher.frechet) else ""
    if _known(student.frechet):
        parts.append(f"Fréchet distance {figure(student.frechet)}" + (f" against {theirs}" if theirs else ""))
    elif student.frechet is not None or theirs:
        parts.append("no finite Fréchet distance" + (f" against {theirs}" if theirs else ""))
    ratio = speedup(student, teacher)
    if ratio is not None:
        parts.append(f"{times(ratio)} the images per second")
    elif _known(student.images_per_second):
        parts.append(f"{figure(student.images_per_second)} images per second")
    return ": ".join(part for part in (what, ", ".join(parts)) if part) or "Finished; nothing was measured"


def context(run: Record) -> list[str]:
    """Sentences that put the achievement in its place."""
    sentences = list(run.notes)
    student, same = run.student, run.teacher_at_student_nfe
    if same is not None and _known(same.frechet):
        sentences.append(f"The teacher itself with {calls(same) or 'as many network calls'} gets {figure(same.frechet)}.")
    if _known(run.noise_floor):
        as_many = "real images" if run.reference == "the real data" else f"draws of {run.reference}"
        sentences.append(f"A perfect model would get {figure(run.noise_floor)} (the noise floor: as many {as_many}).")
    if student is not None and _known(student.accuracy):
        theirs = f" (teacher {percent(run.teacher.accuracy)})" if run.teacher and _known(run.teacher.accuracy) else ""
        sentences.append(f"{percent(student.accuracy)} of the samples show what they were asked for{theirs}.")
    if _known(run.seconds):
        trained = f", after {duration(run.teacher_seconds)} for its teacher" if _known(run.teacher_seconds) else ""
        origin = {"trained": trained, "cached": " from a cached teacher"}.get(run.teacher_origin, "")
        sentences.append(f"Distilled in {duration(run.seconds)}{origin}.")
    return sentences


def best_of(runs: Sequence[Record]) -> str:
    """The best of several runs of one task, sorted, in one sentence."""
    best, many = runs[0], f"{len(runs)} run{'' if len(runs) == 1 else 's'} on {runs[0].task}"
    if best.table is not None:
        return f"{many}; {best.method}: {best.headline}" if len(runs) == 1 else many
    if best.student is None or not _known(best.student.frechet):
        return f"{many}: none with a finite Fréchet distance"
    sentence = f"{many}: {best.method} comes closest to the data, Fréchet distance {figure(best.student.frechet)}"
    if calls(best.student):
        sentence += f" with {calls(best.student)}"
    if best.teacher is not None and _known(best.teacher.frechet):
        sentence += f", the teacher {figure(best.teacher.frechet)}"
        sentence += f" with {count(best.teacher.nfe)}" if _known(best.teacher.nfe) else ""
    return sentence


def verdict(claim: Mapping[str, Any]) -> str:
    """``holds`` or ``fails`` of a gated claim, ``shown`` or ``not shown`` of a reported one."""
    return ("holds" if claim["holds"] else "fails") if claim["gated"] else ("shown" if claim["holds"] else "not shown")


def claims_outcome(results: Sequence[Mapping[str, Any]]) -> str:
    """How many claims hold, in one sentence."""
    verdicts = [verdict(claim) for result in results for claim in result["claims"]]
    held, gated = verdicts.count("holds"), verdicts.count("holds") + verdicts.count("fails")
    shown, reported = verdicts.count("shown"), len(verdicts) - gated
    of = f"of {len(results)} method{'' if len(results) == 1 else 's'}"
    if gated < 2:
        first = f"The one gated claim {of} {'holds' if held else 'fails'}" if gated else f"No gated claims {of}"
    else:
        first = f"{f'All {gated}' if held == gated else f'{held} of {gated}'} gated claims {of} hold"
    second = f"; of {reported} reported without a gate, {shown} {'is' if shown == 1 else 'are'} shown"
    return first + (second if reported else "")


def measured(value: Any) -> str:
    """A claim's measurement or bound: a number, text, or several."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        return count(value) if isinstance(value, int) else figure(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {measured(part)}" for name, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(measured(part) for part in value)
    return str(value)


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and isfinite(value)
