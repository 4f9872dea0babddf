"""Reports: one self-contained HTML page per run, per set of runs, or per set of claims, and grids of samples.

The pages load nothing, follow the reader's light or dark theme, print, and fit a phone. They run no script but the viewer's, where
a run has a scene of Gaussian splats.
"""

from limbeck.report.grids import image_grid, save_grid, side_by_side
from limbeck.report.pages import write_claims, write_comparison, write_report

__all__ = [
    "image_grid",
    "save_grid",
    "side_by_side",
    "write_claims",
    "write_comparison",
    "write_report",
]
