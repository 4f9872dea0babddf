import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.training.checkpoints import CheckpointError, load, rewind, save


def test_layout_and_round_trip(run, tmp_path):
    path = save(tmp_path / "runs" / "a", 900, run.state(900), run.meta(900))
    assert path == tmp_path / "runs" / "a" / "step-00000900"
    assert run.names(path) == ["checkpoint.json", "student.optimizer.safetensors", "student.safetensors"]
    assert run.names(path.parent) == ["step-00000900"]
    checkpoint = load(path.parent)
    assert run.is_step(checkpoint, 900)
    assert (checkpoint.path, checkpoint.skipped) == (path, [])
    assert torch.equal(load_file(path / "student.safetensors")["net.weight"], run.state(900)["student"]["net.weight"])


def test_tied_and_strided_tensors_of_a_module(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    net[1].weight = net[0].weight
    net.to(memory_format=torch.channels_last)
    path = save(tmp_path, 1, {"net": net.state_dict(), "none": {}}, {})
    assert "1.weight" not in load_file(path / "net.safetensors")
    tensors = load(tmp_path).tensors
    back = tensors["net"]
    assert back["0.weight"] is back["1.weight"]
    assert tensors["none"] == {}
    assert back.keys() == net.state_dict().keys()
    assert all(torch.equal(back[name], t) for name, t in net.state_dict().items())
    net.load_state_dict(back)


def test_loaded_tensors_are_free_of_their_files(run, tmp_path):
    run.saved(tmp_path, 1)
    tensors = load(tmp_path).tensors["student"]
    tensors["net.weight"].zero_()
    assert run.is_step(load(tmp_path), 1)
    shutil.rmtree(tmp_path / "step-00000001")
    assert torch.equal(tensors["net.bias"], run.state(1)["student"]["net.bias"])


def test_no_pickle(run, tmp_path):
    path = save(tmp_path, 1, run.state(1), run.meta(1))
    for file in path.iterdir():
        assert file.read_bytes()[8:9] == b"{" or file.read_bytes()[:1] == b"{"


def test_old_checkpoints_go_and_the_best_stays(run, tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, run.state(step), run.meta(step), keep=2, best=step == 2)
    assert run.names(tmp_path) == ["best.json", *(f"step-0000000{n}" for n in (2, 4, 5))]
    assert run.is_step(load(tmp_path, "best"), 2)
    assert run.is_step(load(tmp_path, 4), 4)
    save(tmp_path, 6, run.state(6), run.meta(6), keep=1, best=True)
    assert run.names(tmp_path) == ["best.json", "step-00000006"]
    assert run.is_step(load(tmp_path, "best"), 6)


def test_steps_beyond_the_padding_are_ordered_as_numbers(run, tmp_path):
    run.saved(tmp_path, 99_999_999, 100_000_000)
    assert load(tmp_path).step == 100_000_000


def test_a_step_may_be_saved_again(run, tmp_path):
    run.saved(tmp_path, 1, 2)
    save(tmp_path, 2, run.state(7), run.meta(7))
    assert run.names(tmp_path) == ["step-00000001", "step-00000002"]
    assert load(tmp_path).meta == run.meta(7)


def test_rewinding_removes_the_abandoned_future(run, tmp_path):
    run.saved(tmp_path, 1, 2, 3, 4, best=True)
    assert rewind(tmp_path, 4) == []
    assert load(tmp_path, "best").step == 4
    assert rewind(tmp_path, 2) == [3, 4]
    assert run.names(tmp_path) == ["step-00000001", "step-00000002"]
    with pytest.raises(CheckpointError, match="was marked as best"):
        load(tmp_path, "best")


def test_an_earlier_step_is_not_pruned_by_later_ones(run, tmp_path):
    run.saved(tmp_path, 8, 9)
    save(tmp_path, 3, run.state(3), run.meta(3), keep=1)
    assert run.names(tmp_path) == [f"step-0000000{n}" for n in (3, 8, 9)]


@pytest.mark.parametrize("group", ["../x", "/x", "..", ".", "", "a/b", "a\\b", ".hidden", "a b", "ä", "x\n"])
def test_groups_cannot_escape_the_folder(tmp_path, group):
    with pytest.raises(CheckpointError, match="cannot name a file"):
        save(tmp_path / "run", 1, {group: {}}, {})
    assert list(tmp_path.iterdir()) == []


def test_other_entries_of_the_folder_are_left_alone(run, tmp_path):
    for name in ("step-12", "step-0000000x", "notes.txt", "step-00000001-copy"):
        (tmp_path / name).mkdir()
    run.saved(tmp_path, 1)
    save(tmp_path, 2, run.state(2), run.meta(2), keep=1)
    assert len(run.names(tmp_path)) == 5
    assert run.is_step(load(tmp_path), 2)


def test_checkpoints_that_are_not_there_are_named(run, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoints in"):
        load(tmp_path / "nowhere")
    run.saved(tmp_path, 3, 6)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 4 .* there are 3, 6"):
        load(tmp_path, 4)
    with pytest.raises(CheckpointError, match="marked as best"):
        load(tmp_path, "best")
    with pytest.raises(LimbeckError, match="'lats': did you mean 'last'"):
        load(tmp_path, "lats")


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"step": -1}, "step -1"),
        ({"keep": 0}, "keep=0"),
        ({"meta": {"lr": float("nan")}}, "step 1: meta.lr is nan"),
        ({"tensors": {"net": {"w": torch.empty(2, device="meta")}}}, "step 1: 'w' is no plain dense tensor"),
    ],
)
def test_impossible_requests_are_named_and_leave_nothing(run, tmp_path, request_, why):
    run.saved(tmp_path, 0)
    with pytest.raises(CheckpointError, match=why):
        save(**{"folder": tmp_path, "step": 1, "tensors": run.state(1), "meta": {}} | request_)
    assert run.names(tmp_path) == ["step-00000000"]
