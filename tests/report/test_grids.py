from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.errors import LimbeckError
from limbeck.report import image_grid, save_grid, side_by_side

# every level that a pixel can have, as the value whose rounding gives it
LEVELS = torch.arange(256) / 127.5 - 1


def test_grayscale_pixels_and_gaps_are_exact():
    images = LEVELS[:48].reshape(3, 1, 4, 4)
    grid = np.asarray(image_grid(images, 2))
    assert grid.shape == (9, 9)
    expected = np.full((9, 9), 128, np.uint8)
    values = np.arange(48).reshape(3, 4, 4)
    expected[:4, :4], expected[:4, 5:], expected[5:, :4] = values
    np.testing.assert_array_equal(grid, expected)


def test_rgb_pixels_are_exact():
    values = torch.randint(0, 256, (6, 3, 5, 4), generator=torch.Generator().manual_seed(0))
    grid = image_grid(LEVELS[values], 3)
    assert (grid.mode, grid.size) == ("RGB", (3 * 5 - 1, 2 * 6 - 1))
    for index in range(6):
        top, left = index // 3 * 6, index % 3 * 5
        np.testing.assert_array_equal(np.asarray(grid)[top : top + 5, left : left + 4], values[index].permute(1, 2, 0))


def test_values_beyond_the_range_are_clamped_and_nan_is_drawn_as_the_gap():
    images = torch.tensor([-7.0, 7.0, float("inf"), -float("inf"), float("nan"), 0.0]).reshape(1, 1, 1, 6)
    assert np.asarray(image_grid(images, 1)).tolist() == [[0, 255, 255, 0, 128, 128]]


def test_more_columns_than_images_leaves_places_free():
    assert np.asarray(image_grid(torch.ones(1, 1, 1, 1), 3)).tolist() == [[255, 128, 128, 128, 128]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_and_graph_do_not_matter(dtype: torch.dtype):
    images = torch.tensor([-1.0, 0.5, 1.0], dtype=dtype).reshape(1, 1, 1, 3).requires_grad_()
    assert np.asarray(image_grid(images, 1)).tolist() == [[0, 191, 255]]


@pytest.mark.parametrize("shape", [(4, 4), (2, 2, 4, 4), (0, 1, 4, 4), (1, 3, 4, 4, 4)])
def test_other_shapes_are_refused_by_name(shape: tuple[int, ...]):
    with pytest.raises(LimbeckError, match=r"shape \(" + str(shape[0])):
        image_grid(torch.zeros(shape), 2)


def test_no_columns_are_refused():
    with pytest.raises(LimbeckError, match="columns=0"):
        image_grid(torch.zeros(1, 1, 2, 2), 0)


def test_saved_grid_reads_back(tmp_path: Path):
    images = LEVELS[torch.arange(64)].reshape(4, 1, 4, 4)
    save_grid(tmp_path / "new" / "grid.png", images, 2)
    with Image.open(tmp_path / "new" / "grid.png") as stored:
        assert (stored.format, stored.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(stored), np.asarray(image_grid(images, 2)))


def test_side_by_side_enlarges_by_a_whole_factor_and_keeps_every_pixel():
    first = image_grid(LEVELS[torch.arange(100)].reshape(1, 1, 10, 10), 1)
    second = image_grid(LEVELS[255 - torch.arange(100)].reshape(1, 1, 10, 10), 1)
    whole = np.asarray(side_by_side({"first": first, "second": second}))
    factor, margin = 36, 16
    head = whole.shape[0] - margin - 360
    for index, grid in enumerate((first, second)):
        left = margin + index * (360 + margin)
        panel = whole[head : head + 360, left : left + 360]
        np.testing.assert_array_equal(panel, np.asarray(grid.convert("RGB")).repeat(factor, 0).repeat(factor, 1))
        assert whole[:head, left : left + 360].min() < 100, "the title is missing"
    assert whole.shape[1] == 2 * 360 + 3 * margin


def test_long_titles_stay_over_their_picture():
    grid = image_grid(torch.zeros(1, 1, 10, 10), 1)
    whole = np.asarray(side_by_side({"a title much longer than the picture under it " * 2: grid, "": grid}))
    assert whole[:20, 376 + 16 :].min() == 255


def test_side_by_side_of_nothing_is_refused():
    with pytest.raises(LimbeckError, match="at least one"):
        side_by_side({})
