"""Proposals without OpenCV: windows of a grid and of a file."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from sppnet.detect.proposals import LONGEST_SIDE, Dense
from sppnet.detect.window_files import WindowFile


def noise(height, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def iou(one, other):
    """The definition, for one pair of boxes."""
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def assert_windows_of(windows, height, width):
    assert windows.dtype == np.int16
    assert windows.ndim == 2
    assert len(windows) >= 1
    assert len(np.unique(windows, axis=0)) == len(windows)
    for x0, y0, x1, y1 in windows.tolist():
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height


# A grid.


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    windows=st.integers(1, 300),
    smallest=st.floats(0.01, 1),
    ratio=st.floats(1.1, 4),
    aspect=st.floats(1, 8),
)
@example(height=1, width=5000, windows=9, smallest=0.001, ratio=1.1, aspect=1000)
@example(height=1, width=5000, windows=9, smallest=0.001, ratio=1.1, aspect=1)
def test_a_grid_keeps_to_its_limits_and_has_the_whole_image(height, width, windows, smallest, ratio, aspect):
    dense = Dense(windows=windows, smallest=smallest, ratio=ratio, aspect=aspect)
    grid = dense(torch.zeros(3, height, width, dtype=torch.uint8))
    assert_windows_of(grid, height, width)
    assert len(grid) <= windows
    assert [0, 0, width, height] in grid.tolist()
    for x0, y0, x1, y1 in grid.tolist():  # sides are rounded by less than one pixel
        if (x1 - x0, y1 - y0) != (width, height):
            assert x1 - x0 > min(width, smallest * max(height, width)) - 1
            assert y1 - y0 > min(height, smallest * max(height, width)) - 1
            assert max((x1 - x0 - 1) / (y1 - y0 + 1), (y1 - y0 - 1) / (x1 - x0 + 1)) < aspect


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (240, 960), (1000, 1000)])
def test_a_grid_nearly_uses_the_number_of_windows_it_may_have(height, width):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    assert 1700 <= len(Dense()(image)) <= 2000
    assert 180 <= len(Dense(windows=200, smallest=0.2)(image)) <= 200


def test_a_grid_has_these_windows():
    """Of 20 windows, 16 are squares of half the side in four rows and columns: five of each would be too many."""
    windows = Dense(windows=20, smallest=0.5, ratio=2, aspect=1)(torch.zeros(3, 8, 8, dtype=torch.uint8)).tolist()
    assert windows == [[0, 0, 8, 8], *([x, y, x + 4, y + 4] for y in (0, 1, 3, 4) for x in (0, 1, 3, 4))]


def test_a_grid_for_too_few_windows_leaves_out_the_smallest_sizes():
    windows = Dense(windows=4, ratio=2, aspect=2)(torch.zeros(3, 64, 64, dtype=torch.uint8)).tolist()
    assert windows == [[0, 0, 64, 64], [0, 0, 32, 64], [16, 0, 48, 64], [32, 0, 64, 64]]


def test_a_grid_reaches_every_border_with_every_size():
    grid = Dense()(torch.zeros(3, 1000, 1000, dtype=torch.uint8)).astype(int)
    small = grid[(grid[:, 2] - grid[:, 0] < 100) & (grid[:, 3] - grid[:, 1] < 100)]
    assert len(small) > 300
    assert small.min(axis=0)[:2].tolist() == [0, 0]
    assert small.max(axis=0)[2:].tolist() == [1000, 1000]


def test_small_windows_overlap_less_than_large_ones_and_are_more():
    grid = Dense()(torch.zeros(3, 1000, 1000, dtype=torch.uint8)).astype(int)
    sides = [round(1000 / 1.8**step) for step in range(6)]
    rows = [np.unique(grid[np.abs(grid[:, 3] - grid[:, 1] - side) <= 1][:, 1]) for side in sides]
    counts, gaps = [len(starts) for starts in rows], [np.diff(starts).mean() for starts in rows[1:]]
    assert counts == sorted(counts)
    shares = [gap / side for gap, side in zip(gaps, sides[1:], strict=True)]
    assert shares == sorted(shares)


def test_a_grid_looks_the_same_at_twice_the_size():
    small, large = (Dense(windows=300)(torch.zeros(3, h, w, dtype=torch.uint8)) for h, w in [(300, 400), (600, 800)])
    assert len(small) == len(large)
    assert np.abs(2 * small.astype(int) - large).max() <= 1


# A file.


def lines(tmp_path, *entries):
    path = tmp_path / "windows.jsonl"
    path.write_text("".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries))
    return str(path)


def test_a_file_gives_its_boxes_in_order_once_cut_to_the_image_and_rounded_outward(tmp_path):
    boxes = [[5, 6, 20, 30], [0, 0, 4, 4], [-3, -2.5, 7, 9], [5, 6, 20, 30], [90, 60, 5000, 1e9], [1.5, 2.5, 3.25, 4.0]]
    file = WindowFile(path=lines(tmp_path, {"image": "a.jpg", "boxes": boxes}, "", {"boxes": [], "image": "b/Ä.jpg"}))
    windows = file(noise(70, 100), "a.jpg")
    assert windows.dtype == np.int16
    assert windows.tolist() == [[5, 6, 20, 30], [0, 0, 4, 4], [0, 0, 7, 9], [90, 60, 100, 70], [1, 2, 4, 4]]
    assert file(noise(7, 11), "b/Ä.jpg").tolist() == [[0, 0, 11, 7]]


def test_a_file_may_have_100_000_boxes_of_an_image(tmp_path):
    starts = np.indices((250, 400)).reshape(2, -1).T[::-1]
    boxes = np.concatenate([starts, starts + np.array([5, 7])], axis=1)
    file = WindowFile(path=lines(tmp_path, {"image": "a", "boxes": boxes.tolist()}))
    windows = file(torch.zeros(3, 500, 500, dtype=torch.uint8), "a")
    assert np.array_equal(windows, boxes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "cannot be read as JSON: Expecting"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("\\udcff", "cannot be read as JSON"),
        ("[1, 2]", "found b'[1, 2]', expected {\"image\": NAME"),
        ('{"image": "b"}', 'expected {"image": NAME'),
        ('{"image": "b", "boxes": [], "scores": []}', 'expected {"image": NAME'),
        ('{"image": 7, "boxes": []}', 'expected {"image": NAME'),
        ('{"image": "b", "boxes": {}}', 'expected {"image": NAME'),
        ('{"image": "b", "boxes": [3]}', "found the box 3, expected four numbers"),
        ('{"image": "b", "boxes": [[1, 2, 3]]}', "found the box [1, 2, 3], expected four numbers"),
        ('{"image": "b", "boxes": [[1, 2, 3, "4"]]}', "expected four numbers"),
        ('{"image": "b", "boxes": [[true, true, true, true]]}', "expected four numbers"),
        ('{"image": "b", "boxes": [[[1, 2], [3, 4]]]}', "found the box [[1, 2], [3, 4]], expected four numbers"),
        ('{"image": "b", "boxes": [[1, 2, 3, 9999999999999999999999]]}', "expected four numbers"),
        ('{"image": "b", "boxes": [[1, 2, 3, NaN]]}', "expected four numbers"),
        ('{"image": "b", "boxes": [[1, 2, 3, Infinity]]}', "expected four numbers"),
        ('{"image": "b", "boxes": [[1, 2, 3, 1e300]]}', "expected four numbers"),
        (
            '{"image": "b", "boxes": [[0, 0, 9, 9], [3, 2, 3, 4]]}',
            "found the box [3, 2, 3, 4], expected x0 < x1 and y0 < y1",
        ),
        ('{"image": "b", "boxes": [[1, 4, 3, 2]]}', "expected x0 < x1 and y0 < y1"),
        ('{"image": "a\\u001b", "boxes": []}', "found a\\x1b a second time, first in line 1"),
    ],
    ids=lambda value: value[:40],
)
def test_a_line_that_is_not_of_this_kind_is_named(tmp_path, line, words):
    path = lines(tmp_path, {"image": "a\x1b", "boxes": []}, "", line)
    with pytest.raises(ValueError, match=r"windows\.jsonl:3: ") as caught:
        WindowFile(path=path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "windows.jsonl").write_bytes(b'{"image": "\xff", "boxes": []}')
    with pytest.raises(ValueError, match=r"windows\.jsonl:1: cannot be read as JSON"):
        WindowFile(path=str(tmp_path / "windows.jsonl"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        WindowFile(path=str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("box", [[100, 0, 120, 7], [0, 70, 9, 80], [-9, 0, 0, 9], [0, -9, 9, 0]])
def test_a_box_outside_of_its_image_is_named(tmp_path, box):
    file = WindowFile(path=lines(tmp_path, {"image": "a.jpg", "boxes": [[0, 0, 5, 5], box]}))
    numbers = ", ".join(map(str, map(float, box)))
    message = rf"windows\.jsonl:1: found the box \[{numbers}\], outside of a\.jpg, which has 100 x 70 pixels$"
    with pytest.raises(ValueError, match=message):
        file(noise(70, 100), "a.jpg")


def test_an_image_without_a_line_is_named(tmp_path):
    file = WindowFile(path=lines(tmp_path, {"image": "a.jpg", "boxes": []}))
    with pytest.raises(ValueError, match=r"windows\.jsonl: found no line for the image b\.jpg$"):
        file(noise(7, 7), "b.jpg")


# All of them.


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (Dense, {"windows": 0}),
        (Dense, {"windows": 10**6 + 1}),
        (Dense, {"smallest": 0.0}),
        (Dense, {"smallest": 1.01}),
        (Dense, {"ratio": 1.0}),
        (Dense, {"aspect": 0.9}),
        (Dense, {"aspect": math.nan}),
    ],
)
def test_settings_out_of_range_are_named(build, settings):
    ((key, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"^proposals\.{key}={value}: must be from ") as caught:
        build(**settings)
    assert "\n" not in str(caught.value)


def test_settings_tell_grids_apart():
    grids = [Dense(), Dense(windows=1999), Dense(ratio=1.7), Dense(aspect=3), Dense(smallest=0.06)]
    assert len({json.dumps(grid.settings()) for grid in grids}) == len(grids)


def test_settings_of_a_file_are_its_content_wherever_it_lies(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    entries = [{"image": "a", "boxes": [[0, 0, 1, 1]]}]
    first, copy = (WindowFile(path=lines(folder, *entries)) for folder in (tmp_path, tmp_path / "elsewhere"))
    other = WindowFile(path=lines(tmp_path, *entries, {"image": "b", "boxes": []}))
    assert first.settings() == copy.settings()
    assert first.settings() != other.settings()


def test_an_image_with_sides_beyond_int16_is_refused_by_name():
    image = torch.zeros(3, 2, LONGEST_SIDE + 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^a\.png: 32768 x 2 pixels, windows need sides of at most 32,767$"):
        Dense()(image, "a.png")
    assert Dense()(image[:, :, 1:])[:, 2].max() == LONGEST_SIDE
