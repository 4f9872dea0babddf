"""Hyper-SD: trajectory segmented consistency distillation in stages, reward tuning, score distillation of one step."""

from limbeck.methods.generators.hyper_sd.method import HyperSD
from limbeck.methods.generators.hyper_sd.options import PRESETS, HyperSDOptions, Stage

METHOD, OPTIONS = HyperSD, HyperSDOptions
__all__ = ["PRESETS", "HyperSD", "HyperSDOptions", "Stage"]
