"""TensorBoard as it is, Weights & Biases and trackio as modules that write down how they are called."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.runs import Execution
from limbeck.training import Loop, LoopOptions, Method, OptimizerOptions, Role, TensorSource, Tracker, Update
from limbeck.training.trackers import check_trackers


@pytest.fixture
def nothing_chosen(monkeypatch):
    monkeypatch.delenv("LIMBECK_TRACK")


class Service:
    """What wandb.init returns, and trackio itself: every call, and an error on demand."""

    def __init__(self):
        self.calls, self.error = [], None

    def init(self, **options):
        if self.error is not None:
            raise self.error
        self.calls.append(("init", options))
        return self

    def log(self, figures, step=None):
        self.calls.append(("log", step, dict(figures)))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def service(monkeypatch, request):
    name, made = request.param, Service()
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.init, module.log, module.finish = made.init, made.log, made.finish
    monkeypatch.setitem(sys.modules, name, module)
    made.name = name
    return made


both = pytest.mark.parametrize("service", ["wandb", "trackio"], indirect=True)


@both
def test_a_run_is_tracked_and_goes_on_as_the_same_run(tmp_path, service):
    folder = tmp_path / "runs" / "dmd-1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("method: dmd\nseed: 3\n")
    with Tracker(folder, (service.name,)) as track:
        track.log(1, {"loss": 0.5})
    with Tracker(folder, (service.name,), resume_from=1) as track:
        track.log(2, {"loss": torch.tensor(0.25)})
    first, again = (call[1] for call in service.calls if call[0] == "init")
    assert first == again and first["config"] == {"method": "dmd", "seed": 3} and first["project"] == "limbeck"
    assert first["resume"] == "allow"
    kept = (folder / f"{service.name}-id").read_text().strip()
    assert len(kept) == 8
    if service.name == "wandb":
        assert (first["name"], first["id"], first["dir"]) == ("dmd-1", kept, str(folder))
    else:
        assert first["name"] == f"dmd-1-{kept}"
    assert [c for c in service.calls if c[0] != "init"] == [
        ("log", 1, {"loss": 0.5}), ("finish",), ("log", 2, {"loss": 0.25}), ("finish",)
    ]  # fmt: skip
    other = tmp_path / "other" / "dmd-1"
    Tracker(other, (service.name,)).close()
    assert (other / f"{service.name}-id").read_text() != kept + "\n"


@both
def test_a_service_that_does_not_start_is_named(tmp_path, service):
    service.error = RuntimeError("api_key not configured")
    with pytest.raises(
        LimbeckError, match=rf"{service.name} did not start \(RuntimeError: api_key not configured\);.* track wit"
    ):
        Tracker(tmp_path, (service.name,))


@both
def test_the_loop_tracks_and_finishes(tmp_path, service):
    class Fit(Method):
        def __init__(self):
            self.roles = {"student": Role(torch.nn.Linear(1, 1), OptimizerOptions())}

        def step(self, batch):
            yield Update("student", self.roles["student"].module(batch.noise.normal("x", (1,))).square().mean())

    source = TensorSource(torch.ones(4, 1))
    Loop(Fit(), source, LoopOptions(2, 4, log_every=1), folder=tmp_path, track=(service.name,), quiet=True).train()
    assert [call[:2] for call in service.calls[1:]] == [("log", 1), ("log", 2), ("finish",)]


def test_the_project_of_the_environment_is_kept(tmp_path, monkeypatch):
    module, made = ModuleType("wandb"), Service()
    module.__spec__, module.init = ModuleSpec("wandb", None), made.init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    Tracker(tmp_path, ("wandb",)).close()
    assert made.calls[0][1]["project"] == "mine"


def test_names(monkeypatch):
    monkeypatch.setattr("limbeck.training.trackers.find_spec", lambda name: None if name == "wandb" else object())
    assert check_trackers(("none",)) == check_trackers(()) == check_trackers(None) == ()  # the tests' own environment
    monkeypatch.setenv("LIMBECK_TRACK", "trackio,tensorboard")
    assert check_trackers(None) == ("trackio", "tensorboard")
    assert check_trackers(("tensorboard", "none", "tensorboard")) == ("tensorboard",)
    monkeypatch.delenv("LIMBECK_TRACK")
    assert check_trackers(None) == ("tensorboard",)
    with pytest.raises(LimbeckError, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"):
        check_trackers(("tensorbord",))
    with pytest.raises(LimbeckError, match="wandb is not installed: pip install wandb; or track without it"):
        check_trackers(("wandb",))
    with pytest.raises(LimbeckError, match="wandb is not installed"):
        Execution(track=("wandb",))


def test_tensorboard_gets_every_figure_by_default(tmp_path, nothing_chosen):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Tracker(tmp_path, ("tensorboard",)) as track:
        for step in (1, 2, 3):
            track.log(step, {"loss": step / 4})
    with Tracker(tmp_path, resume_from=1) as track:  # TensorBoard is installed, so it is used
        track.log(2, {"loss": 9.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.25), (2, 9.0)]


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch, nothing_chosen):
    monkeypatch.setattr("limbeck.training.trackers.find_spec", lambda name: None)
    with pytest.raises(LimbeckError, match=r"limbeck\[track\]"):
        Tracker(tmp_path / "a", ("tensorboard",))
    assert not (tmp_path / "a").exists()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it would fail
    with Tracker(tmp_path / "b") as track:
        track.log(1, {"loss": 1.0})
    assert not (tmp_path / "b" / "tensorboard").exists()
