"""The head in splats: what cameras, prompts and judges are, and what a run leaves behind."""

import json

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.methods.scenes.options import SceneOptions
from limbeck.methods.scenes.prolificdreamer import ProlificDreamer
from limbeck.scenes import NUMBERS, angles, load_splats
from limbeck.tasks import AnyTask, build_task
from limbeck.tasks.scenes.head import head_task
from limbeck.training import Loop, LoopOptions

SMALL = {"views": 12, "size": 12, "splats": 30}


@pytest.fixture(scope="module")
def task():
    return head_task(heads=2, **SMALL)


@pytest.fixture(scope="module")
def method(task):
    made = ProlificDreamer(task, SceneOptions(iterations=4, batch=4, particles=2))
    Loop(made, task.source, LoopOptions(4, 4), quiet=True).train()
    return made


def test_it_is_a_task_of_its_wing(task):
    assert isinstance(task, AnyTask) and build_task("head", SMALL).heads == (0,)


def test_cameras_are_the_librarys_own(task):
    u = torch.rand(50, NUMBERS, generator=torch.Generator().manual_seed(0))
    found = task.cameras(u, 0).c2w
    known = task.library.cameras.c2w
    assert len(known) == 36 and (found[:, None] == known).all(-1).all(-1).any(1).all()


def test_a_prompt_leaves_the_views_near_the_camera_of_all_heads(task):
    cameras = task.library.cameras[[0, 13]]
    left = task.goal(cameras)["prior"].exp().unflatten(1, (2, 36))
    for row, at in zip(left, (0, 13), strict=True):
        azimuth, elevation, _ = angles(task.library.cameras.position)
        near = ((azimuth - azimuth[at] + 180) % 360 - 180).abs() < 26
        assert torch.equal(row[0] > 0, near & ((elevation - elevation[at]).abs() < 1)) and torch.equal(row[0], row[1])
        assert float(row.sum()) == pytest.approx(1)


def test_judges_stand_between_the_cameras_of_the_library(task):
    azimuth, elevation, _ = angles(task.held_out.position)
    assert len(azimuth) == 12
    assert float(((azimuth[:, None] - task.library.azimuth + 180) % 360 - 180).abs().min()) > 10
    assert float((elevation[:, None] - task.library.elevation).abs().min()) > 10


def test_the_true_heads_are_perfect(task):
    for head in (0, 1):
        images = task.truth(head, task.held_out)
        assert task.reached(images) == head
        figures = task.figures(images + 1e-3, task.truth(head, task.ring))
        assert figures["psnr"] == pytest.approx(66.02, abs=0.01) and figures["views"] == 12
        assert figures["saturation"] == pytest.approx(1, abs=0.01) and figures["front"] == pytest.approx(3 / 12)


def test_a_run_leaves_what_one_takes_home(task, method, tmp_path):
    task.leave(tmp_path, method, {})
    first, second = (load_splats(tmp_path / f"scene{tail}.ply") for tail in ("", "_1"))
    assert torch.equal(first.means, method.particles.scenes[0].means) and not torch.equal(first.means, second.means)
    seen = json.loads((tmp_path / "scene.json").read_text())
    assert seen["elevation"] == pytest.approx(15, abs=1e-3) and seen["distance"] == pytest.approx(1.75, abs=1e-4)
    assert seen["background"] == [1.0, 1.0, 1.0] and set(seen) == {"elevation", "distance", "fovy", "background"}
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {f"{n}{t}" for n in ("turntable", "turntable_1") for t in [".gif"]} | {
        "strip.png", "strip_1.png",
    }  # fmt: skip
    task.exports()["ply"](method, tmp_path / "own.ply")
    assert (tmp_path / "own.ply").read_bytes() == (tmp_path / "scene.ply").read_bytes()


def test_it_is_judged_beside_the_nearest_picture(task, method):
    rows = task.judged(method)["table"]["rows"]
    assert list(rows) == ["nearest picture of the teacher", "student"]
    assert rows["student"]["psnr"] < rows["nearest picture of the teacher"]["psnr"]
    watched = task.watched(method)
    assert watched["psnr"] == pytest.approx(-20 * torch.tensor(watched["error"] / 2).log10().item())
    album = task.album(method)
    assert list(album) == ["scene_0", "scene_1"] and album["scene_0"].images.shape == (16, 3, 12, 12)


def test_no_head_is_refused():
    with pytest.raises(LimbeckError, match="heads=0: the prompt names at least 1"):
        head_task(heads=0)


def test_a_prompt_without_the_view_leaves_all_of_them_and_its_bias():
    task = head_task(front_share=0.5, **SMALL)
    at = task.library.cameras[[0, 13]]
    left = task.goal(at)["prior"].exp()
    front = task.library.front()
    assert 0 < int(front.sum()) < 18 and bool((left > 0).all())
    for row in left:  # whatever the camera
        assert float(row[front].sum()) == pytest.approx(0.5) and float(row.sum()) == pytest.approx(1)
    told = head_task(**SMALL).goal(at)["prior"].exp()
    assert int((told[0] > 0).sum()) < 12
