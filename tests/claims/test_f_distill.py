"""Every gate of f-distill's claim holds on good figures and fails on bad ones; its exact parts are exact."""

import pytest
import torch

from limbeck.claims.generators.f_distill import CLAIM, RARE, WEIGHTS, Rigid, judge
