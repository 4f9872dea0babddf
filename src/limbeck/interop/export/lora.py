"""Low-rank adapters as diffusers loads them: pytorch_lora_weights.safetensors for ``pipe.load_lora_weights(DIR)``."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.interop.export.stock import Plan
from limbeck.networks.adapters import adapters

FILE = "pytorch_lora_weights.safetensors"


def lora_state(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The factors of the models' adapters under peft's names, COMPONENT.LAYER.lora_A.weight (r, ...) and lora_B.weight.

    alpha / r is folded into B, so that the scale of a loader that knows no alpha, 1, is the right one. Raises LimbeckError for
    a model without adapters.
    """
    state: dict[str, Tensor] = {}
    for component, model in models.items():
        found = dict(adapters(model))
        if not found:
            raise LimbeckError(
                f"the student's {component} has no adapters (it was trained whole); train with student_rank >= 1, or export it with "
                "`--to diffusers`"
            )
        for layer, factors in found.items():
            state[f"{component}.{layer}.lora_A.weight"] = factors.A.detach().contiguous()
            state[f"{component}.{layer}.lora_B.weight"] = (factors.scale * factors.B.detach()).contiguous()
    return state


def write_lora(folder: Path, plan: Plan, models: Mapping[str, nn.Module]) -> Path:
    """Write the adapters into FOLDER; returns the file. Raises LimbeckError where the pipeline loads none."""
    from safetensors.torch import save_file

    if not plan.pipeline.lora:
        raise LimbeckError(f"a {plan.pipeline.name} has no load_lora_weights; export the merged student with `--to diffusers`")
    if len(models) > 1:
        raise LimbeckError(
            f"the adapters belong to {len(models)} networks ({', '.join(models)}), and a file of adapters to one; export the merged "
            "student with `--to diffusers`"
        )
    save_file(lora_state(models), folder / FILE, {"format": "pt"})
    return folder / FILE
