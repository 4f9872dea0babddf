"""The table of a run."""

from typing import Any


def show(summary: dict[str, Any]) -> None:
    """The table of a run: of few-step generators teacher, teacher at the student's NFE, student; else what its task judged."""
    from rich.console import Console
    from rich.table import Table

    if "table" in summary:
        show_table(summary)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "NFE", "Frechet distance", "class accuracy", "images/s"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    rows = {"teacher": "teacher", "teacher_at_student_nfe": "teacher, student's NFE", "student": "student"}
    for key, label in rows.items():
        f = summary.get(key)
        if f:
            accuracy = "-" if f["accuracy"] is None or f["accuracy"] != f["accuracy"] else f"{f['accuracy']:.3f}"
            table.add_row(label, str(f["nfe"]), f"{f['frechet']:.3f}", accuracy, f"{f['images_per_second']:,.0f}")
    console = Console()
    console.print()
    console.print(table)
    teacher, student = summary["teacher"], summary["student"]
    if (reference := summary.get("reference", "the real data")) != "the real data":
        console.print(f"\nFrechet distances are against {reference}", highlight=False)
    console.print(
        f"\nstudent / teacher: {student['frechet'] / teacher['frechet']:.2f} x the Frechet distance, "
        f"{student['images_per_second'] / teacher['images_per_second']:.0f} x the images per second; "
        f"noise floor {summary['noise_floor']:.3f}; distilled in {summary['seconds']:.0f} s",
        highlight=False,
    )


def show_table(summary: dict[str, Any]) -> None:
    """Rows and columns as :func:`limbeck.tasks.judgement` gives them, then what was achieved."""
    from rich.console import Console
    from rich.table import Table

    rows, columns = summary["table"]["rows"], summary["table"]["columns"]
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns.values():
        table.add_column(column["title"], justify="right", min_width=max(map(len, column["title"].split())))
    for name, figures in rows.items():
        table.add_row(name, *(cell(figures.get(key), column["unit"]) for key, column in columns.items()))
    console = Console()
    console.print()
    console.print(table)
    seconds = summary.get("seconds")
    took = "" if seconds is None or seconds != seconds else f"; distilled in {seconds:.0f} s"
    console.print(f"\n{summary['headline']}{took}", highlight=False, soft_wrap=True)


def cell(value: float | None, unit: str) -> str:
    """A figure in a table; "-" where it is not known."""
    if value is None or value != value:
        return "-"
    return {"percent": f"{100 * value:.1f} %", "count": f"{value:,.0f}"}.get(unit, f"{value:.4g}")
