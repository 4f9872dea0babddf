"""limbeck distill: its options, which are those of all methods and those of one, and the run."""

import sys
from dataclasses import dataclass, make_dataclass, replace
from dataclasses import field as make_field
from pathlib import Path
from typing import Annotated, Any, Literal

from limbeck.cli.show import show
from limbeck.errors import LimbeckError
from limbeck.methods import find, preset_of
from limbeck.training.options import changed, merged_options, options_from_dict, options_to_dict


@dataclass(frozen=True)
class Shared:
    """What every distillation takes, whatever the method."""

    task: str = "digits"
    """digits, photos; with --teacher or --data: own."""
    teacher: str | None = None
    """Your own teacher: NAME.safetensors (+ .json), a .pt2 or .pt file, or MODULE:FUNCTION."""
    data: Path | None = None
    """A folder of pictures (one subfolder per class for labels)."""
    network: str | None = None
    """MODULE:CLASS of the teacher's network, for a bare state dict."""
    prediction: str | None = None
    """What your network predicts: edm, x0, eps, v, velocity, score."""
    process: str | None = None
    """Its noising process: ve, vp, cosine, ddpm, flow, trigflow; options as in flow:shift=3."""
    noise_input: str | None = None
    """How it is told the noise: time, thousand, sigma, log_sigma, angle."""
    data_range: str | None = None
    """The range of its images: "-1,1" (default), "0,1" or LOW,HIGH."""
    null_label: int | None = None
    """The label that means "no class" to your network, if one does."""
    sigma_data: float | None = None
    """The data's standard deviation (default: measured)."""
    image_size: int | None = None
    """Cut the centre square of every picture and resize it to N x N."""
    teacher_nodes: int | None = None
    """Noise levels of your teacher's Heun sampler (default: 18)."""
    features: str | None = None
    """MODULE:FUNCTION, images (N, C, H, W) in [-1, 1] -> features (N, D) for the Frechet distance."""
    preset: str | None = None
    """A preset of the method, e.g. paper-cifar10."""
    out: Path | None = None
    """The run's folder (default: a new one under runs/)."""
    config: Path | None = None
    """Replay a run's config.yaml."""
    resume: Path | None = None
    """Go on with this run."""
    from_run: Path | None = None
    """A run whose student this one begins with (and its critic)."""
    overwrite: bool = False
    """Replace the folder --out if it holds a run."""
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    micro_batches: int = 1
    """Pieces of a batch, to save memory; the gradient stays the same."""
    checkpoint_every: int = 300
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the networks under autocast; weights and losses stay in --dtype."""
    fail_above: float | None = None
    """Exit with 1 where the student's Frechet distance is more than this many times the teacher's."""


OWN = (
    "teacher", "data", "network", "prediction", "process", "noise_input", "data_range", "null_label", "sigma_data",
    "image_size", "teacher_nodes", "features",
)  # fmt: skip


def distill(arguments: list[str]) -> int:
    """limbeck distill [METHOD] [options]"""
    from limbeck import runs
    from limbeck.tasks import build_task, named_by

    named = bool(arguments) and not arguments[0].startswith("-")
    name, rest = (arguments[0], arguments[1:]) if named else ("dmd", arguments)
    base, options = Shared(), None
    stored: runs.RunConfig | None = None
    for flag in ("--resume", "--config"):
        if path := value_of(rest, flag):
            stored = runs.read_config(path) if flag == "--resume" else runs.parse_config(_existing(Path(path)))
    entry = find(name) if named or stored is None else find(stored.method)
    if stored is not None:
        if "python" in stored.task_options:
            build_task(stored.task, {"python": str(stored.task_options["python"])})  # raises: says why it cannot
        if named and find(stored.method).id != entry.id:
            raise LimbeckError(f"that run is of the method {stored.method!r}, not of {entry.id!r}; leave the method out")
        same: dict[str, Any] = {
            n: getattr(stored, n) for n in ("task", "seed", "device", "dtype", "micro_batches", "checkpoint_every", "precision")
        }
        same["from_run"] = None if stored.from_run is None else Path(stored.from_run)
        same |= {n: Path(v) if n == "data" else v for n, v in stored.task_options.items() if n in OWN}
        base = replace(base, **same)
    _, options_class, presets = runs.distilling(entry.id).load()
    preset = value_of(rest, "--preset")
    options = preset_of(name, presets, preset)
    if stored is not None:
        options = options_from_dict(options_class, stored.options, f"options of {entry.id}")
    given = _parse(f"limbeck distill {entry.id}", rest, base, options)
    shared: Shared = given[0]
    how: runs.Execution = given[2]
    own = {n: getattr(shared, n) for n in OWN if getattr(shared, n) is not None}
    task_options = {n: str(v) if isinstance(v, Path) else v for n, v in own.items()}
    task_name = "own" if own else shared.task
    if stored is None and preset is None:
        given = (shared, _suited(entry.id, task_name, options, given[1], rest), how)
    runs.check_place(shared.device, shared.dtype)
    config = runs.RunConfig(
        entry.id, task_name, task_options, options_to_dict(given[1]), shared.seed, shared.device, shared.dtype,
        shared.micro_batches, shared.checkpoint_every, None if shared.from_run is None else str(shared.from_run), shared.precision,
    )  # fmt: skip
    folder = runs.open_folder(shared.resume or shared.out, config, shared.overwrite, shared.resume is not None)
    command = " ".join(["limbeck", "distill", *arguments])
    with named_by(shared.resume or shared.config, stored is None or how.trust_code):
        task = build_task(config.task, config.task_options, device=config.device, dtype=config.dtype, quiet=how.quiet)
        done = runs.run(config, task, folder, shared.overwrite, shared.resume is not None, how=how, command=command)
    show(done.summary)
    print(f"\nreport: {folder / 'report.html'}")
    ratio = done.summary["student"]["frechet"] / done.summary["teacher"]["frechet"]
    if shared.fail_above is not None and not ratio <= shared.fail_above:
        print(
            f"limbeck: the student's Frechet distance is {ratio:.2f} times the teacher's, above {shared.fail_above:g}",
            file=sys.stderr,
        )
        return 1
    return 0


def _suited(method: str, task: str, defaults: Any, given: Any, rest: list[str]) -> Any:
    """The options with what the task prefers where the user said nothing."""
    from limbeck.tasks import preferred_options

    preferred = preferred_options(task).get(method, {})
    asked = {line.split(":")[0].split(".")[0] for line in changed(defaults, given)}
    return merged_options(given, {n: v for n, v in preferred.items() if n not in asked})


def _parse(program: str, arguments: list[str], shared: Shared, options: Any) -> tuple[Shared, Any, Any]:
    """The shared options, the method's own, and how to carry the run out, from the command line as flat flags."""
    import tyro

    from limbeck.runs import Execution

    flat = tyro.conf.arg(name="")
    both = make_dataclass(
        "Arguments",
        [
            ("shared", Annotated[Shared, flat], make_field(default=shared)),
            ("method", Annotated[type(options), flat], make_field(default=options)),
            ("how", Annotated[Execution, flat], make_field(default=Execution())),
        ],
    )
    parsed: Any = tyro.cli(both, prog=program, args=arguments)
    return parsed.shared, parsed.method, parsed.how


def value_of(arguments: list[str], flag: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise LimbeckError(f"{path} does not exist; give the config.yaml of a run")
    return path
