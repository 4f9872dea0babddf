"""Backtracking as a target of its own, the choice of nodes, and the path on disk: reused, checked, never silently wrong."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.methods.generators.backtracking import (
    Backtracking,
    Degradation,
    chosen_nodes,
    record_path,
    retarget,
    trained_weights,
)
from limbeck.noise import VE, spread
from limbeck.training.durable import write_known
from limbeck.training.sealed import seal

F64 = torch.float64
PATH = {"iterations": 12, "degrade": 4, "every": 1, "interval": 2}  # targets 3, 2, 1 for two iterations each, then the teacher


class Normal(nn.Module):
    """The exact denoiser of N(mean, std^2) in one dimension."""

    process, null = VE(), None

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.log_std = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (mean, math.log(std)))

    def forward(self, x_t, t, cond=None):
        variance = self.log_std.exp() ** 2
        return self.mean + spread(variance / (variance + t**2), x_t) * (x_t - self.mean)


def run(loop, steps):
    for _ in range(steps):
        loop.iterate()
    return loop


def same(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture
def recorded(tiny, tmp_path):
    folder = tmp_path / "path"
    return folder, run(tiny.loop(tiny.make("disback", record=str(folder), **PATH)), 5).method


def test_a_later_run_goes_on_from_a_recorded_path(recorded, tiny):
    folder, first = recorded
    assert sorted(p.name for p in folder.iterdir()) == ["index.json", *(f"node-00{i}.safetensors" for i in (1, 2, 3, 4))]
    second = tiny.make("disback", path=str(folder), **PATH)
    assert second.start == 0 and second.losses == first.losses
    assert same(trained_weights(second.host.critic), first.path.weights[-1])
    for i in (3, 2, 1):
        assert same(trained_weights(second.path.node(i)) | dict(second.path.node(i).state_dict()), first.path.weights[i - 1])
    loop = tiny.loop(second)
    assert "loss/student" in loop.iterate() and [second.target.index(s) for s in (0, 2, 4, 6, 9)] == [3, 2, 1, 0, 0]
    assert not [name for name in second.state() if name.startswith("node")]


def test_a_path_is_written_anew_by_its_own_run_alone(recorded, tiny):
    folder, first = recorded
    record_path(folder, first.path, first.losses, json.loads((folder / "index.json").read_text())["student"])
    with pytest.raises(LimbeckError, match="holds the path of another teacher or student; choose another folder"):
        record_path(folder, first.path, first.losses, "f" * 64)


def test_another_teachers_or_students_path(recorded, tiny):
    folder, _ = recorded
    with pytest.raises(LimbeckError, match=r"is the path of another teacher \(sha256 [0-9a-f]{12}"):
        tiny.make("disback", tiny.ingredients(tiny.teacher(seed=1)), path=str(folder), **PATH)
    with pytest.raises(LimbeckError, match=r"is the path of another student \(sha256"):
        tiny.make("disback", path=str(folder), sigmas=(1.5,), **PATH)


def resealed(folder, change):
    """The index with some facts changed, as whole as before."""
    index = json.loads((folder / "index.json").read_text())
    del index["sha256"]
    change(index)
    (folder / "index.json").write_bytes(seal(index))


def test_names_and_shapes_that_do_not_match(recorded, tiny):
    folder, _ = recorded
    file = folder / "node-002.safetensors"
    weights = load_file(file)
    for change, message in (
        (
            lambda w: w.update({"fake_unet.x": w.pop("network.input.bias")}),
            "missing network.input.bias; unexpected fake_unet.x",
        ),
        (
            lambda w: w.update({"network.input.bias": torch.zeros(3)}),
            r"network.input.bias has shape \(3,\), the teacher's copy \(8,\)",
        ),
    ):
        changed = dict(weights)
        change(changed)
        save_file(changed, file)
        facts = write_known(lambda path, data: [None for _ in data], file, [file.read_bytes()])
        resealed(folder, lambda index, facts=facts: index["nodes"].update({file.name: facts}))
        with pytest.raises(LimbeckError, match=message):
            tiny.make("disback", path=str(folder), **PATH)


def test_damaged_paths(recorded, tiny):
    folder, _ = recorded
    whole = (folder / "index.json").read_bytes()
    resealed(folder, lambda index: index.update(nodes={}))
    with pytest.raises(LimbeckError, match="the path in .* is empty"):
        tiny.make("disback", path=str(folder), **PATH)
    (folder / "index.json").write_bytes(whole.replace(b"from the", b"from thy"))
    with pytest.raises(LimbeckError, match="is damaged: index.json does not agree with its own sha256"):
        tiny.make("disback", path=str(folder), **PATH)
    (folder / "index.json").write_bytes(whole)
    (folder / "node-001.safetensors").write_bytes(b"no")
    with pytest.raises(LimbeckError, match="is damaged: node-001.safetensors has 2 bytes"):
        tiny.make("disback", path=str(folder), **PATH)
    with pytest.raises(LimbeckError, match="there is no path in .*nowhere: index.json is missing"):
        tiny.make("disback", path=str(folder / "nowhere"), **PATH)


# -- the provider -----------------------------------------------------------------------------------------------------


def test_backtracking_alone():
    teacher, copy = Normal(0.0, 1.0).requires_grad_(False).eval(), Normal(0.0, 1.0)
    weights = [{"mean": torch.tensor(float(i), dtype=F64), "log_std": torch.tensor(0.0, dtype=F64)} for i in (1, 2, 3)]
    path = Degradation(teacher, copy, weights)
    target = Backtracking(path, [4, 7])
    assert [float(target(s).mean) for s in (0, 3, 4, 6, 7, 100)] == [2, 2, 1, 1, 0, 0] and target(7) is teacher
    for order, message in (([], "the path is empty, not at"), ([2, 1], "the path ends at node 1, not at the teacher")):
        with pytest.raises(LimbeckError, match=message):
            Backtracking(path, [4], order)
    for switches in ([4], [7, 4], [4, 4]):
        with pytest.raises(LimbeckError, match=r"3 targets need 2 increasing steps to switch at, not \["):
            Backtracking(path, switches)
    with pytest.raises(LimbeckError, match="node 4 of the path is not there: 3 are recorded"):
        path.node(4)


@pytest.mark.parametrize("change", [lambda m: m.train(), lambda m: m.requires_grad_(True)])
def test_a_teacher_that_can_change(change):
    teacher = Normal(0.0, 1.0).requires_grad_(False).eval()
    with pytest.raises(LimbeckError, match="the path's teacher can change: call teacher.requires_grad_"):
        Degradation(change(teacher), Normal(0.0, 1.0))


def test_nodes_at_equal_drops_of_the_loss():
    losses = [10.0, 6.0, 4.0, 3.0, 2.4, 2.2, 2.1, 2.05, 2.02, 2.0]
    assert chosen_nodes(losses, 1, 5, "iteration") == [1, 3, 5, 7, 9]
    assert chosen_nodes(losses, 1, 4, "loss") == [2 - 1, 2, 3, 9]  # 8, 6 and 4 are reached at once: no node twice
    assert chosen_nodes(losses, 1, 10, "loss") == list(range(10))
    assert chosen_nodes(losses, 2, 1, "loss") == [4]
    assert chosen_nodes([1.0] * 6, 1, 3, "loss")[-1] == 5  # a loss that does not fall


def test_a_rule_without_a_target(tiny):
    method = tiny.make("dmd")
    method.rule = lambda sample, t, eps, step: None
    with pytest.raises(LimbeckError, match="the rule of DMD, a function, has no 'target'"):
        retarget(method, lambda step: None)
