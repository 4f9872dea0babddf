"""Results of claims as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any


def shown(value: float | str) -> str:
    """A figure to four digits; text as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cell(text: str) -> str:
    """Text inside a table."""
    return text.replace("|", "\\|")


def verdict(check: Mapping[str, Any]) -> str:
    """holds or FAILS where gated, else shown or not shown."""
    if check["gated"]:
        return "holds" if check["holds"] else "FAILS"
    return ("shown" if check["holds"] else "not shown") + " (reported)"


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """A table per method, its calibration, and at the end what is not shown."""
    total = sum(result["seconds"] for result in results)
    seeds = sorted({result["seeds"] for result in results})
    lines = [
        "# Claims",
        "",
        f"`limbeck reproduce {' '.join(result['method'] for result in results)}`, {', '.join(map(str, seeds))} seeds, medians: "
        f"{total / 60:.0f} min in all.",
        "",
        '"holds" is gated: the command fails where it does not hold. The rest is reported as it came, shown or not.',
    ]
    for result in results:
        lines += ["", f"## {result['method']} (arXiv {result['arxiv']}), {result['seconds']:.0f} s", ""]
        lines += ["| claim | measured | bound | |", "|---|---|---|---|"]
        lines += [
            f"| {cell(c['statement'])} | {shown(c['measured'])} | {c['bound']} | {verdict(c)} |" for c in result["claims"]
        ]
        if result["calibration"]:
            lines += ["", f"Calibration: {result['calibration']}"]
    missed = [(r["method"], c) for r in results for c in r["claims"] if not c["gated"] and not c["holds"]]
    if missed:
        lines += ["", "## Not shown at this size", "", "| method | claim | measured | would be shown by |", "|---|---|---|---|"]
        lines += [f"| {m} | {cell(c['statement'])} | {shown(c['measured'])} | {c['bound']} |" for m, c in missed]
    return "\n".join(lines) + "\n"
