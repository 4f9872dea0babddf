"""Draw docs/images/janus.png: a head with one face everywhere, and the same teacher's with all its sides.

Run with one thread: OMP_NUM_THREADS=1 python scripts/make_janus.py (about half a minute)
"""

from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from limbeck.claims.scenes.esd import arm_renders
from limbeck.metrics import nearest_views, share_of
from limbeck.tasks.scenes.renders import RenderLibrary

FILE = Path(__file__).parents[1] / "docs" / "images" / "janus.png"
ROWS = {"the head itself": None, "SDS": "SDS", "ESD, lam = 1": "ESD 1", "SDS, told the view": "told SDS"}


def main(seed: int = 0) -> None:
    torch.set_num_threads(1)
    library = RenderLibrary.of_heads(1)
    true = library.images[0]
    figure, axes = plt.subplots(len(ROWS), 12, figsize=(11, 4.2), layout="constrained")
    for row, (name, arm) in zip(axes, ROWS.items(), strict=True):
        renders = true if arm is None else arm_renders(library, arm, seed)
        front = share_of(nearest_views(renders, true), library.front())
        for i, place in enumerate(row):
            place.imshow(((renders[2 * i] + 1) / 2).movedim(0, -1).clamp(0, 1).numpy(), interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
            if row is axes[0]:
                place.set_title(f"{30 * i}°", fontsize=9)
        row[0].set_ylabel(f"{name}\n{front:.0%} front", fontsize=9, rotation=0, ha="right", va="center")
    figure.savefig(FILE, dpi=110)
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
