"""The viewer of splats: its packed data and its pictures against the renderer, its page in a browser without a window."""

import base64
import json
import math
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.report import save_grid, write_report
from limbeck.report.pictures import animation
from limbeck.report.viewer import pack, read_viewpoint, viewer
from limbeck.scenes import Splats, Viewpoint, orbit, render, save_gif, save_scene, splats_from_points, turntable

MakeRun = Callable[..., Path]
VIEWPOINT = Viewpoint(elevation=15.0, distance=2.5, fovy=50.0, background=(1.0, 0.875, 0.75))
BACKGROUND = torch.tensor(VIEWPOINT.background, dtype=torch.float64)
FIRST = "limbeckViewers[0]"
NO_WEBGL = """const get = HTMLCanvasElement.prototype.getContext;
    HTMLCanvasElement.prototype.getContext = function (kind, ...rest) { return kind === "webgl2" ? null : get.call(this, kind, ...rest) }"""
KEEP_WEBGL = """const get = HTMLCanvasElement.prototype.getContext;
    HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
        const context = get.call(this, kind, ...rest); if (kind === "webgl2") window.gl = context; return context }"""


def cloud(degree: int = 1, N: int = 150, size: float = 0.06) -> Splats:
    """Long and round splats about the origin, from hardly to wholly opaque, float32."""
    draw = torch.Generator().manual_seed(degree)
    normal = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    return Splats(
        0.4 * normal(N, 3), math.log(size) + 0.6 * normal(N, 3), normal(N, 4), 3 * normal(N), normal(N, 1, 3),
        0.2 * normal(N, (degree + 1) ** 2 - 1, 3),
    )  # fmt: skip


def unpack(packed: dict[str, Any]) -> Splats:
    """The splats that a script sees in what ``pack`` made, in float64."""
    N, low, step = packed["count"], np.array(packed["low"]), np.array(packed["step"])
    data = base64.b64decode(packed["data"])
    means = np.frombuffer(data, "<f4", 3 * N).reshape(N, 3).astype(np.float64)
    codes = np.frombuffer(data, "<u2", offset=12 * N).reshape(N, len(low))
    columns = torch.from_numpy(low + step * codes)
    harmonics = columns[:, 8:].reshape(N, -1, 3)
    return Splats(torch.from_numpy(means), columns[:, :3], columns[:, 3:7], columns[:, 7], harmonics[:, :1], harmonics[:, 1:])


def seen(splats: Splats, azimuth: float, elevation: float, distance: float, width: int, height: int) -> Tensor:
    """The renderer's picture, (height, width, 3) in float64."""
    splats = Splats(*(x.double() for x in splats))
    camera = orbit(torch.tensor([azimuth], dtype=torch.float64), elevation, distance, VIEWPOINT.fovy, width, height)
    return render(splats, camera, BACKGROUND).rgb[0].movedim(0, -1)


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Splats], Path]:
    """The report of a run that has a scene and a turntable, and hardly anything else."""

    def make(splats: Splats) -> Path:
        folder = tmp_path_factory.mktemp("run")
        (folder / "summary.json").write_text("{}")
        save_scene(folder, splats, VIEWPOINT)
        save_gif(folder / "samples" / "turntable.gif", render(splats, turntable(3, width=32, height=32)).image)
        return write_report(folder)

    return make


@pytest.fixture
def before_scripts(browser: Any):
    """Runs a script on pages that are opened from now on, before their own."""
    added = []
    yield lambda source: added.append(browser.call("Page.addScriptToEvaluateOnNewDocument", source=source)["identifier"])
    for identifier in added:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=identifier)


def on_canvas(browser: Any, width: int, height: int) -> Tensor:
    """What the canvas shows after drawing at that size, (height, width, 3) in [0, 1]."""
    data = browser.floats(
        f"({FIRST}.draw({width}, {height}), {FIRST}.canvas.getContext('2d').getImageData(0, 0, {width}, {height}).data)"
    )
    return torch.from_numpy(np.frombuffer(data, np.uint8).reshape(height, width, 4)[..., :3].copy()).double() / 255


# Data ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_packing_rounds_to_65536_levels_and_pictures_to_less_than_one_of_256(degree: int):
    splats = cloud(degree)
    packed = pack(splats)
    found = unpack(packed)
    step = torch.tensor(packed["step"], dtype=torch.float64)
    assert len(base64.b64decode(packed["data"])) == (34 + 6 * ((degree + 1) ** 2 - 1)) * 150
    torch.testing.assert_close(found.means, splats.means.double(), rtol=0, atol=0)
    directions = torch.nn.functional.normalize(splats.quaternions.double(), dim=1)
    for name, ours, theirs, steps in (
        ("log_scales", splats.log_scales, found.log_scales, step[:3]),
        ("quaternions", directions, found.quaternions, step[3:7]),
        ("logits", splats.logits, found.logits, step[7]),
        ("harmonics", splats.harmonics.flatten(1), found.harmonics.flatten(1), step[8:]),
    ):
        assert bool(((ours.double() - theirs).abs() <= 0.5001 * steps).all()), name
    error = seen(splats, 30.0, 15.0, 2.5, 48, 48) - seen(found, 30.0, 15.0, 2.5, 48, 48)
    assert float(error.abs().max()) < 1 / 255


def test_equal_numbers_pack_exactly_and_opacities_saturate():
    splats = splats_from_points(torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]), opacity=0.5)
    found = unpack(pack(splats._replace(logits=torch.tensor([2.0, 80.0]))))
    torch.testing.assert_close(found.log_scales, splats.log_scales.double(), rtol=0, atol=0)
    assert found.logits.tolist() == [2.0, 16.0]


def test_the_most_opaque_are_kept_in_their_order_and_counted():
    splats = cloud()._replace(logits=torch.linspace(-8, 6, 150).roll(40))
    visible = splats.logits > -math.log(254)
    assert 0 < int((~visible).sum()) < 40
    shown = viewer(splats, VIEWPOINT)
    assert shown.scene["count"] == int(visible.sum()) and shown.told.startswith(f"{int(visible.sum())} splats, 0.01 MB")
    torch.testing.assert_close(unpack(shown.scene).means, splats.means[visible].double(), rtol=0, atol=0)
    few = viewer(splats, VIEWPOINT, most=30)
    assert few.told.startswith(f"the 30 most opaque of {int(visible.sum())} splats")
    top = splats.logits >= splats.logits.sort(descending=True).values[29]
    torch.testing.assert_close(unpack(few.scene).means, splats.means[top].double(), rtol=0, atol=0)
    with pytest.raises(LimbeckError, match="none of 150 splats has an opacity of 1/255 or more"):
        viewer(splats._replace(logits=splats.logits - 20), VIEWPOINT)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"elevation": 91.0}, r"elevation=91.0 of a scene: it must lie in \[-90, 90\]"),
        ({"distance": 0.0}, "distance=0.0 of a scene: it must lie in the positive finite numbers"),
        ({"distance": math.inf}, "distance=inf of a scene"),
        ({"fovy": 180.0}, r"fovy=180.0 of a scene: it must lie in \(0, 180\)"),
        ({"background": [0.0, 2.0, 0.0]}, r"background=.* in each of red, green and blue"),
        ({"background": 1.0}, "must hold numbers, three for the background"),
        ({"background": [1.0]}, "must hold numbers, three for the background"),
        ({"distance": "near"}, "must hold numbers"),
        ({"azimuth": 0.0}, "no other names than elevation, distance, fovy, background"),
        ([1.0], "no other names than"),
    ],
)
def test_a_scene_file_with_impossible_values_is_named(values: Any, said: str, tmp_path: Path):
    (tmp_path / "scene.json").write_text(json.dumps(values))
    with pytest.raises(LimbeckError, match=r"scene\.json.*" + said):
        read_viewpoint(tmp_path / "scene.json")


def test_a_scene_file_comes_back_and_may_be_missing(tmp_path: Path):
    save_scene(tmp_path, cloud(), VIEWPOINT)
    assert read_viewpoint(tmp_path / "scene.json") == VIEWPOINT
    assert read_viewpoint(tmp_path / "other.json") == Viewpoint(0.0, 2.5, 49.1, (1.0, 1.0, 1.0))


def test_an_animation_is_embedded_as_it_is(tmp_path: Path):
    save_gif(tmp_path / "turn.gif", torch.rand(4, 3, 32, 32) * 2 - 1)
    shown = animation(tmp_path / "turn.gif")
    assert base64.b64decode(shown.uri.removeprefix("data:image/gif;base64,")) == (tmp_path / "turn.gif").read_bytes()
    assert (shown.width, shown.height) == (256, 256)
    save_grid(tmp_path / "still.gif", torch.zeros(1, 3, 4, 4), 1)
    with pytest.raises(LimbeckError, match=r"still\.gif is a PNG, not an animation"):
        animation(tmp_path / "still.gif")


# Page ----------------------------------------------------------------------------------------------------------------


def test_the_page_names_its_one_script_and_no_address(page_of: Callable[[Splats], Path], make_run: MakeRun):
    source = page_of(cloud(N=40)).read_text()
    data, code = re.findall(r"<script([^>]*)>(.*?)</script>", source, re.S)
    assert data[0] == ' type="application/json"' and json.loads(data[1])["count"] > 20
    digest = base64.b64encode(sha256(code[1].encode()).digest()).decode()
    assert code[0] == ""
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in source
    addresses = re.findall(r"""(?:src|srcset|href)=["']([^"']*)""", source)
    assert addresses and all(a.startswith(("data:image/", "#")) for a in addresses)
    assert re.search("https?:", source) is None
    plain = write_report(make_run("plain")).read_text()
    assert "<script" not in plain and "script-src" not in plain and "Scene" not in plain


def test_a_turntable_alone_is_shown_without_scripts(make_run: MakeRun):
    folder = make_run()
    save_gif(folder / "samples" / "turntable.gif", torch.zeros(2, 3, 16, 16))
    source = write_report(folder).read_text()
    assert "data:image/gif;base64," in source and "<script" not in source and '<h2 id="scene">' in source


# Pictures in a browser -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_pictures_in_double_precision_are_the_renderers(degree: int, page_of: Callable[[Splats], Path], browser: Any):
    splats = cloud(degree)
    browser.open(page_of(splats))
    packed = unpack(viewer(splats, VIEWPOINT).scene)
    # from the front, the left, above, and from within, where splats lie behind the camera and far beyond the border
    for azimuth, elevation, distance in ((0.0, 15.0, 2.5), (90.0, -30.0, 3.0), (-130.0, 90.0, 2.0), (170.0, 5.0, 0.75)):
        browser.run(f"{FIRST}.look({{azimuth: {azimuth}, elevation: {elevation}, distance: {distance}}})")
        found = np.frombuffer(browser.floats(f"{FIRST}.picture(41, 32)")).reshape(32, 41, 3)
        expected = seen(packed, azimuth, elevation, distance, 41, 32)
        assert float(expected.std()) > 0.05
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_the_canvas_shows_that_picture_by_webgl(page_of: Callable[[Splats], Path], browser: Any):
    splats = cloud(3, N=400)
    browser.open(page_of(splats))
    if browser.run(f"{FIRST}.painter()") != "webgl":
        pytest.skip("this chromium has no WebGL2")
    browser.run(f"{FIRST}.look({{azimuth: 40}})")
    # the renderer of the splats as they are: rounding of the data, float32 and 8 bits together
    error = (on_canvas(browser, 61, 48) - seen(splats, 40.0, 15.0, 2.5, 61, 48).clamp(0, 1)).abs() * 255
    assert float(error.max()) < 3 and float((error > 1).double().mean()) < 0.005


def test_without_webgl_the_cpu_paints(page_of: Callable[[Splats], Path], browser: Any, before_scripts: Any):
    before_scripts(NO_WEBGL)
    splats = cloud(3)
    browser.open(page_of(splats))
    assert browser.run(f"{FIRST}.painter()") == "cpu" and browser.said == []
    error = (on_canvas(browser, 61, 48) - seen(splats, 0.0, 15.0, 2.5, 61, 48).clamp(0, 1)).abs() * 255
    assert float(error.max()) < 1.5  # half a level of 8 bits, and the rounding of the data


def test_where_webgl_is_lost_the_cpu_goes_on(page_of: Callable[[Splats], Path], browser: Any, before_scripts: Any):
    before_scripts(KEEP_WEBGL)
    browser.open(page_of(cloud()))
    if not browser.run("Boolean(window.gl)"):
        pytest.skip("this chromium has no WebGL2")
    before = on_canvas(browser, 40, 40)
    browser.run("gl.getExtension('WEBGL_lose_context').loseContext()")
    after = on_canvas(browser, 40, 40)
    assert browser.run(f"{FIRST}.painter()") == "cpu"
    assert float((after - before).abs().max()) < 3 / 255
