"""A paper's own claim as a small honest experiment: arms measured over seeds, checks judged on all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

Figures = dict[str, float]


@dataclass(frozen=True)
class Check:
    """One statement with what was measured. ``gated``: the command fails where it does not hold; else it is reported."""

    statement: str
    holds: bool
    measured: float | str
    bound: float | str
    gated: bool = True


@dataclass(frozen=True)
class Claim:
    """``measure(seed)`` runs all arms once; ``judge`` turns the figures of all seeds into checks.

    ``prepare`` makes what is cached and not counted (teachers). ``calibration`` is what 8 seeds gave, as text.
    """

    method: str
    arxiv: str
    measure: Callable[[int], Figures]
    judge: Callable[[Sequence[Figures]], list[Check]]
    prepare: Callable[[], object] = lambda: None
    calibration: str = ""


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of every figure over the runs."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


def at_most(statement: str, measured: float, bound: float, gated: bool = True) -> Check:
    """A check that measured <= bound."""
    return Check(statement, measured <= bound, measured, f"<= {bound:g}", gated)


def at_least(statement: str, measured: float, bound: float, gated: bool = True) -> Check:
    """A check that measured >= bound."""
    return Check(statement, measured >= bound, measured, f">= {bound:g}", gated)


def result(claim: Claim, runs: Sequence[Figures], checks: Sequence[Check], seconds: float) -> dict[str, Any]:
    """What ``--json`` writes of one method; ``figures`` are the medians over the seeds, ``runs`` each seed's."""
    return {
        "method": claim.method,
        "arxiv": claim.arxiv,
        "seconds": round(seconds, 1),
        "seeds": len(runs),
        "claims": [asdict(check) for check in checks],
        "figures": medians(runs),
        "runs": list(runs),
        "calibration": claim.calibration,
    }


def failed(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The statements that are gated and do not hold."""
    return [f"{r['method']}: {c['statement']}" for r in results for c in r["claims"] if c["gated"] and not c["holds"]]
