import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from limbeck.errors import LimbeckError
from limbeck.tasks import load_pictures
from limbeck.tasks.folder import as_images, as_labels, load_tensors

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (3, 6, 5), dtype=np.uint8)


def write(folder, arrays, suffix=".png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}{suffix}", **options)


def expected(arrays):
    x = torch.from_numpy(np.asarray(arrays)).float() / 127.5 - 1
    return x.movedim(-1, 1) if x.ndim == 4 else x[:, None]


@pytest.mark.parametrize(
    "suffix, options", [(".png", {}), (".bmp", {}), (".tif", {}), (".webp", {"lossless": True}), (".PNG", {})]
)
@pytest.mark.parametrize("arrays", [RGB, GRAY], ids=["rgb", "gray"])
def test_pictures_are_read_exactly(tmp_path, arrays, suffix, options):
    write(tmp_path / "a", arrays, suffix, **options)
    found = load_pictures(tmp_path / "a")
    assert found.labels is None and found.images.dtype == torch.float32
    want = expected(arrays)
    if suffix == ".webp" and arrays is GRAY:  # WebP has no grayscale
        want = want.expand(-1, 3, -1, -1)
    assert torch.equal(found.images, want)
    levels = ((found.images + 1) * 127.5).round().movedim(1, -1)[..., : arrays.ndim - 1]
    assert np.array_equal(levels.numpy().reshape(3, 6, 5, -1)[..., : 3 if arrays is RGB else 1].reshape(arrays.shape), arrays)


def test_jpeg_is_what_pillow_decodes(tmp_path):
    write(tmp_path, RGB, ".jpg")
    decoded = np.stack([np.asarray(Image.open(tmp_path / f"{i}.jpg")) for i in range(3)])
    assert torch.equal(load_pictures(tmp_path).images, expected(decoded))


def test_subfolders_are_classes_in_the_order_of_their_names(tmp_path):
    write(tmp_path / "cat", GRAY[:1])
    write(tmp_path / "ant" / "small", GRAY[1:])
    (tmp_path / "ant" / "notes.txt").write_text("no picture")
    (tmp_path / ".trash").mkdir()
    Image.fromarray(GRAY[0]).save(tmp_path / ".trash" / "x.png")
    found = load_pictures(tmp_path)
    assert found.classes == ("ant", "cat") and found.labels.tolist() == [0, 0, 1]
    assert torch.equal(found.images, expected(GRAY[[1, 2, 0]]))


def test_one_subfolder_is_no_class(tmp_path):
    write(tmp_path / "all", GRAY)
    assert load_pictures(tmp_path).labels is None


def test_grayscale_among_colours_becomes_three_equal_channels(tmp_path):
    write(tmp_path / "a", RGB[:1])
    write(tmp_path / "b", GRAY[:1])
    images = load_pictures(tmp_path).images
    assert torch.equal(images[1], expected(GRAY[:1])[0].expand(3, -1, -1)) and torch.equal(images[0], expected(RGB)[0])


def test_sixteen_bits_keep_their_precision(tmp_path):
    levels = np.array([[0, 1, 32768, 65535]] * 4, dtype=np.uint16)
    write(tmp_path, [levels, levels])
    images = load_pictures(tmp_path).images
    torch.testing.assert_close(images[0, 0, 0], torch.tensor([-1, 1 / 32767.5 - 1, 32768 / 32767.5 - 1, 1]), rtol=0, atol=1e-7)
    assert load_pictures(tmp_path, size=4).images.shape == (2, 1, 4, 4)


def test_transparency_is_put_on_white_and_a_photo_is_turned_upright(tmp_path):
    clear = np.zeros((4, 6, 4), dtype=np.uint8)
    clear[:, :3, 3] = 255  # black on the left, nothing on the right
    write(tmp_path / "a", [clear])
    image = load_pictures(tmp_path / "a").images[0]
    assert (image[:, :, :3] == -1).all() and (image[:, :, 3:] == 1).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    write(tmp_path / "b", [GRAY[0]], exif=exif)
    assert torch.equal(load_pictures(tmp_path / "b").images, expected(GRAY[:1]).rot90(-1, (2, 3)))


def test_a_size_cuts_the_centre_and_resizes(tmp_path):
    picture = np.zeros((8, 16), dtype=np.uint8)
    picture[:, 4:12] = 200  # the centre square
    write(tmp_path / "a", [picture])
    write(tmp_path / "a" / "b", [np.full((9, 9), 200, np.uint8)])
    write(tmp_path / "c", [picture])
    with pytest.raises(LimbeckError, match="mixes pictures"):
        load_pictures(tmp_path / "a", 4)
    images = load_pictures(tmp_path / "c", 4).images
    assert images.shape == (1, 1, 4, 4) and torch.equal(images, torch.full((1, 1, 4, 4), 200 / 127.5 - 1))
    with pytest.raises(LimbeckError, match="image size is 2"):
        load_pictures(tmp_path / "c", 2)


def test_different_sizes_are_named(tmp_path):
    write(tmp_path, [GRAY[0], GRAY[1], GRAY[2].T])
    with pytest.raises(LimbeckError, match=r"0\.png has 5 x 6 pixels, \S*2\.png has 6 x 5; .* --image-size 64"):
        load_pictures(tmp_path)
    assert load_pictures(tmp_path, 4).images.shape == (3, 1, 4, 4)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(LimbeckError, match="nowhere does not exist"):
        load_pictures(tmp_path / "nowhere")
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(LimbeckError, match="holds no pictures"):
        load_pictures(tmp_path)
    with pytest.raises(LimbeckError, match="no file of tensors"):
        load_pictures(tmp_path / "readme.txt")


def test_unreadable_pictures_are_counted_and_the_first_is_named(tmp_path):
    write(tmp_path, RGB)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(LimbeckError, match=r"2 of 3 pictures cannot be read, the first is \S*1\.png \(.+\)"):
        load_pictures(tmp_path)
    write(tmp_path / "f", [np.zeros((4, 4), np.float32)], ".tif")
    with pytest.raises(LimbeckError, match="its mode F has no known range"):
        load_pictures(tmp_path / "f")


def test_files_of_tensors(tmp_path):
    images, labels = torch.from_numpy(RGB).movedim(-1, 1).contiguous(), torch.tensor([1, 0, 1])
    want = expected(RGB)
    np.save(tmp_path / "a.npy", images.numpy())
    np.savez(tmp_path / "b.npz", images=images.numpy(), labels=labels.numpy())
    np.savez(tmp_path / "c.npz", images.numpy(), labels.numpy())
    torch.save({"images": want, "labels": labels}, tmp_path / "d.pt")
    save_file({"images": want.half().contiguous(), "labels": labels}, tmp_path / "e.safetensors")
    save_file({"x": want.double().contiguous()}, tmp_path / "f.safetensors")
    for name, labelled in [("a.npy", 0), ("b.npz", 1), ("c.npz", 1), ("d.pt", 1), ("f.safetensors", 0)]:
        found = load_pictures(tmp_path / name)
        assert torch.equal(found.images, want) and found.images.dtype == torch.float32, name
        assert found.labels is None if not labelled else torch.equal(found.labels, labels), name
        assert found.classes == (("0", "1") if labelled else ())
    assert torch.equal(load_pictures(tmp_path / "e.safetensors").images, want.half().float())


def test_damaged_files_and_pickles_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no array")
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    torch.save(torch.nn.Linear(1, 1), tmp_path / "c.pt")
    (tmp_path / "d.safetensors").write_bytes(b"0" * 20)
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "f.pt").write_bytes(b"")
    for name in ("a.npy", "b.npy", "c.pt", "d.safetensors", "e.npz", "f.pt"):
        with pytest.raises(LimbeckError, match="cannot be read .* no pickles"):
            load_tensors(tmp_path / name)
    torch.save({"weight": torch.zeros(1), "bias": torch.zeros(1)}, tmp_path / "g.pt")
    with pytest.raises(LimbeckError, match="holds weight, bias; name the images"):
        load_tensors(tmp_path / "g.pt")


def test_all_levels_of_a_byte_follow_the_rule():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(as_images(levels), levels.float() / 127.5 - 1)
    assert as_images(levels).min() == -1 and as_images(levels).max() == 1
    assert as_images(levels.numpy()[:, 0]).shape == (1, 1, 16, 16)


def test_wrong_images_are_refused():
    good = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
    assert torch.equal(as_images(good.double()), good)
    holed = good.clone()
    holed[0, 0, 0, :2] = torch.tensor([torch.nan, torch.inf])
    for wrong, message in [
        ((good + 1) / 2, r"go from 0 to 1; .* 2 x - 1"),
        (good * 127.5 + 127.5, r"go from 0 to 255; .* x / 127.5 - 1"),
        (good * 1.5, r"from -1.5 to 1.5"),
        (holed, "2 values that are NaN or infinite"),
        (torch.zeros(4, 4), r"shape \(4, 4\)"),
        (torch.zeros(0, 3, 4, 4), r"shape \(0, 3, 4, 4\)"),
        (torch.zeros(2, 8, 8, 3), r"channels last; .*permute\(0, 3, 1, 2\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "dtype torch.int64"),
        (np.array([["a"]]), "dtype <U1"),
        ([[1.0]], "data is a list"),
    ]:
        with pytest.raises(LimbeckError, match=message):
            as_images(wrong)


def test_wrong_labels_are_refused():
    assert as_labels([1, 0, 2], 3).tolist() == [1, 0, 2]
    for wrong in (torch.zeros(2, dtype=torch.int64), torch.zeros(3), torch.tensor([0, -1, 0])):
        with pytest.raises(LimbeckError, match="give 3 integers from 0 on"):
            as_labels(wrong, 3)
