"""The viewer in use, in a browser without a window: keys, mouse, touch, motion, themes, paper, and what it does when it cannot."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from limbeck.report import write_report
from limbeck.scenes import Viewpoint, render, save_gif, save_scene, splats_from_points, turntable

FIRST = "limbeckViewers[0]"
PLACE = "document.querySelector('canvas').getBoundingClientRect()"
CENTRE = "document.querySelector('canvas').scrollIntoView({block: 'center'})"
START = {"azimuth": 0, "elevation": 15, "distance": 2.5}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that has a scene and a turntable, and hardly anything else."""
    folder = tmp_path_factory.mktemp("run")
    draw = torch.Generator().manual_seed(0)
    splats = splats_from_points(torch.randn(40, 3, generator=draw) / 3, torch.rand(40, 3, generator=draw), opacity=0.8)
    (folder / "summary.json").write_text("{}")
    save_scene(folder, splats, Viewpoint(elevation=15.0))
    save_gif(folder / "samples" / "turntable.gif", render(splats, turntable(3, width=32, height=32)).image)
    return write_report(folder)


@pytest.fixture
def middle(page: Path, browser: Any) -> tuple[float, float, float]:
    """The opened page's canvas in the middle of the window: (x, y) of its centre and its side, in pixels."""
    browser.open(page)
    browser.run(CENTRE)
    x, y, side = browser.run(f"(({{x, y, width}}) => [x, y, width])({PLACE})")
    return x + side / 2, y + side / 2, side


def test_keys_turn_zoom_and_begin_again(page: Path, browser: Any):
    browser.open(page)
    assert browser.run(f"{FIRST}.view()") == START
    for _ in range(8):
        if browser.run("document.activeElement.localName") == "canvas":
            break
        browser.press("Tab")
    assert browser.run("document.activeElement.localName") == "canvas"
    picture = "document.querySelector('canvas').toDataURL()"
    first = browser.run(picture)
    for key, view in (
        ("ArrowLeft", {"azimuth": 10}), ("ArrowRight", {}), ("ArrowRight", {"azimuth": -10}), ("Home", {}),
        ("ArrowDown", {"elevation": 25}), ("ArrowUp", {}), ("+", {"distance": 2.5 / 1.15}), ("-", {}),
    ):  # fmt: skip
        browser.press(key)
        assert browser.run(f"{FIRST}.view()") == pytest.approx({**START, **view}), key
        assert browser.run(picture) != first or view == {}, key
    browser.run("new Promise((done) => setTimeout(done, 400))")  # at rest it is as fine as it was at first
    assert browser.run(picture) == first
    for _ in range(9):
        browser.press("ArrowDown")
    assert browser.run(f"{FIRST}.view().elevation") == 90
    assert browser.run("document.querySelector('output').value") == "azimuth 0°, elevation 90°"
    assert browser.said == []


def test_the_mouse_turns_and_zooms(middle: tuple[float, float, float], browser: Any):
    x, y, side = middle
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100)
    assert browser.run(f"{FIRST}.view().distance") == 2.5  # the page scrolls, until the canvas has the focus
    browser.run(CENTRE)
    browser.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    browser.mouse("mouseMoved", x + side / 9, y + side / 18, button="left", buttons=1)
    browser.mouse("mouseReleased", x + side / 9, y + side / 18, button="left", clickCount=1)
    browser.mouse("mouseMoved", x, y)
    view = browser.run(f"{FIRST}.view()")
    assert view == pytest.approx({"azimuth": -20, "elevation": 25, "distance": 2.5}, abs=0.5)
    browser.mouse("mouseWheel", x, y, deltaX=0, deltaY=-100)
    assert browser.run(f"{FIRST}.view().distance") == pytest.approx(2.5 * math.exp(-0.1))
    for count in (1, 2):
        browser.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=count)
        browser.mouse("mouseReleased", x, y, button="left", clickCount=count)
    assert browser.run(f"{FIRST}.view()") == START


def test_two_fingers_zoom(middle: tuple[float, float, float], browser: Any):
    x, y, _ = middle

    def touch(kind: str, apart: float) -> None:
        points = [{"x": x - apart / 2, "y": y, "id": 0}, {"x": x + apart / 2, "y": y, "id": 1}] if apart else []
        browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    touch("touchStart", 100)
    touch("touchMove", 150)
    touch("touchEnd", 0)
    assert browser.run(f"{FIRST}.view()") == pytest.approx({**START, "distance": 2.5 / 1.5}, rel=0.02)


def test_it_turns_by_itself_unless_motion_is_reduced(page: Path, browser: Any):
    wait = "new Promise((done) => setTimeout(done, 300))"
    browser.open(page, prefers_reduced_motion="no-preference")
    browser.run(CENTRE)
    browser.run(wait)
    assert 0 < browser.run(f"{FIRST}.view().azimuth") < 60
    if browser.run("document.querySelector('button').textContent") == "Stop turning":  # else this machine was too slow for it
        browser.run("document.querySelector('button').click()")
    stopped = browser.run(f"{FIRST}.view().azimuth")
    browser.run(wait)
    assert browser.run(f"{FIRST}.view().azimuth") == stopped
    browser.open(page)
    browser.run(wait)
    assert browser.run(f"{FIRST}.view().azimuth") == 0
    assert browser.run("document.querySelector('button').textContent") == "Turn"


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (1000, "dark")])
def test_it_fits_says_nothing_and_asks_for_nothing(width: int, scheme: str, page: Path, browser: Any):
    browser.open(page, width=width, prefers_color_scheme=scheme)
    assert browser.run("document.documentElement.scrollWidth") <= width
    left, across, high = browser.run(f"(({{left, width, height}}) => [left, width, height])({PLACE})")
    assert left >= 0 and left + across <= width and across == pytest.approx(high) and across > 300
    assert browser.said == []
    assert browser.asked[0] == page.as_uri() and all(address.startswith("data:image/") for address in browser.asked[1:])


def test_a_still_stands_there_without_scripts_and_on_paper(page: Path, browser: Any):
    shown = """["canvas", ".still", ".controls", ".how"].map((name) =>
        getComputedStyle(document.querySelector(".viewer " + name)).display !== "none")"""
    browser.open(page)
    assert browser.run(shown) == [True, False, True, True]
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run(shown) == [False, True, False, False]
    browser.open(page, scripts=False)
    assert browser.run(shown) == [False, True, False, False]
    assert "Turning it takes a browser that runs scripts." in browser.run("document.querySelector('.viewer').innerText")
    with Image.open(page.parent / "samples" / "turntable.gif") as gif:
        assert browser.run("document.querySelector('.still').naturalWidth") % gif.width == 0


def test_a_viewer_that_fails_leaves_the_still_and_says_why(page: Path, tmp_path: Path, browser: Any):
    (tmp_path / "damaged.html").write_text(page.read_text().replace('"data": "', '"data": "!'))
    browser.open(tmp_path / "damaged.html")
    assert browser.run(FIRST) is None and len(browser.said) == 1
    assert browser.run("getComputedStyle(document.querySelector('.still')).display") == "block"
