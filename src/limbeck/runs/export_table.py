"""Which students go home as which stock pipeline: planned and rehearsed for every class, so that the table is what export does."""

from dataclasses import dataclass

import torch

from limbeck.errors import LimbeckError
from limbeck.interop.export import PIPELINES, Steps, Stock, plan_export
from limbeck.noise import DDPM, VE, Process, RectifiedFlow

FLOWS = ("StableDiffusion3Pipeline", "FluxPipeline", "SanaPipeline", "QwenImagePipeline", "WanPipeline")


@dataclass(frozen=True)
class Kind:
    """Methods whose students sample alike: in ``steps`` steps of a kind; ``experts``: by two networks."""

    methods: tuple[str, ...]
    kind: str
    steps: int = 4
    experts: bool = False
    eta: float = 0.0
    consistency: bool = False
    s_start: bool = False
    """Do they begin with s z and not with z?"""


KINDS = {
    "one step": Kind(("dmd", "f-distill", "disback", "sid", "sim", "sfd", "swiftbrush", "snoopi", "compose"), "fresh", 1),
    "4 steps, fresh noise": Kind(("dmd", "f-distill", "disback", "sid", "sim", "sfd", "compose"), "fresh"),
    "4 steps, ode": Kind(("tdm", "hyper-sd"), "ode"),
    "4 steps, eta 0.3": Kind(("hyper-sd",), "tcd", eta=0.3),
    "experts": Kind(("phased-dmd",), "ode", experts=True),
    "4 steps from s z": Kind(("rcm", "pso"), "fresh", s_start=True),
    "consistency, 2 steps": Kind(("ict",), "fresh", 2, consistency=True),
}


def schedule(stock: Stock, kind: Kind) -> tuple[Process, str, str]:
    """(process, prediction, noise input) that such students have of such a pipeline."""
    if kind.consistency:
        return VE(), "consistency", "log_sigma_thousand"
    if stock.name in FLOWS:
        return RectifiedFlow(), "velocity", "thousand"
    return DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012), "eps", "time"


def cell(stock: Stock, kind: Kind) -> tuple[str, str]:
    """(scheduler or "", why not)."""
    process, prediction, noise_input = schedule(stock, kind)
    K = kind.steps
    share = torch.arange(K, 0, -1, dtype=torch.float64) / K
    times = 1000 * share - 1 if isinstance(process, DDPM) else share
    if kind.consistency:
        times = torch.tensor([80.0, 0.821])
    start = "noise" if kind.consistency or kind.s_start else "unit"
    if kind.experts and stock.name != "WanPipeline":
        return "", f"a {stock.name} holds one network, not an expert for each phase"
    try:
        steps = Steps(process, tuple(times.tolist()), kind.kind, start, kind.eta)
        plan = plan_export(steps, stock, prediction, noise_input)
    except LimbeckError as error:
        return "", str(error)
    told = sorted(set(plan.call) & {"timesteps", "sigmas", "eta"})
    told += ["stochastic_sampling"] if plan.config.get("stochastic_sampling") else []
    return plan.scheduler.removesuffix("Scheduler") + (f" ({', '.join(told)})" if told else ""), ""


def markdown() -> str:
    """The table in Markdown, with the reasons of what is refused under it."""
    lines = ["| pipeline | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    reasons: dict[str, int] = {}
    for stock in PIPELINES.values():
        row = [stock.name.removesuffix("Pipeline")]
        for kind in KINDS.values():
            found, why = cell(stock, kind)
            row.append(found or f"no ({reasons.setdefault(_general(why, stock), len(reasons) + 1)})")
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", *(f"- {name}: {', '.join(kind.methods)}" for name, kind in KINDS.items()), ""]
    return "\n".join([*lines, *(f"{number}. {why}" for why, number in reasons.items())])


def _general(why: str, stock: Stock) -> str:
    """A reason that holds for every pipeline alike."""
    return why.replace(stock.name, "the pipeline").replace("a the", "the")
