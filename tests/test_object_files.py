"""The objects of a test set come back from their file exactly, and damaged files are named in one line."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_detections import made_objects
from sppnet.data.objects import Objects, objects_fingerprint
from sppnet.results.object_files import SavedObjects, read_objects, write_objects

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def objects_of_image(draw, classes=3):
    k = draw(st.integers(0, 3))
    corners = np.array(draw(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=k, max_size=k)), np.float64).reshape(k, 2)
    sides = draw(st.lists(st.tuples(*[st.floats(0.5, 1e6)] * 2), min_size=k, max_size=k))
    boxes = np.concatenate([corners, corners + np.array(sides).reshape(k, 2)], axis=1)
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=k, max_size=k))
    difficult = draw(st.lists(st.booleans(), min_size=k, max_size=k))
    return Objects(boxes, np.array(labels, np.int64), np.array(difficult, bool))


@settings(max_examples=50, deadline=None)
@given(st.lists(objects_of_image(), max_size=4))
def test_objects_come_back_exactly(tmp_path_factory, of_image):
    path = tmp_path_factory.getbasetemp() / "objects.jsonl"
    names = tuple(f'odd "name" \udcff {i}\n.jpg' for i in range(len(of_image)))
    before = SavedObjects(names, ("a", "b", "<c>"), tuple(of_image))
    write_objects(path, before)
    after = read_objects(path)
    assert after.names == before.names
    assert after.classes == before.classes
    assert objects_fingerprint(after) == objects_fingerprint(before)
    for i in range(len(after)):
        for one in ("boxes", "labels", "difficult"):
            array, expected = getattr(after.objects(i), one), getattr(before.objects(i), one)
            assert array.dtype == expected.dtype
            assert np.array_equal(array, expected)
            assert array.shape == expected.shape


IMAGE = {"name": "a.jpg", "labels": [0], "boxes": [[0, 0, 5, 5]], "difficult": [False]}
HEADER = {"classes": ["cat", "dog"], "images": 1}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ":1: not a file of objects"),
        (["{"], ":1: not a file of objects"),
        ([{"images": 1}], ":1: not a file of objects ('classes' is missing)"),
        ([{"classes": "cat", "images": 1}], ":1: not a file of objects (classes must be a list of text)"),
        ([HEADER], ":1: not a file of objects (objects of 0 images, must be of 1)"),
        ([HEADER, IMAGE, IMAGE], ":3: not a file of objects (objects of 2 images, must be of 1)"),
        ([HEADER, "[]"], ":2: not a file of objects"),
        ([HEADER, {"name": "a.jpg"}], ":2: not a file of objects ('labels' is missing)"),
        ([HEADER, IMAGE | {"name": 5}], ":2: not a file of objects (must have a name"),
        ([HEADER, IMAGE | {"labels": [0, 1]}], "a label, a box of four numbers and a flag for every object"),
        ([HEADER, IMAGE | {"labels": [2]}], "labels must be whole numbers from 0 to 1"),
        ([HEADER, IMAGE | {"labels": [-1]}], "labels must be whole numbers from 0 to 1"),
        ([HEADER, IMAGE | {"labels": [0.5]}], "labels must be whole numbers from 0 to 1"),
        ([HEADER, IMAGE | {"difficult": [1]}], "difficult true or false"),
        ([HEADER, IMAGE | {"boxes": [[0, 0, 5]]}], "a box of four numbers"),
        ([HEADER, IMAGE | {"boxes": [["a", 0, 5, 5]]}], ":2: not a file of objects"),
        ([HEADER, IMAGE | {"boxes": [[5, 0, 5, 5]]}], "boxes must be finite, not empty and not inside out"),
        ([HEADER, IMAGE | {"boxes": [[0, 0, float("inf"), 5]]}], "boxes must be finite"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, lines, words):
    path = tmp_path / "objects.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        read_objects(path)
    assert str(error.value).startswith(str(path))
    assert words in str(error.value)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "objects.jsonl"
    write_objects(path, made_objects(3))
    before = path.read_bytes()
    broken = made_objects(3)
    with pytest.raises(IndexError):
        write_objects(path, SavedObjects(broken.names, broken.classes, broken.of_image[:2]))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
