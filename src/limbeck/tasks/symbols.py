"""Short sequences of symbols of which all is known: a Markov chain, its exact score, and the law of any sampler by enumeration.

What is learned are the steps of a discrete sampler. They are judged without randomness: KL(data || sampler) of the student's
steps, of as many plain ones, and of the many that it learned from. All of it is worked out in float64 on the CPU.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import LimbeckError, unknown
from limbeck.samplers.discrete import (
    Absorbing,
    Enumerated,
    Graph,
    LearnedSteps,
    Linear,
    LogLinear,
    Schedule,
    Uniform,
    chain_law,
    cyclic_chain,
    sequences,
    teacher_times,
)
from limbeck.tasks.contract import Column, Figures, Picture, judgement
from limbeck.training import TensorSource

VOCAB = 4
INITIAL = (0.4, 0.3, 0.2, 0.1)
GRAPHS: dict[str, type[Graph]] = {"uniform": Uniform, "absorbing": Absorbing}
SCHEDULES: dict[str, type[Schedule]] = {"linear": Linear, "log_linear": LogLinear}
MOST = 1024  # states that are enumerated: a step is a matrix of all pairs of them
PREFERRED = {"lsd": {"iterations": 60, "steps": 4, "teacher_steps": 32}}
COLUMNS = {
    "kl": Column("KL(data || sampler), nats", "lower"),
    "calls": Column("Calls of the network", "lower", "count"),
}


def chain(graph: Graph, length: int, stick: float = 0.85) -> Enumerated:
    """A cyclic Markov chain of four symbols: linear noise 1e-4 + 5 t on the uniform graph, log-linear on the absorbing one."""
    law = chain_law(sequences(VOCAB, length), torch.tensor(INITIAL, dtype=torch.float64), cyclic_chain(VOCAB, stick))
    return Enumerated(graph, Linear() if graph.mask is None else LogLinear(), law, length)


@dataclass(frozen=True)
class SymbolsOptions:
    """What may be said of the sequences."""

    graph: str | None = None
    """uniform (default): symbols turn into one another; absorbing: they are masked."""
    length: int | None = None
    """Symbols of a sequence (default: 3)."""
    stick: float | None = None
    """How probable it is that a symbol is followed by the next one (default: 0.85; 0.25: all are independent)."""


OPTIONS = SymbolsOptions


@dataclass(frozen=True)
class Symbols:
    """See the module. ``score``: the exact one, which also enumerates. The source has rows of nothing but noise."""

    score: Enumerated
    name: str = "symbols"
    source: TensorSource = field(default_factory=lambda: TensorSource(None, size=4096))
    facts: Mapping[str, Any] = field(default_factory=lambda: {"origin": "exact", "reference": "the exact law"})
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    best: str | None = "kl"

    @property
    def graph(self) -> Graph:
        return self.score.graph

    @property
    def schedule(self) -> Schedule:
        return self.score.schedule

    @property
    def length(self) -> int:
        return self.score.length

    def watched(self, method: Any) -> Figures:
        """KL(data || sampler) of the steps as they are."""
        return {"kl": self.kl(method.learned)}

    def kl(self, steps: LearnedSteps, times: torch.Tensor | None = None) -> float:
        """KL(data || sampler) of learned steps, or of plain ones between ``times``."""
        with torch.no_grad():
            return self.score.kl(self.score.laws(steps, times)[-1])

    def judged(self, method: Any) -> dict[str, Any]:
        """The many steps, as few plain ones, and the student's."""
        steps, options = method.learned, method.options
        few, many = (teacher_times(steps.steps, n, steps.end) for n in (steps.steps, options.teacher_steps))
        kls = {
            f"{options.teacher_steps} steps": (self.kl(steps, many), options.teacher_steps),
            f"{steps.steps} steps": (self.kl(steps, few), steps.steps),
            "student": (self.kl(steps), steps.steps),
        }
        rows = {name: {"kl": kl, "calls": float(calls)} for name, (kl, calls) in kls.items()}
        plain, learned = (rows[name]["kl"] for name in (f"{steps.steps} steps", "student"))
        headline = f"KL {learned:.3f} nats with {steps.steps} learned steps, {plain:.3f} with as many plain ones"
        phi = ", ".join(f"{value:.3f}" for value in steps.phi.tolist())
        notes = [f"The coefficients of the steps are {phi}; 1 is a plain step."]
        if unchanged := int((steps.phi == 1).sum()):
            notes.append(
                f"{unchanged} of {steps.steps} steps are plain: nothing that was learned explained the teacher better."
            )
        return judgement(rows, COLUMNS, headline, notes)

    def album(self, method: Any) -> dict[str, Picture]:
        """Nothing to look at."""
        return {}

    def leave(self, folder: Path, method: Any, about: Mapping[str, Any]) -> None:
        """steps.json (:func:`load_steps`)."""
        _write(folder / "steps.json", method, about)

    def exports(self) -> Mapping[str, Callable[[Any, Path], None]]:
        """json: the learned steps."""
        return {"json": lambda method, path: _write(path, method, {"task": self.name})}


def symbols(
    graph: str = "uniform",
    length: int = 3,
    stick: float = 0.85,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    quiet: bool = False,
) -> Symbols:
    """The task; see `SymbolsOptions`. Raises LimbeckError for another graph or device, and for too many sequences."""
    if graph not in GRAPHS:
        raise unknown("graph", graph, GRAPHS)
    if torch.device(device).type != "cpu":
        raise LimbeckError(f"the task symbols is worked out on the CPU, not on {device}; leave --device out")
    count = VOCAB if graph == "uniform" else VOCAB + 1
    if length < 1 or count**length > MOST:
        longest = next(n for n in range(MOST) if count ** (n + 1) > MOST)
        raise LimbeckError(f"length={length}: all {count}^{length} sequences are enumerated; give 1 to {longest}")
    if not 0 < stick < 1:
        raise LimbeckError(f"stick={stick:g} is a probability in (0, 1)")
    return Symbols(chain(GRAPHS[graph](count), length, stick))


def load_steps(file: Path | str) -> LearnedSteps:
    """The steps that a run left in its steps.json. Raises LimbeckError where there are none."""
    try:
        told = json.loads(Path(file).read_text())
        graph, schedule = dict(told["graph"]), dict(told["schedule"])
        made = GRAPHS[graph.pop("kind")](**graph), SCHEDULES[schedule.pop("kind")](**schedule)
        found = LearnedSteps(*made, len(told["phi"]), told["end"], told["kernel"], told["param"], told["free"])
        found.load_state_dict({name: torch.tensor(told[name], dtype=torch.float64) for name in ("phi", "theta")})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise LimbeckError(f"{file} holds no learned steps: {' '.join(str(error).split())[:200]}") from None
    return found.requires_grad_(False)


def _write(path: Path, method: Any, about: Mapping[str, Any]) -> None:
    steps: LearnedSteps = method.learned
    told = {
        **about,
        "graph": {"kind": _name(GRAPHS, steps.graph), **asdict(steps.graph)},
        "schedule": {"kind": _name(SCHEDULES, steps.schedule), **asdict(steps.schedule)},
        "kernel": method.options.kernel,
        "param": steps.param,
        "end": steps.end,
        "free": steps.free,
        "phi": steps.phi.tolist(),
        "theta": steps.theta.tolist(),
        "times": steps.times().tolist(),
    }
    path.write_text(json.dumps(told, indent=2) + "\n")


def _name(kinds: Mapping[str, type], value: object) -> str:
    return next(name for name, kind in kinds.items() if type(value) is kind)
