"""Files: their bytes by hand, there and back bit by bit, other writers' variants, and damage."""

import json
import math
import struct

import numpy as np
import plyfile
import pytest
import torch
from PIL import Image

from limbeck.errors import LimbeckError
from limbeck.scenes import (
    Cameras,
    Splats,
    load_cameras,
    load_splats,
    save_cameras,
    save_gif,
    save_splats,
    save_strip,
    turntable,
)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_splats_there_and_back_bit_by_bit(degree, tmp_path, cloud):
    splats = cloud(17, degree=degree, dtype=torch.float32)
    save_splats(tmp_path / "new" / "a.ply", splats)
    found = load_splats(tmp_path / "new" / "a.ply")
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(found, splats, strict=True))
    save_splats(tmp_path / "b.ply", found)
    assert (tmp_path / "b.ply").read_bytes() == (tmp_path / "new" / "a.ply").read_bytes()


def test_the_bytes_of_a_splat_by_hand(tmp_path):
    one = Splats(
        torch.tensor([[1.0, 2, 3]]),
        torch.tensor([[4.0, 5, 6]]),
        torch.tensor([[7.0, 8, 9, 10]]),
        torch.tensor([11.0]),
        torch.tensor([[[20.0, 30, 40]]]),
        torch.tensor([[[21.0, 31, 41], [22, 32, 42], [23, 33, 43]]]),  # coefficients of red, green, blue
    )
    save_splats(tmp_path / "one.ply", one)
    head, _, body = (tmp_path / "one.ply").read_bytes().partition(b"end_header\n")
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"] + [f"f_rest_{i}" for i in range(9)]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert head.decode().splitlines() == [
        "ply",
        "format binary_little_endian 1.0",
        "element vertex 1",
        *(f"property float {name}" for name in names),
    ]
    rest = [21, 22, 23, 31, 32, 33, 41, 42, 43]
    assert struct.unpack("<26f", body) == (1, 2, 3, 0, 0, 0, 20, 30, 40, *rest, 11, 4, 5, 6, 7, 8, 9, 10)


@pytest.mark.parametrize("degree", [0, 2])
def test_another_library_reads_and_writes_the_same_splats(degree, tmp_path, cloud):
    splats = cloud(17, degree=degree, dtype=torch.float32)
    save_splats(tmp_path / "ours.ply", splats)
    table = plyfile.PlyData.read(tmp_path / "ours.ply")["vertex"].data
    assert set(table.dtype.descr) == {(name, "<f4") for name in table.dtype.names} and len(table) == 17
    columns = {"x": splats.means[:, 0], "nz": torch.zeros(17), "opacity": splats.logits, "rot_0": splats.quaternions[:, 0]}
    columns |= {"scale_2": splats.log_scales[:, 2], "f_dc_1": splats.sh0[:, 0, 1]}
    more = (degree + 1) ** 2 - 1
    columns |= {f"f_rest_{c * more + k}": splats.shN[:, k, c] for c in range(3) for k in range(more)}  # channel by channel
    for name, column in columns.items():
        np.testing.assert_array_equal(table[name], column.numpy())
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")], byte_order="<").write(tmp_path / "theirs.ply")
    assert all(torch.equal(x, y) for x, y in zip(load_splats(tmp_path / "theirs.ply"), splats, strict=True))


def write(path, names, rows, format="binary_little_endian 1.0", types=None, after=b""):
    types = types or ["float"] * len(names)
    lines = ["ply", f"format {format}", "comment made elsewhere", f"element vertex {len(rows)}"]
    lines += [f"property {t} {n}" for t, n in zip(types, names, strict=True)]
    codes = "<" + "".join({"float": "f", "double": "d", "uchar": "B"}[t] for t in types)
    lines += ["element face 0", "property list uchar int vertex_indices", "end_header"] if after else ["end_header"]
    path.write_bytes("\n".join(lines).encode() + b"\n" + b"".join(struct.pack(codes, *row) for row in rows) + after)


NAMES = [
    "x",
    "y",
    "z",
    "f_dc_0",
    "f_dc_1",
    "f_dc_2",
    "opacity",
    "scale_0",
    "scale_1",
    "scale_2",
    "rot_0",
    "rot_1",
    "rot_2",
    "rot_3",
]
ROWS = [[float(10 * i + j) for j in range(14)] for i in range(3)]


def test_other_writers(tmp_path):
    write(tmp_path / "no_normals.ply", NAMES, ROWS)
    plain = load_splats(tmp_path / "no_normals.ply")
    assert plain.means.tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]] and plain.logits.tolist() == [6, 16, 26]
    assert (
        plain.sh0.tolist()[0] == [[3, 4, 5]]
        and plain.shN.shape == (3, 0, 3)
        and plain.quaternions[0].tolist() == [10, 11, 12, 13]
    )
    # another order, further properties and types, a second element
    types = ["uchar", *["double"] * 14]
    write(tmp_path / "mixed.ply", ["label", *NAMES[::-1]], [[7, *row[::-1]] for row in ROWS], types=types, after=b"\0")
    assert all(torch.equal(x, y) for x, y in zip(load_splats(tmp_path / "mixed.ply"), plain, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: write(p, NAMES[1:-1], [r[1:-1] for r in ROWS]), "has no property x, rot_3: it is no PLY of Gaussian splats"),
        (lambda p: write(p, [*NAMES, "f_rest_0"], [[*r, 0.0] for r in ROWS]), "has 1 properties f_rest: the three channels"),
        (
            lambda p: write(p, NAMES + [f"f_rest_{i}" for i in range(6)], [[*r, *[0.0] * 6] for r in ROWS]),
            "3 spherical-harmonic",
        ),
        (lambda p: write(p, NAMES, [[math.nan, *r[1:]] for r in ROWS]), "splat 0 has means that are not finite"),
        (lambda p: write(p, NAMES, ROWS, format="ascii 1.0"), "is no PLY in binary_little_endian 1.0"),
        (lambda p: p.write_bytes(b"PK not this"), "is no PLY in binary_little_endian 1.0"),
        (
            lambda p: (write(p, NAMES, ROWS), p.write_bytes(p.read_bytes()[:-5])),
            "cut short: 3 vertices take 168 bytes, and 163",
        ),
        (
            lambda p: p.write_bytes(b"ply\nformat binary_little_endian 1.0\nelement face 1\nend_header\n"),
            "begins with the element",
        ),
        (
            lambda p: p.write_bytes(
                b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty list uchar int a\nend_header\n"
            ),
            "property a is a list",
        ),
        (lambda p: write(p, ["x", *NAMES], [[0.0, *r] for r in ROWS]), "has a damaged header"),
        (lambda p: None, "cannot be read"),
    ],
)
def test_damaged_splats(make, message, tmp_path):
    make(tmp_path / "a.ply")
    with pytest.raises(LimbeckError, match=message):
        load_splats(tmp_path / "a.ply")


def test_splats_that_a_file_cannot_hold(tmp_path, cloud):
    splats = cloud(3)
    with pytest.raises(LimbeckError, match="splat 0 has logits that are not finite"):
        save_splats(tmp_path / "a.ply", splats._replace(logits=torch.tensor([math.nan, 0, 0]).double()))
    with pytest.raises(LimbeckError, match="beyond float32"):
        save_splats(tmp_path / "a.ply", splats._replace(means=splats.means * 1e300))
    assert not (tmp_path / "a.ply").exists()


def test_cameras_there_and_back(tmp_path):
    cameras = turntable(5, 20.0, distance=1.7, fovy=33.0, width=48, height=32)
    cameras = Cameras(cameras.c2w, cameras.focal * torch.tensor([1.0, 1.1]), cameras.centre + 2.5, 48, 32)
    save_cameras(tmp_path / "a" / "transforms.json", cameras)
    found, files = load_cameras(tmp_path / "a" / "transforms.json")
    for name in ("c2w", "focal", "centre"):
        assert torch.equal(getattr(found, name), getattr(cameras, name))
    assert (found.width, found.height) == (48, 32) and files[:2] == ["0000.png", "0001.png"]


def test_the_cameras_of_nerf_synthetic(tmp_path):
    cameras = turntable(2, width=40, height=20, fovy=30.0)
    frames = [{"file_path": f"./train/r_{i}", "transform_matrix": m.tolist()} for i, m in enumerate(cameras.c2w)]
    angle = 2 * math.atan(2 * math.tan(math.radians(15)))
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    found, files = load_cameras(path, 40, 20)
    torch.testing.assert_close(found.focal, cameras.focal)
    assert torch.equal(found.c2w, cameras.c2w) and files == ["./train/r_0", "./train/r_1"]
    with pytest.raises(LimbeckError, match="names no w and h: give width and height"):
        load_cameras(path)
    path.write_text(json.dumps({"w": 4, "h": 4, "frames": frames}))
    with pytest.raises(LimbeckError, match="neither fl_x nor camera_angle_x"):
        load_cameras(path)
    path.write_text(json.dumps({"w": 4, "h": 4, "fl_x": 5.0, "frames": frames}))
    assert load_cameras(path)[0].focal.tolist() == [[5.0, 5.0]] * 2 and load_cameras(path)[0].centre[0].tolist() == [2.0, 2.0]
    path.write_text("{}")
    with pytest.raises(LimbeckError, match=r"is no transforms.json \(KeyError\('frames'\)\)"):
        load_cameras(path)
    with pytest.raises(LimbeckError, match="1 files for 2 cameras"):
        save_cameras(path, cameras, ["a.png"])


def test_frames_as_a_strip_and_as_a_gif(tmp_path):
    levels = torch.randint(0, 256, (3, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    frames = levels.float() / 127.5 - 1
    save_strip(tmp_path / "a" / "strip.png", frames)
    with Image.open(tmp_path / "a" / "strip.png") as image:
        assert np.array_equal(np.asarray(image), torch.cat(list(levels), -1).movedim(0, -1).numpy())
    flat = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [1.5, -1, -9]])[:, :, None, None].expand(3, 3, 4, 5)
    save_gif(tmp_path / "a" / "turn.gif", flat, seconds=0.2)
    with Image.open(tmp_path / "a" / "turn.gif") as image:
        assert image.n_frames == 3 and image.size == (5, 4) and image.info["loop"] == 0 and image.info["duration"] == 200
        for i, colour in enumerate([(0, 0, 0), (255, 255, 255), (255, 0, 0)]):
            image.seek(i)
            assert image.convert("RGB").getpixel((2, 2)) == colour
    with pytest.raises(LimbeckError, match=r"frames of shape \(3, 1, 4, 5\): expected \(N, 3, H, W\)"):
        save_strip(tmp_path / "b.png", frames[:, :1])
