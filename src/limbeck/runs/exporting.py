"""A run's student out of this library: into a diffusers pipeline, adapters, or a program; and samples as a pipeline draws them."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError, unknown
from limbeck.interop import DiffusersNetwork, export
from limbeck.interop.conventions import convention_of, unpacked
from limbeck.methods import find
from limbeck.networks import merged
from limbeck.runs.config import read_config
from limbeck.runs.distillation import Run, open_run
from limbeck.samplers import Experts
from limbeck.tasks import Task

TARGETS = ("diffusers", "lora", "torch-export", "onnx")
SIZES = ("height", "width", "num_frames")


@dataclass(frozen=True)
class Exported:
    """What an export wrote: its ``path``, the arguments of ``pipe(...)`` ({}: a program), the hub's address if it was pushed."""

    path: Path
    call: dict[str, Any]
    address: str | None = None


def export_run(
    folder: Path | str,
    to: str,
    out: Path | str,
    *,
    overwrite: bool = False,
    dtype: str | None = None,
    license: str | None = None,
    push_to_hub: str | None = None,
    private: bool = True,
    trust_code: bool = False,
) -> Exported:
    """Write the student of a run to OUT: ``to`` is diffusers or lora (a folder), torch-export or onnx (a file); for students
    that are no few-step generators, what their task can write (:meth:`limbeck.tasks.AnyTask.exports`).

    The student is that of the last checkpoint, averaged where there is an average. ``dtype``: of the network's weights, for
    diffusers (None: as trained). ``license``: of the card (None: that of the teacher's card). ``push_to_hub``: USER/NAME.
    ``trust_code``: import what the run's config.yaml names as code.
    Raises LimbeckError with the reason where the student cannot be written so.
    """
    out = Path(out)
    if (Path(folder) / "config.yaml").is_file() and find(read_config(folder).method).wing != "generators":
        return _export_by_task(folder, to, out, overwrite, trust_code)
    if to not in TARGETS:
        raise unknown("form to export to (--to)", to, TARGETS)
    export.check_target(out, overwrite)
    pipeline = to in ("diffusers", "lora")
    if not pipeline and (dtype or push_to_hub):
        raise LimbeckError("--dtype and --push-to-hub are for --to diffusers and --to lora; leave them out")
    if dtype not in (None, "float32", "float16", "bfloat16"):
        raise unknown("dtype", str(dtype), ("float32", "float16", "bfloat16"))
    done, task = open_run(folder, quiet=True, trust_code=trust_code)
    if not done.summary:
        print(f"{folder} is not finished: its last checkpoint is exported", file=sys.stderr)
    if not pipeline:
        _write_program(done, task, to, out)
        return Exported(out, {})
    written = export_pipeline(done, to, out, overwrite, dtype, license, push_to_hub)
    address = export.push(out, push_to_hub, private) if push_to_hub else None
    return Exported(out, written, address)


def _export_by_task(folder: Path | str, to: str, out: Path, overwrite: bool, trust_code: bool) -> Exported:
    done, task = open_run(folder, quiet=True, trust_code=trust_code)
    forms = task.exports()
    if to not in forms:
        raise unknown(f"form to export a student of the task {task.name} to (--to)", to, forms)
    if out.exists() and not overwrite:
        raise LimbeckError(f"{out} already exists; --overwrite replaces it")
    out.parent.mkdir(parents=True, exist_ok=True)
    forms[to](done.method, out)
    return Exported(out, {})


def student_steps(done: Run) -> export.Steps:
    """How the student of a run samples."""
    return export.steps_of(done.method.sampling, getattr(done.method.options, "begin", "noise"))  # type: ignore[attr-defined]


def export_pipeline(
    done: Run, to: str, out: Path, overwrite: bool, dtype: str | None, license: str | None, repository: str | None
) -> dict[str, Any]:
    """Write a pipeline or adapters; returns the arguments of its call."""
    parts = preconditioned(done)
    source = Path(str(done.config.task_options["model"]))
    stock = export.stock_pipeline(export.pipeline_class(source))
    steps, first = student_steps(done), parts[0]
    plan = export.plan_export(
        steps, stock, first.prediction, first.noise_input, first.sigma_data, export.scheduler_config(source)
    )
    models, boundary = components(done, stock, parts, steps)
    entry = find(done.config.method)
    call = _call(done, plan, parts[0])
    facts = export.Facts(
        name=repository or out.name, method=entry.id, title=entry.title, arxiv=entry.arxiv, steps=steps.K,
        asked=_asked(parts[0]), sizes={n: v for n, v in call.items() if n not in plan.call}, base=str(source),
        license=license or export.license_of(source), figures=done.summary,
    )  # fmt: skip
    with export.replaced(out, overwrite) as place:
        if to == "lora":
            export.write_lora(place, plan, models)
            export.write_scheduler(place / "scheduler", plan)
        else:
            whole = {name: merged(model) for name, model in models.items()}
            number_type = None if dtype is None else getattr(torch, dtype)
            export.write_pipeline(place, source, plan, whole, boundary, number_type)
        said = export.described(plan, facts, list(steps.times), list(steps.levels))
        (place / "limbeck.json").write_text(json.dumps(said, indent=2) + "\n")
        export.write_card(place, plan, facts, lora=to == "lora")
    return call


def preconditioned(done: Run) -> list[Preconditioned]:
    """The student's networks of diffusers, the noisiest expert first. Raises LimbeckError where it has others."""
    student = done.student
    found: list[Any] = [d for _, _, d in reversed(student.experts)] if isinstance(student, Experts) else [student]
    named = done.config.task_options.get("model")
    for denoiser in found:
        network = getattr(denoiser, "network", None)
        if not (isinstance(denoiser, Preconditioned) and isinstance(network, DiffusersNetwork)):
            raise LimbeckError(
                f"the student of {done.path} is no network of diffusers (its task is {done.config.task!r}), so no pipeline can hold it; "
                "export it with --to torch-export FILE.pt2 or --to onnx FILE.onnx, or take the weights, student.safetensors in the run"
            )
    if done.config.task != "diffusers" or not named or "python" in done.config.task_options:
        raise LimbeckError(
            f"the teacher of {done.path} was an object in memory, so the rest of its pipeline is not known; save it with "
            "save_pretrained(DIR) and distil with model=DIR"
        )
    return found


def components(
    done: Run, stock: export.Stock, parts: list[Preconditioned], steps: export.Steps
) -> tuple[dict[str, nn.Module], float | None]:
    """(the student's models by the name of their component, where the second takes over as a share of the time)."""
    models: list[Any] = [part.network.model for part in parts]
    if len(models) == 1:
        return {stock.component: models[0]}, None
    if stock.name != "WanPipeline" or len(models) > 2:
        raise LimbeckError(
            f"the student has {len(models)} experts, and a {stock.name} holds "
            + ("two (transformer, transformer_2)" if stock.name == "WanPipeline" else "one network")
            + "; train it with fewer phases, or with dmd or tdm, or export with --to torch-export"
        )
    times = torch.tensor(steps.times, dtype=torch.float64)
    which = done.student.index(times)
    edge = float((times[which == 1].min() + times[which == 0].max()) / 2)
    return {"transformer": models[0], "transformer_2": models[1]}, edge


def _asked(denoiser: Preconditioned) -> str:
    network: Any = denoiser.network
    names = (*network.convention.needs, *network.convention.takes)
    return "text" if "encoder_hidden_states" in names else "label" if "label" in network.convention.needs else ""


def _call(done: Run, plan: export.Plan, denoiser: Preconditioned) -> dict[str, Any]:
    """The plan's arguments, the sizes that the run was told, and the guidance that the network is told."""
    told = {name: done.config.task_options[name] for name in SIZES if done.config.task_options.get(name)}
    network: Any = denoiser.network
    guidance = {"guidance_scale": float(network.fixed["guidance"])} if "guidance" in network.fixed else {}
    return {**plan.call, **told, **guidance}


def _write_program(done: Run, task: Task, to: str, out: Path) -> None:
    steps, cond = student_steps(done), task.evaluator.cond
    module = export.unrolled(merged(done.student), steps, sorted(cond or {}))
    module = module.to(device="cpu", dtype=torch.float32)
    held = None if cond is None else {n: v.cpu().float() if v.is_floating_point() else v.cpu() for n, v in cond.items()}
    inputs = export.example_inputs(task.shape, module, held)
    (export.write_program if to == "torch-export" else export.write_onnx)(out, module, inputs)


@torch.no_grad()
def sample_as_pipelines_do(done: Run, task: Task, count: int, seed: int) -> Tensor:
    """``count`` samples whose noise comes from one torch.Generator, in the order of a stock pipeline: the first inputs of all
    samples, then what each step draws. ``pipe(..., generator=torch.manual_seed(seed))`` of the exported student draws the same.
    """
    evaluator, generator = task.evaluator, torch.Generator().manual_seed(seed)
    rows = torch.arange(count)
    cond = None if evaluator.cond is None else {n: v[(rows % len(v)).to(v.device)] for n, v in evaluator.cond.items()}
    real = evaluator.real
    packs = _packs(done.student)

    def draw(first: bool = False) -> Tensor:
        if packs == 1 or first:
            return torch.randn(count, *task.shape, generator=generator).to(real)
        channels, height, width = task.shape  # what is drawn later lies in tokens
        tokens = torch.randn(count, height * width // packs, packs * channels, generator=generator)
        return unpacked(tokens, height // 2, width // 2).to(real)

    z = draw(first=True)
    later = [draw() for _ in range(len(done.method.times))]  # type: ignore[attr-defined]
    sampler = done.sampler()
    chunks = []
    for part in rows.split(evaluator.chunk):
        order = iter(later)
        held = None if cond is None else {n: v[part.to(v.device)] for n, v in cond.items()}
        chunks.append(sampler(z[part], held, lambda i, order=order, part=part: next(order)[part]))
    return torch.cat(chunks)


def _packs(student: Any) -> int:
    inner = student.experts[0][2] if isinstance(student, Experts) else student
    network = getattr(inner, "network", None)
    return convention_of(network.model).packs if isinstance(network, DiffusersNetwork) else 1
