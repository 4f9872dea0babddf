"""Draw docs/images/sid_limitation.png: what SiD and DMD make of the weights of separated modes.

Run with one thread: OMP_NUM_THREADS=1 python scripts/make_sid_limitation.py (about a minute)
"""

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from limbeck.claims.generators.sid import mode_shares, unequal_samples
from limbeck.tasks.ring import UNEQUAL

FILE = Path(__file__).parents[1] / "docs" / "images" / "sid_limitation.png"
COLOURS = {"data": "0.75", "start": "tab:gray", "SiD": "tab:blue", "DMD": "tab:orange"}


def main(seed: int = 0) -> None:
    torch.set_num_threads(1)
    samples = unequal_samples(seed)
    figure, (bars, points) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(2, 1), layout="constrained")
    shares = {"data": list(UNEQUAL)} | {name: mode_shares(x) for name, x in samples.items()}
    for i, (name, values) in enumerate(shares.items()):
        at = [mode + 0.2 * (i - 1.5) for mode in range(len(values))]
        bars.bar(at, values, 0.2, color=COLOURS[name], label=name)
    bars.set(
        xlabel="mode", ylabel="share of samples", xticks=range(len(UNEQUAL)), title="weights of separated modes, four steps"
    )
    bars.legend(frameon=False)
    for name in ("DMD", "SiD"):
        points.scatter(*samples[name][:1500].T, s=2, alpha=0.4, color=COLOURS[name], label=name)
    points.set(aspect="equal", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), title="samples")
    points.legend(frameon=False, markerscale=4)
    figure.savefig(FILE, dpi=110)
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
