"""The model card of an exported student: what it is, how to sample it, and the figures of its run."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from limbeck.interop.export.stock import Plan
from limbeck.version import __version__


@dataclass(frozen=True)
class Facts:
    """What a card says of a student. ``name``: what ``from_pretrained`` is given; ``asked``: "text", "label" or "" (nothing)."""

    name: str
    method: str
    title: str
    arxiv: str
    steps: int
    asked: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    license: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


def described(plan: Plan, facts: Facts, times: list[float], levels: list[float]) -> dict[str, Any]:
    """What limbeck.json holds."""
    return {
        "limbeck": __version__,
        "method": facts.method,
        "pipeline": plan.pipeline.name,
        "scheduler": plan.scheduler,
        "call": {**plan.call, **facts.sizes},
        "times": times,
        "sigmas": [level if level < float("inf") else None for level in levels],
        "rehearsal": plan.difference,
    }


def write_card(folder: Path, plan: Plan, facts: Facts, lora: bool = False) -> None:
    """README.md, with its front matter."""
    tags = ["limbeck", "distillation", "diffusers", facts.method, *(["lora"] if lora else [])]
    front: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": plan.pipeline.tag, "tags": tags}
    if facts.license:
        front = {"license": facts.license, **front}
    if facts.base:
        front["base_model"] = facts.base
    paper = f" (arXiv [{facts.arxiv}](https://arxiv.org/abs/{facts.arxiv}))" if facts.arxiv else ""
    steps = "one step" if facts.steps == 1 else f"{facts.steps} steps"
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", "", f"# A student in {steps}", "",
        f"Distilled with [limbeck](https://pypi.org/project/limbeck/) by {facts.title}{paper}. It samples in {steps} with the stock "
        f"`{plan.pipeline.name}` and `{plan.scheduler}` of diffusers, without guidance: what guidance there was is in its weights.",
        "", "```python", code(plan, facts, lora), "```", "",
        "The arguments stand in `limbeck.json` too. One CPU generator for all noise, as above, makes the samples of "
        "`limbeck sample RUN --noise torch --seed 0`.", "", *table(facts.figures),
    ]  # fmt: skip
    (folder / "README.md").write_text("\n".join(lines).rstrip() + "\n")


def code(plan: Plan, facts: Facts, lora: bool = False) -> str:
    """Python that loads the student and writes one sample."""
    asked = {"text": "a photo of a cat", "label": [0]}.get(facts.asked)
    name = "prompt" if facts.asked == "text" else "class_labels"
    call = {**({name: asked} if asked else {}), **plan.call, **facts.sizes}
    arguments = ", ".join(f"{key}={json.dumps(value)}" for key, value in call.items())
    load = [f"pipe = {plan.pipeline.name}.from_pretrained({json.dumps(facts.base if lora else facts.name)})"]
    used = ["import torch", f"from diffusers import {plan.pipeline.name}"]
    if lora:
        used[1] = f"from diffusers import {', '.join(sorted((plan.pipeline.name, plan.scheduler)))}"
        load += [
            f"pipe.load_lora_weights({json.dumps(facts.name)})",
            f'pipe.scheduler = {plan.scheduler}.from_pretrained({json.dumps(facts.name)}, subfolder="scheduler")',
        ]
    if plan.pipeline.tag == "text-to-video":
        seen = [f'frames = pipe({arguments}, generator=torch.manual_seed(0), output_type="pil").frames[0]']
        seen.append('frames[0].save("sample.gif", save_all=True, append_images=frames[1:])')
    else:
        seen = [f"image = pipe({arguments}, generator=torch.manual_seed(0)).images[0]", 'image.save("sample.png")']
    return "\n".join([*used, "", *load, *seen])


def table(figures: Mapping[str, Any]) -> list[str]:
    """The figures of a run's summary.json, as Markdown lines (none: [])."""
    rows = {"teacher": "teacher", "teacher_at_student_nfe": "teacher, as many calls", "student": "student"}
    known = {label: figures[key] for key, label in rows.items() if isinstance(figures.get(key), Mapping)}
    if not known:
        return ["The run that made it is not finished: there are no figures yet."]
    lines = ["| | calls | Frechet distance |", "|---|---:|---:|"]
    lines += [f"| {label} | {f['nfe']} | {f['frechet']:.3f} |" for label, f in known.items()]
    return [
        *lines,
        "",
        f"By the features and samples of the run's task ({figures.get('task', '')}), not comparable with others.",
    ]


def license_of(source: Path) -> str | None:
    """The license in the front matter of a folder's README.md (None: it says none)."""
    card = source / "README.md"
    found = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL) if card.is_file() else None
    try:
        front = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return None
    return str(front["license"]) if isinstance(front, Mapping) and front.get("license") else None
