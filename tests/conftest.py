"""One torch thread, and with LIMBECK_TYPECHECK=1 (set by `make test`) annotations checked at every call."""

import os
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
os.environ["LIMBECK_TRACK"] = "none"  # importing TensorBoard takes half a second, in every process that trains
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

if os.environ.get("LIMBECK_TYPECHECK") == "1":
    import jaxtyping
    from beartype import BeartypeConf, beartype

    checker = types.ModuleType("limbeck_typechecker")
    checker.checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for mypy
    sys.modules["limbeck_typechecker"] = checker
    jaxtyping.install_import_hook("limbeck", "limbeck_typechecker.checked")  # acts on imports that come after it


@pytest.fixture(scope="session")
def tiny_task():
    """The name of a task that costs nothing (tests/tiny_task.py), known to `limbeck.tasks` while tests run that ask for it."""
    from limbeck.tasks import TASKS

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        patch.setitem(TASKS, "tiny", "tiny_task:tiny")
        yield "tiny"


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    """A function: the name of a tiny pipeline of tests/interop/tiny_pipelines.py -> its folder, written once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        from interop.tiny_pipelines import saved

        if name not in made:
            made[name] = saved(name, tmp_path_factory.mktemp(name))
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield folder
