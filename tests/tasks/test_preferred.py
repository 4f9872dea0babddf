"""Every option that a task prefers is one that the method has."""

import pytest

from limbeck.methods import find
from limbeck.tasks import TASKS, preferred_options
from limbeck.training.options import merged_options


@pytest.mark.parametrize("task", TASKS)
def test_preferred_options_fit_their_methods(task):
    for name, options in preferred_options(task).items():
        _, _, presets = find(name).load()
        merged = merged_options(presets["recommended"], options)
        assert all(getattr(merged, key) != getattr(presets["recommended"], key) for key in options), name
