"""The table of a run."""

from typing import Any


def show(summary: dict[str, Any]) -> None:
    """The table of a run: teacher, teacher at the student's NFE, student."""
    from rich.console import Console
    from rich.table import Table

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
