"""Taking a student home: as a stock diffusers pipeline, as adapters, as a torch.export or ONNX program, and onto the hub.

:func:`plan_export` finds the stock scheduler that repeats a student's steps and proves it by a rehearsal; what has none is refused
with the reason. The rest writes files. Nothing that is written needs limbeck to be used.
"""

from limbeck.interop.export.card import Facts, described, license_of, write_card
from limbeck.interop.export.folder import (
    check_target,
    pipeline_class,
    replaced,
    scheduler_config,
    write_pipeline,
    write_scheduler,
)
from limbeck.interop.export.hub import push
from limbeck.interop.export.lora import write_lora
from limbeck.interop.export.plans import plan_export
from limbeck.interop.export.programs import example_inputs, input_names, unrolled, write_onnx, write_program
from limbeck.interop.export.steps import Steps, steps_of
from limbeck.interop.export.stock import PIPELINES, Plan, Stock, stock_pipeline

__all__ = [
    "PIPELINES",
    "Facts",
    "Plan",
    "Steps",
    "Stock",
    "check_target",
    "described",
    "example_inputs",
    "input_names",
    "license_of",
    "pipeline_class",
    "plan_export",
    "push",
    "replaced",
    "scheduler_config",
    "steps_of",
    "stock_pipeline",
    "unrolled",
    "write_card",
    "write_lora",
    "write_onnx",
    "write_pipeline",
    "write_program",
    "write_scheduler",
]
