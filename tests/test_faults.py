"""A small fault drill: runs that are killed, damaged, refused and poisoned end as if nothing had happened (drill.py)."""

import os
import shutil

import pytest
import torch
import yaml

from limbeck.errors import LimbeckError
from limbeck.methods import METHODS
from limbeck.runs import distill
from limbeck.training import Loop, NonFiniteError, checkpoints
from limbeck.training.diagnostics import Watch
from limbeck.training.durable import assembled, put_in_place

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the drill forks its runs")
DISTILLING = [entry.id for entry in METHODS.values() if entry.distils and entry.wing == "generators"]


@pytest.fixture(scope="module")
def drilling(tiny_task, tmp_path_factory):
    """(drill, drill_faults, a place with the run that preferences begin with)."""
    import drill
    import drill_faults

    place = tmp_path_factory.mktemp("drill")
    drill.base(place)
    return drill, drill_faults, place


def test_three_kills_damage_and_poison(drilling, monkeypatch):
    drill, faults, place = drilling
    monkeypatch.setattr(drill, "ITERATIONS", 8)
    done = drill.drill_kills("sid", place, kills=3, seed=0, timed=False)
    assert done.kills == done.inside == 3 and done.resumes >= 2 and done.wrong == []
    assert faults.drill_damage(place / "sid-whole", tries=20, seed=0) == []
    said, wrong = faults.drill_poison("sid", place, "critic", step=5)
    assert wrong == [] and "NonFiniteError: " in said and "is nan at step 5. The last checkpoint is intact" in said


@pytest.mark.slow
def test_a_refusing_disk_damage_and_other_formats(drilling):
    drill, faults, place = drilling
    expected, _, _ = drill.whole("dmd", place / "dmd-whole")
    assert faults.drill_disk("dmd", place, expected) == []
    assert faults.drill_damaged_resume("dmd", place / "dmd-whole", expected, seed=0) == []
    assert faults.drill_formats("dmd", place / "dmd-whole", expected) == []


def test_the_drill_notices_a_difference(drilling, monkeypatch):
    drill, _, place = drilling
    monkeypatch.setattr(drill, "ITERATIONS", 6)
    drill.in_child(lambda: drill.train("sid", place / "one"))
    drill.in_child(lambda: drill.train("sid", place / "two", alpha=1.0))
    one, two = drill.outcome(place / "one"), drill.outcome(place / "two")
    assert drill.differences(one, one) == []
    assert {"metrics.jsonl", "student.safetensors"} < set(drill.differences(one, two))
    assert any(name.startswith("last student.optimizer.") for name in drill.differences(one, two))
    (place / "two" / "litter").write_text("")
    assert "files litter" in drill.differences(one, drill.outcome(place / "two"))


@pytest.mark.slow
@pytest.mark.parametrize("method", DISTILLING)
def test_every_method_survives(method, drilling):
    drill, faults, place = drilling
    place = place / "every"  # runs of other tests here have other lengths
    place.mkdir(exist_ok=True)
    if method == "pso" and not (place / "base").exists():
        drill.base(place)  # the run that it begins with
    done = drill.drill_kills(method, place, kills=6, seed=1)
    assert done.kills == 6 and done.wrong == []
    for role in faults.roles_of(method, place):
        assert faults.drill_poison(method, place, role)[1] == []


def small(out, **more):
    return distill(method="sid", task="tiny", out=out, options={"iterations": 3, "batch": 8}, quiet=True, **more)


def test_a_run_killed_in_its_first_checkpoint_begins_again(tiny_task, tmp_path):
    whole = small(tmp_path / "whole")
    folder = tmp_path / "run"
    (folder / "checkpoints" / ".partial-step-00000000").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("")
    (folder / "config.yaml").write_bytes((whole.path / "config.yaml").read_bytes())
    small(folder, resume=True)
    assert (folder / "student.safetensors").read_bytes() == (whole.path / "student.safetensors").read_bytes()
    assert not list((folder / "checkpoints").glob(".partial-*"))


def test_a_folder_with_nothing_but_a_half_written_config_is_free(tiny_task, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".partial-config.yaml").write_text("method: s")
    assert small(tmp_path / "run").config.method == "sid"
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["method"] == "sid"
    assert not (tmp_path / "run" / ".partial-config.yaml").exists()


def test_the_best_step_survives_a_kill_before_best_json(tiny_task, tmp_path):
    run = small(tmp_path / "run")
    best = (run.path / "checkpoints" / "best.json").read_bytes()
    step = checkpoints.load(run.path / "checkpoints", "best").step
    for stale in (True, False):  # it says something older, or was never written
        folder = shutil.copytree(run.path, tmp_path / f"killed-{stale}")
        checkpoints.rewind(folder / "checkpoints", step)  # the last checkpoint is the best, as when it was just written
        checkpoints.mark_best(folder / "checkpoints", 0)
        if not stale:
            (folder / "checkpoints" / "best.json").unlink()
        small(folder, resume=True)
        assert (folder / "checkpoints" / "best.json").read_bytes() == best


def test_alarms_go_on_where_they_were():
    whole, first, second = Watch(), Watch(), Watch()
    figures = [{"critic_lag": 0.9, "drift": float("nan"), "ties": 0.95 if n > 40 else 0.0} for n in range(300)]
    said = [message for n, f in enumerate(figures) for message in whole(n, f)]
    cut = [message for n, f in enumerate(figures[:60]) for message in first(n, f)]
    second.load_state(first.state())
    cut += [message for n, f in enumerate(figures[60:], 60) for message in second(n, f)]
    assert cut == said and len(said) == 2


def test_messages_are_in_the_summary_of_a_resumed_run(tiny_task, tmp_path, monkeypatch):
    monkeypatch.setattr(Watch, "__call__", lambda self, step, figures: [f"alarm of {step}"])
    whole = small(tmp_path / "run")
    assert small(tmp_path / "run", resume=True).summary["messages"] == whole.summary["messages"] == [
        "alarm of 1", "alarm of 2", "alarm of 3",
    ]  # fmt: skip


def test_a_student_whose_images_are_not_finite_is_not_the_best(tiny_task, tmp_path, monkeypatch):
    from limbeck.tasks import Evaluator

    judge = Evaluator.judge
    monkeypatch.setattr(Evaluator, "judge", lambda self, x, cond=None: {**judge(self, x, cond), "frechet": float("nan")})
    run = small(tmp_path / "run")
    assert run.summary["iterations"] == 3 and not (run.path / "checkpoints" / "best.json").exists()


def test_a_reward_that_is_not_finite_names_its_step(drilling, tmp_path):
    drill, _, place = drilling
    iterate = Loop.iterate

    def poisoned(loop):
        if loop.step == 2:
            drill.poisoned.update(("reward", "iterating"))
        return iterate(loop)

    options = {"iterations": 4, "batch": 8, "reward": "drill:reward", "sigmas": (5.0, 2.0, 1.0)}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "iterate", poisoned)
            with pytest.raises(NonFiniteError, match=r"the value of 'drill:reward' .* of the role 'reward' is nan at step 2"):
                distill(method="pso", task="tiny", out=tmp_path / "run", options=options, from_run=place / "base", quiet=True)
    finally:
        drill.poisoned.clear()


def test_a_checkpoint_of_something_else_is_refused(tiny_task, tmp_path):
    run = small(tmp_path / "run")
    good = checkpoints.load(run.path / "checkpoints")
    for tensors, meta in (
        ({**good.tensors, "student": {"odd": torch.zeros(1)}}, good.meta),
        ({**good.tensors, "rng": {}}, good.meta),
        ({n: t for n, t in good.tensors.items() if n != "method"}, good.meta),
        (good.tensors, {**good.meta, "seconds": "long"}),
        (good.tensors, {**good.meta, "history": [3]}),
        (good.tensors, {n: v for n, v in good.meta.items() if n != "best"}),
    ):
        checkpoints.save(run.path / "checkpoints", 3, tensors, meta)
        with pytest.raises(LimbeckError, match=r"does not fit|random states lack"):
            small(run.path, resume=True)


def test_a_file_is_replaced_in_one_step_and_a_link_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "file").symlink_to(tmp_path / "outside")
    put_in_place(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new" and (tmp_path / "outside").read_text() == "mine"
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("refused")))
    with pytest.raises(OSError, match="refused"):
        put_in_place(tmp_path / "file", "newer")
    assert (tmp_path / "file").read_text() == "new" and not list(tmp_path.glob(".partial-*"))


def test_files_are_assembled_beside_and_moved_together(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ValueError, match="half"), assembled(tmp_path) as folder:
        (folder / "a").write_text("new")
        raise ValueError("half")
    assert (tmp_path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]
    with assembled(tmp_path) as folder:
        (folder / "sub").mkdir()
        (folder / "a").write_text("new")
        (folder / "sub" / "b").write_text("b")
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "sub" / "b").read_text() == "b"
