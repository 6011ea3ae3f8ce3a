"""Windows of selective search and EdgeBoxes: the tests that need OpenCV with its contributed modules."""

import json
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from conftest import random_images
from sppnet.detect.proposal_files import compute_proposals
from sppnet.detect.proposals import (
    LONGEST_SIDE,
    EdgeBoxes,
    SelectiveSearch,
    _edges,
    _resized,
    _scaled,
    saved_proposer,
)
from test_proposals import assert_windows_of, iou, noise

RECTANGLE = (60, 45, 130, 105)

PROPOSERS = {
    "fast": SelectiveSearch,
    "quality": lambda **settings: SelectiveSearch(quality=True, **settings),
    "edges": EdgeBoxes,
}
every_proposer = pytest.mark.parametrize("build", PROPOSERS.values(), ids=PROPOSERS)


def scene(height=150, width=200):
    """RECTANGLE, (x0, y0, x1, y1), in orange on grey with a little noise."""
    image = 100 + noise(height, width) // 32
    x0, y0, x1, y1 = RECTANGLE
    image[:, y0:y1, x0:x1] = torch.tensor([220, 180, 30], dtype=torch.uint8)[:, None, None]
    return image


def best_overlap(windows, box=RECTANGLE):
    return max(iou(window, box) for window in windows.tolist())


@every_proposer
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 2), (1, 5000), (5000, 1), (7, 11), (13, 10), (20, 20), (2, 300), (70, 93)]
)
def test_images_of_any_size_have_windows(build, height, width):
    windows = build()(noise(height, width))
    assert_windows_of(windows, height, width)
    if min(height, width) < 19:  # by one pixel: windows of resized images are rounded outward
        assert windows.tolist() == [[0, 0, width, height]]


@every_proposer
def test_an_image_of_one_colour_has_the_whole_image(build):
    assert build()(torch.full((3, 40, 60), 77, dtype=torch.uint8)).tolist() == [[0, 0, 60, 40]]


@every_proposer
def test_an_object_is_found(build):
    assert best_overlap(build()(scene())) > 0.8


@every_proposer
def test_windows_are_the_same_on_every_call_and_in_the_same_order(build):
    proposer, image = build(), noise(90, 130) // 4 + scene(90, 130) // 2
    first = proposer(image)
    assert len(first) > 5
    assert all(np.array_equal(proposer(image), first) for _ in range(3))


@every_proposer
def test_the_layout_of_the_image_in_memory_does_not_matter(build):
    image = scene(90, 130)
    decoded = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as `decode_image` returns it
    before = decoded.clone()
    assert np.array_equal(build()(image), build()(decoded))
    assert torch.equal(before, decoded)


@every_proposer
def test_short_windows_are_dropped(build):
    for smallest in (20, 33):
        windows = build(smallest=smallest)(scene(90, 130))
        assert (windows[:, 2:] - windows[:, :2]).min() >= smallest


def test_selective_search_drops_no_other_windows():
    windows = SelectiveSearch(smallest=1)(scene(90, 130))
    sides = (windows[:, 2:] - windows[:, :2]).min(axis=1)
    assert sides.min() < 20
    for smallest in (20, int(np.sort(sides)[-3])):
        assert np.array_equal(SelectiveSearch(smallest=smallest)(scene(90, 130)), windows[sides >= smallest])


def test_selective_search_in_quality_mode_finds_more_windows():
    fast, quality = (SelectiveSearch(quality=quality)(scene()) for quality in (False, True))
    assert len(quality) > len(fast)


def test_edge_boxes_come_best_first():
    few, many = (EdgeBoxes(windows=windows)(scene()) for windows in (5, 400))
    assert len(few) == 5
    assert len(many) > 50
    assert best_overlap(many[:10]) == best_overlap(many)


# Edges.


def test_edges_are_thin_lie_on_the_contour_and_point_across_it():
    image = np.full((60, 90, 3), 40, np.uint8)
    image[20:40, 30:70] = 200
    strength, direction = _edges(image)
    assert strength.dtype == direction.dtype == np.float32
    assert strength.max() == 1
    assert strength.min() == 0

    along_row, along_column = strength[30] > 0.1, strength[:, 50] > 0.1
    assert {tuple(np.flatnonzero(along_row) // 2)} <= {(14, 34), (14, 35), (15, 34), (15, 35)}  # one pixel each
    assert {tuple(np.flatnonzero(along_column) // 2)} <= {(9, 19), (9, 20), (10, 19), (10, 20)}
    across = direction[30, [29, 69]]
    assert np.minimum(across, np.pi - across).max() < 0.01  # left and right
    assert np.abs(direction[[19, 39], 50] - np.pi / 2).max() < 0.01  # up and down


def test_slanted_edges_point_across_from_upper_left_to_lower_right():
    rows, columns = np.indices((60, 60))
    image = np.repeat(np.where(rows + columns < 60, 40, 200)[..., None], 3, axis=2).astype(np.uint8)
    strength, direction = _edges(image)
    on_edge = strength[10:50, 10:50] > 0.9
    assert on_edge.sum() >= 40
    assert np.abs(direction[10:50, 10:50][on_edge] - np.pi / 4).max() < 0.01


# Large images.


def test_opencv_gets_blue_green_red_and_at_most_the_longest_side():
    image = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 30, 1001)
    assert _resized(image, 1001).shape == (30, 1001, 3)
    assert _resized(image, 500).shape == (15, 500, 3)
    assert _resized(image, 16).shape == (1, 16, 3)
    for longest in (1001, 500, 16):
        assert (_resized(image, longest) == [30, 20, 10]).all()


@every_proposer
def test_windows_of_resized_images_are_scaled_back(build):
    windows = build(longest=100)(scene())
    assert_windows_of(windows, 150, 200)
    assert (windows % 2 == 0).all()  # whole pixels of an image of half the size
    assert best_overlap(windows) > 0.75
    assert_windows_of(build(longest=100)(scene(151, 203)), 151, 203)


def test_boxes_of_a_resized_image_cover_all_of_their_pixels():
    pixels, image = np.zeros((7, 10, 3), np.uint8), torch.zeros(3, 11, 13, dtype=torch.uint8)
    boxes = np.array([[x0, y0, x1, y1] for x0 in range(10) for x1 in range(x0 + 1, 11) for y0, y1 in [(0, 7), (3, 5)]])
    x, y = Fraction(13, 10), Fraction(11, 7)
    assert _scaled(boxes, pixels, image).tolist() == [
        [math.floor(x0 * x), math.floor(y0 * y), math.ceil(x1 * x), math.ceil(y1 * y)]
        for x0, y0, x1, y1 in boxes.tolist()
    ]


@pytest.mark.parametrize("build", [SelectiveSearch, EdgeBoxes])
def test_an_image_with_sides_beyond_int16_is_refused_by_name(build):
    image = torch.zeros(3, 2, LONGEST_SIDE + 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^a\.png: 32768 x 2 pixels, windows need sides of at most 32,767$"):
        build()(image, "a.png")
    assert build()(image[:, :, 1:]).tolist() == [[0, 0, LONGEST_SIDE, 2]]


# Settings.


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (SelectiveSearch, {"smallest": 0}),
        (SelectiveSearch, {"longest": 15}),
        (SelectiveSearch, {"longest": 40_000}),
        (EdgeBoxes, {"windows": 0}),
        (EdgeBoxes, {"smallest": 0}),
        (EdgeBoxes, {"longest": 0}),
    ],
)
def test_settings_out_of_range_are_named(build, settings):
    ((key, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"^proposals\.{key}={value}: must be from [\d,]+ to [\d,]+$"):
        build(**settings)


def test_settings_tell_proposers_apart():
    proposers = [
        SelectiveSearch(),
        SelectiveSearch(quality=True),
        SelectiveSearch(longest=400),
        SelectiveSearch(smallest=21),
        EdgeBoxes(),
        EdgeBoxes(windows=1999),
    ]
    stated = [json.dumps(proposer.settings()) for proposer in proposers]
    assert len(set(stated)) == len(stated)
    assert all("opencv" in text for text in stated)


@pytest.mark.parametrize("build", [SelectiveSearch, EdgeBoxes])
def test_without_opencv_one_line_says_what_to_install(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "cv2.ximgproc", None)
    with pytest.raises(ValueError, match=r"^selective search and EdgeBoxes need .*: pip install sppnet\[detect\]$"):
        build()


# In several processes.


class OneThread(SelectiveSearch):
    """Fails where OpenCV would use several threads."""

    def __call__(self, image, name="image"):
        import cv2

        assert cv2.getNumThreads() == 1
        return super().__call__(image, name)


def test_opencv_has_one_thread_in_every_process_and_afterwards_as_many_as_before(tmp_path):
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 9)  # starts them
        images = random_images([(40, 50), (50, 40)])
        proposals = compute_proposals(images, OneThread(), tmp_path, workers=2)
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)
    expected = SelectiveSearch()(torch.from_numpy(images.pixels[0]).permute(2, 0, 1))
    assert sorted(map(tuple, proposals.windows(0).tolist())) == sorted(map(tuple, expected.tolist()))


@pytest.mark.parametrize("proposer", [SelectiveSearch(quality=True, smallest=9), EdgeBoxes(windows=7, longest=99)])
def test_a_proposer_is_built_from_its_settings_whatever_the_version(proposer):
    assert saved_proposer(proposer.settings()) == proposer
    assert saved_proposer({**proposer.settings(), "opencv": "1.0"}) == proposer
