"""Every gate of IMDN's claim holds on good figures and fails on bad ones; a miniature; the held-out photo and the baselines."""

import pytest
import torch

from limbeck.claims.restoration import imdn
from limbeck.claims.restoration.imdn import CLAIM, Plain, judge, measure
from limbeck.tasks.photos_sr import enlarged, load_photos
from limbeck.tasks.picture_pairs import degraded_pairs

GOOD = {
    "bicubic psnr": 31.67, "bicubic ssim": 0.9439, "IMDN psnr": 32.5, "IMDN ssim": 0.9526, "IMDN parameters": 24987.0,
    "plain psnr": 32.8, "plain ssim": 0.9543, "plain parameters": 25886.0, "mean psnr": 32.45, "mean ssim": 0.952,
    "mean parameters": 24987.0, "shifted psnr": 28.7, "shifted ssim": 0.89, "shifted parameters": 24987.0,
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold_and_what_does_not_show_is_said():
    assert not lost()
    assert [c.statement for c in judge([GOOD]) if not c.gated and not c.holds] == [
        "IMDN over a plain residual network of its size, dB"
    ]


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("IMDN psnr", 32.1, "IMDN over bicubic on the held-out photo"),
        ("IMDN ssim", 0.946, "the same: SSIM"),
        ("shifted psnr", 30.9, "control: trained on pairs one pixel apart"),
        ("shifted psnr", 31.2, "control: IMDN over the same"),
        ("plain parameters", 26500.0, "the plain network's parameters"),
        ("plain parameters", 23500.0, "the plain network's parameters"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    failed = lost(**{figure: value})
    assert any(statement in s for s in failed), failed


def test_a_miniature_is_the_same_twice(monkeypatch):
    small = {name: p[:, :96, :96] for name, p in load_photos().items()}
    monkeypatch.setattr(imdn, "ITERATIONS", 2)
    monkeypatch.setattr(imdn, "load_photos", lambda: small)
    figures = measure(3)
    assert figures == measure(3) and figures["IMDN psnr"] < figures["bicubic psnr"]
    assert figures["IMDN parameters"] == 24987 and figures["plain parameters"] == 25886


def test_bicubic_of_the_held_out_photo():
    low, high = degraded_pairs([load_photos()["astronaut"]], 2).pair(0)
    figures = imdn.scores("bicubic", enlarged(low, 2), high)
    assert figures == pytest.approx({"bicubic psnr": 31.66971, "bicubic ssim": 0.943868}, abs=1e-5)


def test_the_plain_network_enlarges_by_two():
    with torch.no_grad():
        assert Plain().eval()(torch.rand(1, 3, 8, 6)).shape == (1, 3, 16, 12)


def test_the_calibration_is_recorded():
    assert "5 seeds" in CLAIM.calibration
