"""Runs: distil a task with a method in a folder that can be resumed, sampled, judged and reported.

A run's folder: config.yaml, metrics.jsonl, checkpoints/, samples/, student.safetensors + .json, summary.json, report.html.
"""

from limbeck.runs.calling import distill
from limbeck.runs.config import FORMAT, Execution, RunConfig, check_place, parse_config, read_config
from limbeck.runs.distillation import Run, begun, distilling, loop_options, open_run, prepare, run
from limbeck.runs.folder import begin, fresh_folder, open_folder, restore
from limbeck.runs.plan import Plan, plan_run
from limbeck.runs.saving import Choice, Saving, enough, savings

__all__ = [
    "FORMAT",
    "Choice",
    "Execution",
    "Plan",
    "Run",
    "RunConfig",
    "Saving",
    "begin",
    "begun",
    "check_place",
    "distill",
    "distilling",
    "enough",
    "fresh_folder",
    "loop_options",
    "open_folder",
    "open_run",
    "parse_config",
    "plan_run",
    "prepare",
    "read_config",
    "restore",
    "run",
    "savings",
]
