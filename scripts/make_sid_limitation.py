"""Draw docs/images/sid_limitation.png: how SiD and DMD move weight between separated modes.

Both start from a network of equal weights and have an exact teacher of unequal ones.
Run with one thread: OMP_NUM_THREADS=1 python scripts/make_sid_limitation.py (about half a minute)
"""

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from limbeck.claims.generators.sid import mode_shares, unequal_samples
from limbeck.metrics import total_variation
from limbeck.tasks.ring import UNEQUAL

FILE = Path(__file__).parents[1] / "docs" / "images" / "sid_limitation.png"


def main(seed: int = 0, iterations: int = 300) -> None:
    torch.set_num_threads(1)
    samples = unequal_samples(seed, iterations)
    weights = torch.tensor(UNEQUAL, dtype=torch.float64)
    shares = {"teacher": weights, "start": torch.full_like(weights, 1 / len(weights))}
    shares |= {name: mode_shares(x) for name, x in samples.items()}
    figure, (bars, points) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(2, 1), layout="constrained")
    for i, ((name, values), colour) in enumerate(zip(shares.items(), ("0.3", "0.8", "tab:blue", "tab:orange"), strict=True)):
        label = name if name == "teacher" else f"{name} (total variation {total_variation(values, weights):.2f})"
        bars.bar([mode + 0.2 * (i - 1.5) for mode in range(len(values))], values.tolist(), 0.2, color=colour, label=label)
    title = f"one step, {iterations} updates"
    bars.set(xlabel="mode", ylabel="share of samples", xticks=range(len(UNEQUAL)), title=f"weights of separated modes: {title}")
    bars.legend(frameon=False)
    for name, colour in (("DMD", "tab:orange"), ("SiD", "tab:blue")):
        points.scatter(*samples[name][:1500].T, s=2, alpha=0.4, color=colour, label=name)
    points.set(aspect="equal", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), title="samples")
    points.legend(frameon=False, markerscale=4)
    figure.savefig(FILE, dpi=110)
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
