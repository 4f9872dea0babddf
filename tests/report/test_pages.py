# ruff: noqa: RUF001
import base64
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.errors import LimbeckError
from limbeck.report import save_grid, write_claims, write_comparison, write_report

MakeRun = Callable[..., Path]
VOID = {"meta", "img", "br", "link", "hr", "input"}
LOADING = {"src", "href", "srcset", "poster", "data", "action", "background", "xlink:href"}
HOSTILE = "</script></style><img src=http://evil.example/x onerror=alert(1)>\"'{{ 7 * 7 }}"
CLAIMS: list[dict[str, Any]] = [
    {
        "method": "dmd",
        "arxiv": "2311.18828",
        "seconds": 201.3,
        "seeds": [0, 1, 2],
        "calibration": "0.95 to 1.01 over 8 seeds",
        "figures": {"student.frechet": 1.7512},
        "claims": [
            {"statement": "One call is as good as 35", "gated": True, "holds": True, "measured": 0.957, "bound": "≤ 1.25"},
            {"statement": "The GAN term helps", "gated": False, "holds": False, "measured": "1.79 against 1.75", "bound": None},
        ],
    },
    {
        "method": "sid",
        "arxiv": None,
        "seconds": None,
        "seeds": 3,
        "claims": [{"statement": "alpha 1.2 beats 1", "gated": True, "holds": False, "measured": [1.62, 1.7], "bound": 1.5}],
    },
]


class Page(HTMLParser):
    """Parses strictly: tags balance, ids are unique; gathers elements and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "title"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(path: Path) -> Page:
    """The page at ``path``, after the checks that every page must pass."""
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in LOADING:
                allowed = ("data:image/",) if tag == "img" else ("#", "https://arxiv.org/abs/")
                assert value is not None and value.startswith(allowed), f"<{tag} {name}={value!r:.60}>"
                assert tag in {"img", "a"}
            assert name != "style" or re.fullmatch(r"(left: [\d.]+%|grid-template-columns: repeat\(\d+, 1fr\))", value or "")
    for style in re.findall(r"<style>(.*?)</style>", source, re.S):
        assert "url(" not in style and "@import" not in style and "@font-face" not in style
    assert all(image["alt"] for image in page.all("img"))
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.all("svg"))
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    targets = {attributes.get("id") for _, attributes in page.elements}
    assert all(link["href"][1:] in targets for link in page.all("a") if (link["href"] or "").startswith("#"))  # type: ignore[index]
    assert len(page.all("h1")) == 1 and page.all("html")[0]["lang"] == "en"
    return page


def test_report_shows_the_numbers_and_how_to_get_them(make_run: MakeRun):
    path = write_report(make_run())
    assert path.name == "report.html"
    page = read(path)
    for text in (
        "One network call instead of 35: Fréchet distance 1.75 against the teacher’s 1.83, 38× the images per second",
        "41.2", "0.213", "98.5%", "99.1%", "35.2%", "1,900", "72,200", "limbeck distill dmd --task digits --seed 0",
        "iterations: 900", "2.13.0", "3.11.7", "step 400: the critic lags behind", "1 warning during the run",
        "1 value not finite, first at 410",
    ):  # fmt: skip
        assert text in page.text, text
    places = [page.text.index(text) for text in ("One network", "Samples", "Numbers", "Curves", "Do it again", "Warnings")]
    assert places == sorted(places)
    assert [image["alt"].split(";")[0] for image in page.all("img")] == [  # type: ignore[union-attr]
        "Grid of images: Real, data",
        "Grid of images: Teacher, 35 network calls · Fréchet\u00a01.83",
        "Grid of images: Teacher, as few calls, 1 network call · Fréchet\u00a041.2",
        "Grid of images: Student, 1 network call · Fréchet\u00a01.75",
    ]
    assert {"href": "https://arxiv.org/abs/2311.18828"} in page.all("a")
    assert path.stat().st_size < 300_000


def test_embedded_pictures_keep_every_pixel(make_run: MakeRun):
    folder = make_run()
    page = read(write_report(folder))
    for name, image in zip(("real", "teacher", "teacher_at_student_nfe", "student"), page.all("img"), strict=True):
        shown = Image.open(BytesIO(base64.b64decode((image["src"] or "").split(",")[1])))
        stored = Image.open(folder / "samples" / f"{name}.png")
        assert shown.size == (int(image["width"] or 0), int(image["height"] or 0))
        factor = shown.width // stored.width
        assert factor == 7 and shown.size == (stored.width * factor, stored.height * factor)
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(stored).repeat(factor, 0).repeat(factor, 1))


def test_large_pictures_and_long_runs_stay_under_the_bound(make_run: MakeRun):
    folder = make_run()
    images = torch.rand(12, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name in ("real", "student"):
        save_grid(folder / "samples" / f"{name}.png", images.repeat(2, 1, 1, 1), 12)
    with open(folder / "metrics.jsonl", "w") as file:
        file.writelines(f'{{"step": {step}, "gap": {step % 7}, "loss/student": 1e{step % 30}}}\n' for step in range(1, 30_001))
    page = read(path := write_report(folder))
    assert path.stat().st_size < 2_000_000
    assert int(page.all("img")[0]["width"] or 0) == 1200


def test_everything_from_files_is_escaped(make_run: MakeRun):
    folder = make_run(
        **{name: HOSTILE for name in ("method", "title", "arxiv", "task", "seed", "teacher_origin", "command")},
        messages=[HOSTILE],
        versions={HOSTILE: HOSTILE},
    )
    (folder / "samples" / "columns.json").write_text(json.dumps([HOSTILE]))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, HOSTILE: 1.0, f"loss/{HOSTILE}": 2.0}) + "\n")
    claims = [{"method": HOSTILE, "arxiv": HOSTILE, "seeds": HOSTILE, "claims": [
        {"statement": HOSTILE, "gated": True, "holds": False, "measured": {HOSTILE: HOSTILE}, "bound": HOSTILE}]}]  # fmt: skip
    pages = [
        write_report(folder),
        write_comparison([folder, make_run("other", method=HOSTILE)], folder / "comparison.html"),
        write_claims(claims, folder / "claims.html"),
    ]
    for path in pages:
        page = read(path)
        assert HOSTILE in page.text  # braces of templates included
        assert "<img src=http" not in path.read_text()


@pytest.mark.parametrize("missing", ["samples", "metrics.jsonl", "config.yaml", "summary.json"])
def test_a_page_without_what_is_missing(make_run: MakeRun, missing: str):
    folder = make_run()
    shutil.rmtree(folder / missing) if missing == "samples" else (folder / missing).unlink()
    page = read(write_report(folder))
    section = {"samples": "Samples", "summary.json": "Numbers", "metrics.jsonl": "Critic lag"}.get(missing, missing)
    assert section not in page.text
    assert ("Not finished" in page.text) == (missing == "summary.json")
    assert bool(page.all("img")) == (missing != "samples")


def test_null_teacher_and_accuracy(make_run: MakeRun):
    student = {"nfe": 2, "frechet": 7.4, "accuracy": None}
    folder = make_run(teacher=None, teacher_at_student_nfe=None, student=student, messages=[], pictures=False)
    page = read(write_report(folder))
    assert "2 network calls: Fréchet distance 7.40" in page.text
    assert "None were raised during the run." in page.text
    assert "teacher’s" not in page.text and "None%" not in page.text


def test_numbers_that_are_not_finite(make_run: MakeRun):
    page = read(write_report(make_run(student={"nfe": 1, "frechet": "nan", "accuracy": "nan", "images_per_second": "inf"})))
    assert "no finite Fréchet distance against the teacher’s 1.83" in page.text


def test_only_a_summary_is_enough(tmp_path: Path):
    (tmp_path / "summary.json").write_text("{}")
    assert "Not finished: 0 iterations" in read(write_report(tmp_path)).text


def test_a_folder_that_is_no_run_and_a_damaged_picture(make_run: MakeRun, tmp_path: Path):
    folder = make_run()
    (folder / "samples" / "student.png").write_bytes(b"no picture")
    with pytest.raises(LimbeckError, match=r"student\.png cannot be read as a picture"):
        write_report(folder)
    with pytest.raises(LimbeckError, match=r"summary\.json are missing"):
        write_comparison([folder, tmp_path], tmp_path / "comparison.html")
    with pytest.raises(LimbeckError, match="at least one"):
        write_comparison([], tmp_path / "comparison.html")


def test_comparison_is_sorted_by_distance(make_run: MakeRun):
    distances = {"worst": 9.0, "lost": "nan", "best": 0.5, "middle": 2.0, "unknown": None}
    folders = [make_run(name, method=name, student={"nfe": 1, "frechet": value}) for name, value in distances.items()]
    page = read(path := write_comparison(folders, folders[0].parent / "new" / "comparison.html"))
    table = path.read_text().split("<tbody")[1].split("</tbody>")[0]
    names = re.findall(r'rowheader" class="full">(\w+)', table)
    assert names[:3] == ["best", "middle", "worst"] and set(names[3:5]) == {"lost", "unknown"} and names[5:] == ["Teacher"]
    assert "5 runs on digits: best comes closest to the data, Fréchet distance 0.500" in page.text
    assert len(page.all("img")) == 2 + 5
    assert all(f'class="s{index}"' in drawn for index in range(5) for drawn in path.read_text().split("<svg")[1:])


def test_comparison_keeps_tasks_apart(make_run: MakeRun):
    folders = [make_run(task, task=task, student={"nfe": 1, "frechet": 3.0}) for task in ("digits", "faces")]
    page = read(write_comparison([*folders, make_run("open", summary=False, pictures=False)], folders[0].parent / "all.html"))
    assert "3 runs on 2 tasks" in page.text
    assert "2 runs on digits:" in page.text and "1 run on faces:" in page.text
    assert "(not finished)" in page.text
    assert len(page.all("table")) == 2


def test_claims_hold_fail_or_are_reported(tmp_path: Path):
    page = read(write_claims(CLAIMS, tmp_path / "claims.html"))
    for text in (
        "1 of 2 gated claims of 2 methods hold; of 1 reported without a gate, 0 are shown", "✓ holds", "✗ fails",
        "○ not shown reported", "0.957", "≤ 1.25", "1.79 against 1.75", "1.62, 1.70", "1.50", "seeds 0, 1, 2", "3 seeds",
        "Failing sid: alpha 1.2 beats 1", "Calibration: 0.95 to 1.01 over 8 seeds", "student.frechet 1.75",
    ):  # fmt: skip
        assert text in page.text, text
    assert "Failing" not in read(write_claims(CLAIMS[:1], tmp_path / "claims.html")).text


@pytest.mark.parametrize("lost", ["claims", "method"])
def test_claims_without_a_part_are_refused(tmp_path: Path, lost: str):
    with pytest.raises(LimbeckError, match=f"lacks '{lost}'"):
        write_claims([{name: value for name, value in CLAIMS[0].items() if name != lost}], tmp_path / "claims.html")
    with pytest.raises(LimbeckError, match="a claim of dmd lacks 'holds'"):
        write_claims([{"method": "dmd", "claims": [{"statement": "", "gated": True}]}], tmp_path / "claims.html")


def _luminance(colour: str) -> float:
    colour = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
    parts = [int(colour[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_in_light_dark_and_print(tmp_path: Path):
    source = write_claims(CLAIMS, tmp_path / "claims.html").read_text()
    themes = [dict(re.findall(r"--(\w+): #(\w+);", block)) for block in re.findall(r":root \{(.*?)\}", source, re.S)]
    assert len(themes) == 3 and all(len(theme) == 18 for theme in themes)
    for theme in themes:
        for ground in ("paper", "sheet", "tint", "warn"):
            # WCAG 2: 4.5 for text, 3 for marks
            assert all(_contrast(theme[name], theme[ground]) >= 4.5 for name in ("ink", "soft", "accent")), ground
        assert all(_contrast(theme[name], theme["sheet"]) >= 4.5 for name in ("good", "bad"))
        assert all(_contrast(theme[f"c{index}"], theme["sheet"]) >= 3 for index in range(8))


def test_no_page_is_wider_than_a_phone(make_run: MakeRun, tmp_path: Path, browser: Any):
    long = "averylongword" * 9
    folders = [make_run(), make_run("long", method=long, title=long, messages=[long], command=long, seed=long)]
    claim = {"statement": long, "gated": True, "holds": False, "measured": long, "bound": long}
    pages = [
        *map(write_report, folders),
        write_comparison(folders, tmp_path / "comparison.html"),
        write_claims([*CLAIMS, {"method": long, "claims": [claim]}], tmp_path / "claims.html"),
    ]
    for page in pages:
        browser.open(page, width=360)
        assert browser.run("document.documentElement.scrollWidth") == 360, page.name
        assert browser.said == []
