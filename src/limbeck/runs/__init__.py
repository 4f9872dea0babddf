"""Runs: distil a task with a method in a folder that can be resumed, sampled, judged and reported.

A run's folder: config.yaml, metrics.jsonl, checkpoints/, samples/, student.safetensors + .json, summary.json, report.html.
"""

from limbeck.runs.config import FORMAT, Execution, RunConfig, check_place, parse_config, read_config
from limbeck.runs.distillation import Run, distill, distilling, open_run, prepare, run
from limbeck.runs.folder import begin, fresh_folder, open_folder, restore

__all__ = [
    "FORMAT",
    "Execution",
    "Run",
    "RunConfig",
    "begin",
    "check_place",
    "distill",
    "distilling",
    "fresh_folder",
    "open_folder",
    "open_run",
    "parse_config",
    "prepare",
    "read_config",
    "restore",
    "run",
]
