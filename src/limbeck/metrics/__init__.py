"""How good, how diverse and how different are samples?

Every metric is a pure function of tensors (N, ...), computed in float64 on the device of its input without
gradient; what is random takes an integer seed and draws on the CPU, so that every device gives one figure.
`distances` compares sets of points and laws, `frechet` sets of features, `manifold` asks for precision and
recall, `modes` counts modes and measures spread within classes, `rank_correlation` compares orders, `images`
compares pairs, `views` asks whether an object differs from side to side as it should, and `bootstrap` says what
a figure is worth: its floor on real data alone. Wrong input raises `limbeck.errors.LimbeckError`.
"""

from limbeck.metrics.bootstrap import bootstrap_floor
from limbeck.metrics.distances import (
    energy_distance,
    mean_pairwise_distance,
    sliced_wasserstein,
    total_variation,
)
from limbeck.metrics.frechet import (
    BlockEstimate,
    Moments,
    frechet_distance,
    frechet_distance_of_moments,
    kernel_distance,
    kernel_distance_of_blocks,
    moments,
)
from limbeck.metrics.images import luma, luma_scores, modcrop, psnr, ssim
from limbeck.metrics.manifold import PrecisionRecall, precision_recall
from limbeck.metrics.modes import ModeHistogram, class_variance, class_variance_ratio, mode_histogram
from limbeck.metrics.rank_correlation import kendall_tau, spearman_rho
from limbeck.metrics.views import (
    ViewEntropies,
    circular_order_error,
    clipped_fraction,
    label_entropy,
    nearest_views,
    render_distance,
    saturation,
    saturation_ratio,
    share_of,
    view_entropies,
    view_posterior,
)

__all__ = [
    "BlockEstimate",
    "ModeHistogram",
    "Moments",
    "PrecisionRecall",
    "ViewEntropies",
    "bootstrap_floor",
    "circular_order_error",
    "class_variance",
    "class_variance_ratio",
    "clipped_fraction",
    "energy_distance",
    "frechet_distance",
    "frechet_distance_of_moments",
    "kendall_tau",
    "kernel_distance",
    "kernel_distance_of_blocks",
    "label_entropy",
    "luma",
    "luma_scores",
    "mean_pairwise_distance",
    "modcrop",
    "mode_histogram",
    "moments",
    "nearest_views",
    "precision_recall",
    "psnr",
    "render_distance",
    "saturation",
    "saturation_ratio",
    "share_of",
    "sliced_wasserstein",
    "spearman_rho",
    "ssim",
    "total_variation",
    "view_entropies",
    "view_posterior",
]
