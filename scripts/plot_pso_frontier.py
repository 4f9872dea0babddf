"""Draw docs/images/pso_frontier.png from the results of `limbeck reproduce pso --json FILE`: preference against sharpness.

    python scripts/plot_pso_frontier.py FILE [OUT.png]

One line per arm that the results hold: medians over the seeds at every checkpoint, from the student that all arms start from.
"""

import json
import re
import sys
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {
    "online, a reward with a bound": ["online beta 5", "online beta 10", "online beta 20", "online beta 100"],
    "offline": ["offline beta 1", "offline beta 5", "offline beta 20"],
    "controls": ["unbounded beta 1", "unbounded beta 50 clipped", "customised", "customised without prior"],
}
PLAIN = ["plain lr 0.001", "plain lr 0.0001"]


def points(runs: list[dict[str, float]], label: str) -> list[tuple[float, float]]:
    """(share, sharpness) at the start and at every checkpoint of an arm."""
    steps = sorted(int(m[1]) for name in runs[0] if (m := re.fullmatch(rf"{re.escape(label)} at (\d+) share", name)))
    middle = lambda name: median(run[name] for run in runs)  # noqa: E731
    return [(middle(f"{w} share"), middle(f"{w} sharpness")) for w in ["start", *(f"{label} at {step}" for step in steps)]]


def main(file: Path, out: Path) -> None:
    """Read the results and write the picture."""
    (found,) = [r for r in json.loads(file.read_text()) if r["method"] == "pso"]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 4.2), sharex=True, sharey=True, layout="constrained")
    for axis, (title, labels) in zip(axes, PANELS.items(), strict=True):
        shown = [*((p, "--") for p in PLAIN), *((label, "-") for label in labels if f"{label} share" in found["runs"][0])]
        for label, style in shown:
            x, y = zip(*points(found["runs"], label), strict=True)
            axis.plot(x, y, style, marker="o", markersize=3, color="0.6" if style == "--" else None, label=label)
            axis.plot(x[-1], y[-1], "o", markersize=7, color=axis.lines[-1].get_color())
        axis.plot(x[0], y[0], "k*", markersize=11, zorder=3)
        axis.set_title(title)
        axis.set_xlabel("share in the upper half")
        axis.legend(fontsize=8, loc="lower left")
    axes[0].set_ylabel("share within 3 std of a mode")
    figure.suptitle(f"Preference against sharpness; star: start, large dot: end; medians, seeds: {found['seeds']}")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/images/pso_frontier.png"))
