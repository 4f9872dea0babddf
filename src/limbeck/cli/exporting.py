"""limbeck export: a run's student as a diffusers pipeline, as adapters, or as a program."""

import json
from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import LimbeckError


@dataclass(frozen=True)
class ExportArguments:
    """Take a run's student home."""

    to: tuple[str, Path]
    """FORM PLACE: diffusers DIR, lora DIR, torch-export FILE.pt2, onnx FILE.onnx."""
    overwrite: bool = False
    """Replace PLACE if it was exported before."""
    dtype: str | None = None
    """float32, float16 or bfloat16: of the network's weights (default: as trained)."""
    license: str | None = None
    """For the model card (default: that of the teacher's card)."""
    push_to_hub: str | None = None
    """USER/NAME: upload it to the Hugging Face hub, with the token of HF_TOKEN or of a login."""
    public: bool = False
    """Let everybody see a new repository there (default: private)."""
    trust_code: bool = False
    """Import the code (MODULE:NAME, .pt2) that the run's config.yaml names."""


def export(arguments: list[str]) -> int:
    """limbeck export RUN --to FORM PLACE [--overwrite] [--dtype D] [--license L] [--push-to-hub USER/NAME] [--public] | --table"""
    import tyro

    from limbeck.runs.export_table import markdown
    from limbeck.runs.exporting import export_run

    if arguments == ["--table"]:
        print(markdown())
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise LimbeckError("limbeck export needs the folder of a run first, e.g. runs/demo (or --table alone: what goes where)")
    if "--to" not in arguments[1:]:
        raise LimbeckError(
            "limbeck export needs --to FORM PLACE: diffusers DIR, lora DIR, torch-export FILE.pt2 or onnx FILE.onnx"
        )
    given = tyro.cli(ExportArguments, prog="limbeck export RUN", args=arguments[1:])
    done = export_run(
        arguments[0], given.to[0], given.to[1], overwrite=given.overwrite, dtype=given.dtype, license=given.license,
        push_to_hub=given.push_to_hub, private=not given.public, trust_code=given.trust_code,
    )  # fmt: skip
    print(done.path)
    if done.call:
        print("pipe(" + ", ".join(f"{name}={json.dumps(value)}" for name, value in done.call.items()) + ")")
    if done.address:
        print(done.address)
    return 0
