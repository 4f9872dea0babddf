"""Thousands of malformed inputs at the command line: one clear line each, exit code 2, no traceback, no changed file."""

import json
import os
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from PIL import Image

from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.interop.schedules import Schedule, read_schedule
from limbeck.methods import METHODS
from limbeck.runs import distill
from limbeck.tasks import load_pictures
from limbeck.training import Loop
from limbeck.training.options import options_to_dict

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing import LEAVES, VALUES, accept, contents, judge, mutated, spoiled, write_yaml

fuzz = partial(
    settings, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)
DISTILLING = [entry.id for entry in METHODS.values() if entry.distils and entry.wing == "generators"]
FAST = 25


@pytest.fixture(autouse=True)
def _stopped(monkeypatch):
    """Valid runs stop before they train; warnings are no errors; the threads of this process stay as they are."""
    warnings.simplefilter("ignore")
    monkeypatch.setattr(cli, "one_thread", lambda: None)
    monkeypatch.setattr(Loop, "train", accept)


@pytest.fixture(scope="module")
def finished(tiny_task, tmp_path_factory):
    """A finished run of the tiny task."""
    out = tmp_path_factory.mktemp("fuzz") / "run"
    distill(method="dmd", task="tiny", out=out, options={"iterations": 2, "batch": 8}, quiet=True)
    return out


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples(function):
    """The same test twice: some examples among the fast tests, many (2,150 in all) among the slow ones."""
    return pytest.mark.parametrize("count", [FAST, pytest.param(300, marks=pytest.mark.slow)])(function)


@examples
def test_configs(count, finished, place, capsys):
    base = yaml.safe_load((finished / "config.yaml").read_text())

    @fuzz(max_examples=count)
    @given(st.data())
    def run(data):
        method = data.draw(st.sampled_from(DISTILLING))
        options = options_to_dict(METHODS[method].load()[2]["recommended"]) | {"iterations": 40, "batch": 8}
        tree = {**base, "method": method, "options": options, "task_options": {"scale": 0.5}}
        folder = place / "given"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_yaml(folder / "config.yaml", data.draw(mutated(tree)))
        judge(
            ["distill", "--config", str(folder / "config.yaml"), "--out", str(place / "new"), "--quiet"],
            folder,
            capsys.readouterr,
        )
        shutil.rmtree(place / "new", ignore_errors=True)

    run()


@examples
def test_values_of_a_wrong_type_are_refused(count, finished, place, capsys):
    base = yaml.safe_load((finished / "config.yaml").read_text())

    @fuzz(max_examples=count)
    @given(st.data())
    def run(data):
        wrong = data.draw(VALUES)
        names = ["iterations", "batch", "sigmas", "student", "guidance", "gan_weight", "renoise", "ema", "sead"]
        tree = {**base, "options": {**base["options"], data.draw(st.sampled_from(names)): {"a": wrong}}}
        if data.draw(st.booleans()):
            name = data.draw(
                st.sampled_from(["method", "seed", "task", "device", "dtype", "options", "micro_batches", "format"])
            )
            tree = {**base, name: [wrong]}
        folder = place / "given"
        folder.mkdir(exist_ok=True)
        write_yaml(folder / "config.yaml", tree)
        arguments = ["distill", "--config", str(folder / "config.yaml"), "--out", str(place / "new")]
        assert judge(arguments, folder, capsys.readouterr, wrong=True) == 2 and not (place / "new").exists()

    run()


@examples
def test_run_folders(count, finished, place, capsys):
    files = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    commands = (
        ["report", "run"], ["sample", "run", "--count", "2"], ["evaluate", "run"], ["distill", "--resume", "run", "--quiet"],
        ["distill", "dmd", "--task", "tiny", "--from-run", "run", "--out", "new", "--iterations", "1", "--batch", "4", "--quiet"],
    )  # fmt: skip

    @fuzz(max_examples=count)
    @given(st.data())
    def run(data):
        for name in ("run", "new"):
            shutil.rmtree(place / name, ignore_errors=True)
        shutil.copytree(finished, place / "run")
        for _ in range(data.draw(st.integers(1, 2))):
            path = place / "run" / data.draw(st.sampled_from(files))
            kind = data.draw(st.sampled_from(["bytes", "bytes", "values", "missing", "folder", "loop", "outside"]))
            before = path.read_bytes() if path.is_file() else b""
            if path.is_dir():
                continue
            path.unlink(missing_ok=True)
            if kind == "bytes":
                path.write_bytes(data.draw(spoiled(before)))
            elif kind == "values" and path.suffix in (".json", ".yaml"):
                tree = yaml.safe_load(before) if path.suffix == ".yaml" else _json(before)
                write = write_yaml if path.suffix == ".yaml" else lambda p, t: p.write_text(json.dumps(t))
                write(path, data.draw(mutated(tree)))
            elif kind == "folder":
                path.mkdir()
            elif kind == "loop":
                path.symlink_to(path.name)
            elif kind == "outside":
                path.symlink_to("/etc/passwd")
        command = data.draw(st.sampled_from(commands))
        judge(command, place / "run", capsys.readouterr)

    run()


def _json(data):
    try:
        return json.loads(data)
    except ValueError:
        return {}


def _bomb(width, height):
    """A PNG of a few bytes that claims so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.fixture
def pictures(place):
    """Files of every kind by name; all but the first three are malformed or odd."""
    from io import BytesIO

    def saved(mode, size, kind="PNG", value=90):
        buffer = BytesIO()
        Image.new(mode, size, value if mode != "RGB" else (value,) * 3).save(buffer, kind)
        return buffer.getvalue()

    array = BytesIO()
    np.save(array, np.zeros((2, 4, 4)))
    return {
        "good.png": saved("L", (8, 8)), "other.png": saved("L", (8, 8), value=200), "colour.jpg": saved("RGB", (8, 8), "JPEG"),
        "pixel.png": saved("L", (1, 1)), "wide.png": saved("L", (4000, 1)), "float.tiff": saved("F", (8, 8), "TIFF"),
        "int.tiff": saved("I", (8, 8), "TIFF"), "bomb.png": _bomb(60_000, 60_000), "huge.png": _bomb(2**31 - 1, 2**31 - 1),
        "empty.png": b"", "text.png": b"not a picture", "array.npy": array.getvalue(), "script.png": b"<script>", "notes.txt": b"x",
        "broken.webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ", "broken.bmp": b"BM" + b"\xff" * 60,
    }  # fmt: skip


@examples
def test_folders_of_pictures(count, pictures, place, capsys):
    @fuzz(max_examples=count)
    @given(st.data())
    def run(data):
        folder = place / "pictures"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in data.draw(st.lists(st.sampled_from(sorted(pictures)), min_size=0, max_size=4)):
            inside = folder / data.draw(st.sampled_from(["", "a", "b", ".hidden"]))
            inside.mkdir(exist_ok=True)
            body = pictures[name]
            (inside / name).write_bytes(data.draw(spoiled(body)) if data.draw(st.booleans()) else body)
        if data.draw(st.integers(0, 5)) == 0:
            (folder / "loop.png").symlink_to("loop.png")
        if data.draw(st.integers(0, 5)) == 0:
            (folder / "folder.png").mkdir()
        size = data.draw(st.sampled_from([[], ["--image-size", "8"], ["--image-size", "0"], ["--image-size", "-3"]]))
        # no teacher: pictures are read, and what is said of them or of it comes at last
        arguments = ["distill", "dmd", "--teacher", "nowhere.pt", "--data", str(folder), "--out", "new", "--quiet", *size]
        judge(arguments, folder, capsys.readouterr, wrong=True)

    run()


@examples
def test_files_of_tensors_and_teachers(count, finished, place, capsys):
    images = (0.3 * torch.randn(8, 1, 4, 4)).clamp(-1, 1)
    np.save(place / "images.npy", images.numpy())
    torch.save(images, place / "images.pt")
    for kind in ("safetensors", "json"):
        shutil.copy(finished / f"student.{kind}", place / f"teacher.{kind}")
    originals = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}

    @fuzz(max_examples=count)
    @given(st.data())
    def run(data):
        for name, body in originals.items():
            (place / name).write_bytes(body)
        name = data.draw(st.sampled_from(sorted(originals)))
        if name.endswith(".json") and data.draw(st.booleans()):
            (place / name).write_text(json.dumps(data.draw(mutated(json.loads(originals[name])))))
        else:
            (place / name).write_bytes(data.draw(spoiled(originals[name])))
        source = name if name.startswith("images") else "images.npy"
        arguments = ["distill", "dmd", "--teacher", "teacher.safetensors", "--data", source, "--out", "new", "--quiet"]
        code = judge(arguments, place, capsys.readouterr)
        assert code != 0
        shutil.rmtree(place / "new", ignore_errors=True)

    run()


@examples
def test_schedules(count):
    """What a scheduler_config.json says, as diffusers hands it on: a schedule, or one clear line."""
    base = {"prediction_type": "epsilon", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "use_flow_sigmas": False}
    kinds = ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "Other"]

    @fuzz(max_examples=count)
    @given(st.data())
    def run(data):
        scheduler = type(data.draw(st.sampled_from(kinds)), (), {})()
        scheduler.config = data.draw(mutated(base))
        table = data.draw(st.lists(st.sampled_from([0.9, 0.5, 0.1, 0.0, 1.0, -1.0, 2.0, float("nan")]), max_size=4))
        scheduler.alphas_cumprod = torch.tensor(table)
        try:
            assert isinstance(read_schedule(scheduler), Schedule)
        except LimbeckError as error:
            assert "\n" not in str(error) and len(str(error)) > 20

    run()


@examples
def test_options_on_the_command_line(count, place, capsys):
    """Values of flags: tyro's own usage errors, or one line."""

    @fuzz(max_examples=max(count // 6, 5))
    @given(st.data())
    def run(data):
        flag = data.draw(
            st.sampled_from(
                [
                    "--seed",
                    "--iterations",
                    "--batch",
                    "--sigmas",
                    "--device",
                    "--dtype",
                    "--guidance",
                    "--student.lr",
                    "--micro-batches",
                    "--checkpoint-every",
                    "--preset",
                ]
            )
        )
        value = str(data.draw(LEAVES)).replace("\0", "0")
        try:
            code = cli.main(["distill", "dmd", "--task", "tiny", flag, value, "--out", "new", "--quiet"])
        except Exception as error:
            assert type(error).__name__ == "Accepted"
            code = -1
        err = capsys.readouterr().err
        assert code in (-1, 2) and "Traceback" not in err
        assert code == -1 or err.startswith("limbeck: ") or flag in err
        shutil.rmtree(place / "new", ignore_errors=True)

    run()


@pytest.mark.slow
def test_the_real_command(finished, pictures, place):
    """Twenty of them as a person meets them: python -m limbeck."""
    shutil.copytree(finished, place / "run")
    config = (place / "run" / "config.yaml").read_text()
    cases = []
    for i, text in enumerate(
        [
            "",
            "[",
            "method: 3",
            "method: dmd\nseed: x",
            "method: dmd\noptions: {iterations: -1}",
            "\x00",
            "a: b",
            config.replace("tiny", "tinny"),
            "&a [*a]",
            config + "\nformat: 9",
        ]
    ):
        (place / f"{i}.yaml").write_text(text)
        cases.append(["distill", "--config", f"{i}.yaml", "--out", "new"])
    (place / "run" / "config.yaml").write_text("{")
    cases += [["report", "run"], ["sample", "run"], ["evaluate", "run"], ["distill", "--resume", "run"]]
    for i, name in enumerate(["empty.png", "bomb.png", "text.png", "float.tiff"]):
        (place / f"pictures{i}").mkdir()
        (place / f"pictures{i}" / name).write_bytes(pictures[name])
        cases.append(["distill", "dmd", "--teacher", "x.pt", "--data", f"pictures{i}"])
    cases += [["distill", "nothing"], ["sample", "nowhere"]]
    assert len(cases) == 20
    before = contents(place)
    source = str(Path(cli.__file__).parents[2])
    for case in cases:
        ended = subprocess.run(
            [sys.executable, "-m", "limbeck", *case],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        )
        assert ended.returncode == 2, (case, ended.stderr)
        assert ended.stderr.startswith("limbeck: ") and ended.stderr.count("\n") == 1, (case, ended.stderr)
    assert contents(place) == before


def test_pictures_that_cannot_be_read_name_the_first(pictures, place):
    (place / "p").mkdir()
    for name in ("good.png", "bomb.png", "empty.png"):
        (place / "p" / name).write_bytes(pictures[name])
    with pytest.raises(LimbeckError, match=r"2 of 3 pictures cannot be read, the first is .*bomb.png \(.*decompression bomb"):
        load_pictures(place / "p")
