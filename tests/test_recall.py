"""Recall: the share of objects that some window overlaps well enough, by the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.detect.recall import recall
from sppnet.results.statistics import wilson_interval
from test_proposals import iou


def boxes(*rows):
    return np.array(rows, np.float64).reshape(-1, 4)


def none_of(count):
    return np.zeros(count, bool)


def test_overlaps_are_counted_from_the_threshold_on():
    # IoU 1, 1/2 and 1/4 with the window; the fourth has no overlap.
    objects = boxes([0, 0, 4, 4], [0, 0, 4, 2], [2, 0, 4, 2], [9, 9, 10, 10])
    windows = np.array([[0, 0, 4, 4], [20, 20, 30, 30]], np.int16)
    found = recall([windows], [objects], [none_of(4)], thresholds=(0.25, 0.3, 0.5, 0.51, 1.0))
    assert [entry.found for entry in found] == [3, 2, 2, 1, 1]
    assert [entry.share for entry in found] == [0.75, 0.5, 0.5, 0.25, 0.25]
    assert [entry.threshold for entry in found] == [0.25, 0.3, 0.5, 0.51, 1.0]
    assert {entry.objects for entry in found} == {4}
    assert (found[0].low, found[0].high) == wilson_interval(3, 4)


def test_the_thresholds_are_those_that_papers_report():
    found = recall([boxes([0, 0, 1, 1])], [boxes([0, 0, 1, 1])], [none_of(1)])
    assert [entry.threshold for entry in found] == [0.5, 0.7]


def test_difficult_objects_are_left_out():
    objects = boxes([0, 0, 4, 4], [5, 5, 9, 9])
    (found,) = recall([boxes([0, 0, 4, 4])], [objects], [np.array([False, True])], thresholds=[0.5])
    assert (found.found, found.objects) == (1, 1)


def test_windows_find_objects_of_their_own_image_only():
    one, other = boxes([0, 0, 4, 4]), boxes([5, 5, 9, 9])
    (found,) = recall([one, other], [other, one], [none_of(1), none_of(1)], thresholds=[0.5])
    assert found.found == 0


def test_images_without_objects_or_windows_count_as_they_are():
    windows = iter([boxes([0, 0, 4, 4]), boxes(), boxes([0, 0, 4, 4])])  # may be read one by one
    (found,) = recall(windows, [boxes(), boxes([0, 0, 4, 4]), boxes([0, 0, 4, 4])], map(none_of, (0, 1, 1)), [0.5])
    assert (found.found, found.objects) == (1, 2)


corners = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 9)] * 2).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


@given(st.lists(corners, min_size=1, max_size=6), st.lists(corners, min_size=1, max_size=6), st.floats(0.01, 1))
def test_recall_is_the_share_by_the_definition(windows, objects, threshold):
    (found,) = recall([np.array(windows, np.int16)], [boxes(*objects)], [none_of(len(objects))], [threshold])
    assert found.found == sum(any(iou(window, box) >= threshold for window in windows) for box in objects)


@pytest.mark.parametrize("threshold", [0.0, 1.01, -1, float("nan")])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(ValueError, match=r"^thresholds=\[.*\]: must be above 0 and at most 1$"):
        recall([boxes()], [boxes()], [none_of(0)], [threshold])


def test_nothing_to_be_found_is_refused():
    with pytest.raises(ValueError, match="no objects that are not difficult"):
        recall([boxes()], [boxes([0, 0, 1, 1])], [np.array([True])])
    with pytest.raises(ValueError, match="no objects that are not difficult"):
        recall([], [], [])


def test_different_numbers_of_images_are_refused():
    with pytest.raises(ValueError, match="zip"):
        recall([boxes(), boxes()], [boxes([0, 0, 1, 1])], [none_of(1)])
