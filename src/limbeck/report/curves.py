"""Curves as inline SVG that takes the page's colours: geometry here, marks in ``templates/parts.html``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

from limbeck.report.record import Curve
from limbeck.report.words import figure

WIDTH, HEIGHT = 340, 180
LEFT, RIGHT, TOP, BOTTOM = 46, 332, 10, 156
BUCKETS = 140

# figures shown at once, the others in a fold; name -> (title, what it says)
KNOWN = {
    "frechet": ("Fréchet distance", "to the real data, lower is better"),
    "accuracy": ("Accuracy", "share showing what was asked for"),
    "gap": ("Score gap", "critic against teacher (rms)"),
    "critic_lag": ("Critic lag", "0 is exact, above 0.5 it is behind"),
    "diversity": ("Diversity", "difference between samples (rms)"),
}
PREFIXES = {"loss": "Loss", "grad_norm": "Gradient norm", "lr": "Learning rate"}
NOT_DRAWN = ("nfe",)


@dataclass(frozen=True)
class Series:
    """SVG paths: the mean line, the band from lowest to highest, dots of lone points, and where values are not finite."""

    label: str
    colour: str
    line: str
    band: str
    dots: list[tuple[float, float]]
    broken: list[float]


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    last: str
    description: str
    log: bool
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    references: list[tuple[float, str]]
    series: list[Series]
    not_finite: str


Scale = Callable[[float], float]
Bucket = tuple[float, float | None, float, float]  # step, mean (None: no finite value), lowest, highest


def is_main(name: str) -> bool:
    """Whether a figure is shown without unfolding."""
    return name in KNOWN or name.startswith("loss/")


def order(name: str) -> tuple[int, str]:
    """Sort key: the known figures in their order, losses, then the rest by name."""
    known = list(KNOWN)
    return (known.index(name) if name in known else len(known) + (not name.startswith("loss/")), name)


def chart(name: str, curves: Mapping[str, Curve], references: Mapping[str, float | None] | None = None) -> Chart | None:
    """One figure of one or several runs (label -> curve) with named horizontal lines; None without a finite value."""
    drawn = {label: _buckets(*curve) for label, curve in curves.items()}
    means = [mean for buckets in drawn.values() for _, mean, _, _ in buckets if mean is not None]
    if not means:
        return None
    lines = {label: value for label, value in (references or {}).items() if value is not None and isfinite(value)}
    levels = [*means, *lines.values()]
    log = min(levels) > 0 and max(levels) / min(levels) > 10
    low, high = _padded(min(levels), max(levels), log)
    last = max(step for buckets in drawn.values() for step, *_ in buckets)

    def x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (step / last if last else 0.5), 1)

    def y(value: float) -> float:
        if log:
            value = log10(max(value, 1e-300))
        share = (value - low) / (high - low)
        return round(BOTTOM - (BOTTOM - TOP) * min(max(share, 0.0), 1.0), 1)

    title, note = _about(name)
    broken = {
        label: [step for step, value in zip(*curve, strict=True) if not isfinite(value)] for label, curve in curves.items()
    }
    lost = [step for steps in broken.values() for step in steps]
    return Chart(
        title=title,
        note=note,
        last=figure(next(iter(curves.values()))[1][-1]) if len(curves) == 1 else "",
        description=f"{title}{' on a logarithmic axis' if log else ''}: "
        + "; ".join((f"{label} " if len(curves) > 1 else "") + _told(*curve) for label, curve in curves.items() if curve[0]),
        log=log,
        x_ticks=[(x(tick), f"{tick:,.0f}") for tick in _ticks(0.0, last) if tick == round(tick)],
        y_ticks=[(y(tick), f"{tick:.4g}") for tick in (_log_ticks(low, high) if log else _ticks(low, high))],
        references=[(y(value), label) for label, value in lines.items()],
        series=[
            _series(label, f"s{index % 8}" + (" dashed" if index >= 8 else ""), buckets, broken[label], x, y)
            for index, (label, buckets) in enumerate(drawn.items())
        ],
        not_finite=f"{len(lost)} value{'' if len(lost) == 1 else 's'} not finite, first at {min(lost):,}" if lost else "",
    )


def positions(values: list[float | None]) -> list[float | None]:
    """Where values lie between the lowest (0) and the highest (100), on a log axis where all are positive."""
    known = [value for value in values if value is not None and isfinite(value)]
    if not known:
        return [None] * len(values)
    log = min(known) > 0

    def scale(value: float) -> float:
        return log10(value) if log else value

    low, span = scale(min(known)), scale(max(known)) - scale(min(known))
    return [
        round(100 * (scale(value) - low) / span, 1) if value is not None and isfinite(value) and span else None
        for value in values
    ]


def _about(name: str) -> tuple[str, str]:
    prefix, _, role = name.partition("/")
    if role and prefix in PREFIXES:
        return f"{PREFIXES[prefix]}, {role}", ""
    return KNOWN.get(name, (name, ""))


def _told(steps: list[int], values: list[float]) -> str:
    finite = [value for value in values if isfinite(value)]
    span = f", between {figure(min(finite))} and {figure(max(finite))}" if finite else ""
    return f"{figure(values[0])} at iteration {steps[0]:,}, {figure(values[-1])} at {steps[-1]:,}{span}"


def _buckets(steps: list[int], values: list[float]) -> list[Bucket]:
    """The curve in at most ``BUCKETS`` pieces of equally many points."""
    size = ceil(len(steps) / BUCKETS)
    buckets: list[Bucket] = []
    for start in range(0, len(steps), max(size, 1)):
        part = steps[start : start + size]
        finite = [value for value in values[start : start + size] if isfinite(value)]
        mean = sum(value / len(finite) for value in finite) if finite else None
        buckets.append((sum(part) / len(part), mean, min(finite, default=0.0), max(finite, default=0.0)))
    return buckets


def _series(label: str, colour: str, buckets: list[Bucket], broken: list[int], x: Scale, y: Scale) -> Series:
    runs: list[list[tuple[float, float, float, float]]] = [[]]
    for step, mean, lowest, highest in buckets:
        if mean is None:
            runs.append([])
        else:
            runs[-1].append((x(step), y(mean), y(lowest), y(highest)))
    runs = [run for run in runs if run]
    line = "".join("M" + "L".join(f"{px} {py}" for px, py, *_ in run) for run in runs if len(run) > 1)
    band = "".join(
        "M" + "L".join([f"{px} {top}" for px, _, _, top in run] + [f"{px} {base}" for px, _, base, _ in reversed(run)]) + "Z"
        for run in runs
        if len(run) > 1 and any(base != top for _, _, base, top in run)
    )
    few = sum(map(len, runs)) <= 12
    dots = [(px, py) for run in runs for px, py, *_ in run if few or len(run) == 1]
    return Series(label, colour, line, band, dots, sorted({x(float(step)) for step in broken}))


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        low, high = log10(low), log10(high)
    pad = 0.06 * (high - low) or abs(high) / 2 or 1.0
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers in [low, high]."""
    if high <= low:
        return [low]
    raw = (high - low) / 4
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.75 * raw)
    return [round(index * step, 12) for index in range(ceil(low / step), floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [10^low, 10^high], every nth of many; with 2 and 5 between few."""
    every = ceil((high - low) / 5)
    factors = (1, 2, 5) if high - low < 2.2 else (1,)
    exponents = range(floor(low), ceil(high) + 1)
    return [10.0**k * f for k in exponents if k % every == 0 for f in factors if low <= k + log10(f) <= high]
