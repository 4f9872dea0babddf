"""Super-resolution as a task: its split, figures and pictures, and a run from the command line to the files it leaves."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.methods.restoration.imdn import IMDNOptions, IMDNTraining, new_student
from limbeck.metrics import luma_scores
from limbeck.networks.imdn import load_imdn, save_imdn
from limbeck.runs import open_run
from limbeck.tasks import AnyTask, build_task
from limbeck.tasks.folder import load_rgb
from limbeck.tasks.photos_sr import enlarged, hardest, load_photos, photos_sr

TINY = IMDNOptions(blocks=1, patch=8)


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of two sizes; the eighth by name is grey."""
    rng, place = np.random.default_rng(0), tmp_path / "pictures"
    place.mkdir()
    for i in range(10):
        shape = (48, 60) if i == 7 else (36 + 12 * (i % 2), 48, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{i}.png")
    return place


def test_the_photos_are_five_of_which_one_is_held_out():
    task = build_task("photos-sr")
    assert isinstance(task, AnyTask) and task.names == ("astronaut",) and task.source.size == 4
    for p in [*task.source.pictures, *task.held_out.pictures]:
        assert p.dtype == torch.uint8 and p.shape[1] % 12 == 0 == p.shape[2] % 12
    assert list(load_photos()) == ["china", "flower", "coffee", "chelsea", "astronaut"]
    assert task.held_out.pictures[0].shape == (3, 504, 504)


def test_every_eighth_picture_of_a_folder_is_held_out_or_another_folder(folder, tmp_path):
    task = photos_sr(folder)
    assert task.names == ("7.png",) and task.source.size == 9
    grey = task.held_out.pictures[0]
    assert grey.shape == (3, 48, 60) and torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], torch.from_numpy(np.asarray(Image.open(folder / "7.png")).copy()))
    both = photos_sr(folder, folder)
    assert both.source.size == 10 and len(both.names) == 10
    assert load_rgb(folder)["0.png"].shape == (3, 36, 48)
    with pytest.raises(LimbeckError, match="nowhere does not exist; give a folder"):
        photos_sr(tmp_path / "nowhere")
    one = tmp_path / "one"
    one.mkdir()
    (folder / "0.png").rename(one / "0.png")
    with pytest.raises(LimbeckError, match="one holds one picture: give more, or others to judge by .*--held-out-data"):
        photos_sr(one)
    (one / "0.png").write_bytes(b"no picture")
    with pytest.raises(LimbeckError, match="1 of 1 pictures cannot be read"):
        photos_sr(one, folder)


def test_figures_are_means_of_luma_scores_and_bicubic_is_what_it_is(folder):
    task = photos_sr(folder, folder)
    method = IMDNTraining.on(task, TINY, 0)
    pairs = task.held_out.pairs(2)
    scores = [luma_scores(method.restored(pairs.pair(i)[0]), pairs.pair(i)[1], 2) for i in range(10)]
    judged = task.judged(method)
    student = judged["table"]["rows"]["student"]
    assert student["psnr"] == pytest.approx(sum(float(p) for p, _ in scores) / 10)
    assert student["ssim"] == pytest.approx(sum(float(s) for _, s in scores) / 10)
    assert student["parameters"] == sum(p.numel() for p in method.student.parameters())
    assert task.watched(method)["psnr"] == pytest.approx(sum(float(p) for p, _ in scores[:4]) / 4)
    low, high = pairs.pair(0)
    error = (luma_scores(low, low, 2)[0], 255 * 10 ** (-luma_scores(enlarged(low, 2), high, 2)[0] / 20))
    assert float(error[0]) == float("inf") and 5 < float(error[1]) < 120
    assert "under bicubic" in judged["headline"] and judged["headline"].startswith("x2 of 10 pictures: ")


def test_the_album_shows_where_bicubic_is_most_wrong(folder):
    x = torch.zeros(1, 3, 200, 160)
    y = x.clone()
    y[..., 100:160, 60:120] += 0.5
    top, left, side = hardest(x, y, 96)
    assert side == 96 and top <= 100 and left <= 60 and top + 96 >= 160 and left + 96 >= 120
    assert hardest(x[..., :50, :40], y[..., :50, :40], 96) == (0, 0, 40)
    task = photos_sr(folder, folder)
    shown = task.album(IMDNTraining.on(task, TINY, 0))["comparison"]
    assert shown.images.shape == (12, 3, 120, 120) and shown.columns == 3
    low, high = task.held_out.pairs(2).pair(0)
    assert torch.equal(shown.images[0, :, :36, :36], 2 * enlarged(low, 2)[0][:, :36, :36] - 1)
    assert torch.equal(shown.images[2, :, :36, :36], 2 * high[0][:, :36, :36] - 1)


def test_three_begins_with_two(folder, tmp_path):
    two = new_student(TINY, 3)
    task = photos_sr(folder, begin_with=save_imdn(tmp_path / "two", two))
    three = IMDNTraining.on(task, IMDNOptions(blocks=1, scale=3, patch=9), 0).student
    assert torch.equal(three.c[0].weight, two.c[0].weight) and three.factor == 3


def test_a_run_from_the_command_line_leaves_a_student_pictures_and_a_report(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "one_thread", lambda: None)
    run = tmp_path / "run"
    short = ["--iterations", "3", "--blocks", "1", "--patch", "8", "--track", "none", "--quiet"]
    assert cli.main(["distill", "imdn", "--task", "photos-sr", "--data", str(folder), "--out", str(run), *short]) == 0
    assert "PSNR of luma" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert (
        set(summary["table"]["rows"]) == {"bicubic", "student"} and summary["pictures"][0]["title"] == "Bicubic, student, real"
    )
    done, task = open_run(run, quiet=True)
    low, _ = task.held_out.pairs(2).pair(0)
    restored = done.method.restored(low)
    with torch.no_grad():
        assert torch.equal(load_imdn(run / "student.safetensors", 2)(low).clamp(0, 1), restored)
    saved = torch.from_numpy(np.asarray(Image.open(run / "restored" / "7.png.png")).copy()).permute(2, 0, 1)
    assert torch.equal(saved, (255 * restored[0]).round().to(torch.uint8))
    assert (run / "samples" / "comparison.png").is_file() and "dB" in (run / "report.html").read_text()
    assert cli.main(["export", str(run), "--to", "pth", str(tmp_path / "student.pth")]) == 0
    with torch.no_grad():
        assert torch.equal(load_imdn(tmp_path / "student.pth")(low).clamp(0, 1), restored)


@pytest.mark.slow
def test_the_exported_program_takes_pictures_of_any_size(folder, tmp_path):
    method = IMDNTraining.on(photos_sr(folder), TINY, 0)
    photos_sr(folder).exports()["torch-export"](method, tmp_path / "student.pt2")
    program = torch.export.load(tmp_path / "student.pt2").module()
    for shape in ((1, 3, 9, 31), (3, 3, 20, 20)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(program(x).clamp(0, 1), method.restored(x))
