"""One torch thread, and with LIMBECK_TYPECHECK=1 (set by `make test`) annotations checked at every call."""

import multiprocessing
import os
import pickle
import socket
import sys
import traceback
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


def _rank(function, environment, pipe):
    os.environ.update(environment)
    try:
        answer = (True, function())
    except BaseException as error:
        answer = (False, "".join(traceback.format_exception(error)))
    pipe.send_bytes(pickle.dumps(answer))
    pipe.close()
    os._exit(0)


@pytest.fixture(scope="session")
def ranks():
    """ranks(size, function): what the function returns in each of ``size`` processes that find themselves as torchrun's do.

    ``may_die``: None stands for a process that ended without an answer.
    """
    import torch.distributed.fsdp  # noqa: F401

    import limbeck.training.ranks  # noqa: F401  (imported once, here, and not in every process)

    def run(size, function, seconds=120, may_die=False):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context, readers, workers = multiprocessing.get_context("fork"), [], []  # forked: torch is there at once
        for rank in range(size):
            reader, writer = context.Pipe(duplex=False)
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            environment = dict(zip(names, map(str, (rank, rank, size, "127.0.0.1", port)), strict=True))
            workers.append(context.Process(target=_rank, args=(function, environment, writer)))
            workers[-1].start()
            writer.close()
            readers.append(reader)
        answers = []
        try:
            for reader in readers:
                try:
                    answers.append(pickle.loads(reader.recv_bytes()) if reader.poll(seconds) else (False, "no answer"))
                except EOFError:
                    answers.append((may_die, None))
        finally:
            for worker in workers:
                worker.join(5)
                worker.kill()
        if failed := [f"rank {i}: {text}" for i, (good, text) in enumerate(answers) if not good]:
            raise AssertionError("\n".join(failed))
        return [answer for _, answer in answers]

    return run


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
