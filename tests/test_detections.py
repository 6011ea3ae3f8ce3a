"""Files of detections: they come back exactly, and wrong ones are refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_detections import found, objects_of, truth
from sppnet.data.objects import annotated_files
from sppnet.results.detections import (
    ImageDetections,
    gather_detections,
    read_detections,
    write_detections,
    write_voc_results,
)

BOX, OTHER, FAR = (10, 10, 50, 50), (12, 10, 52, 50), (200, 200, 240, 250)


FLOATS = st.floats(-1e6, 1e6, width=32)
SAVED = st.lists(st.lists(st.tuples(st.integers(0, 1), FLOATS, FLOATS, FLOATS, FLOATS, FLOATS), max_size=4), max_size=4)


def detections_of(images):
    per_image = []
    for i, rows in enumerate(images):
        boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for _, _, a, b, c, d in rows], np.float32)
        labels, scores = [row[0] for row in rows], [row[1] for row in rows]
        per_image.append(
            ImageDetections(f"ü{i}.jpg", np.array(labels, np.int64), np.array(scores, np.float32), boxes.reshape(-1, 4))
        )
    return gather_detections(per_image, ("cat", "dog"), {"network": "zf5", "n": 1})


@settings(deadline=None, max_examples=30)  # each flushes a file to the disk
@given(SAVED)
def test_detections_come_back_exactly(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("saved") / "detections.jsonl"
    detections = detections_of(images)
    write_detections(path, detections, classes=detections.classes, images=len(images), about=detections.about)
    back = read_detections(path)
    assert (back.names, back.classes, back.about) == (detections.names, detections.classes, detections.about)
    for name in ("images", "labels", "scores", "boxes"):
        array, expected = getattr(back, name), getattr(detections, name)
        assert (array.dtype, array.shape, array.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_the_file_has_a_line_per_image_after_the_one_about_it(tmp_path):
    images = truth(objects_of(), objects_of())
    detections = found(images, (1, 1, 0.5, BOX))
    path = tmp_path / "detections.jsonl"
    write_detections(path, iter(detections), classes=("cat", "dog"), images=2, about={"network": "zf5"})
    assert path.read_text() == (
        '{"about":{"network":"zf5"},"classes":["cat","dog"],"images":2}\n'
        '{"name":"JPEGImages/0.jpg","labels":[],"scores":[],"boxes":[]}\n'
        '{"name":"JPEGImages/1.jpg","labels":[1],"scores":[0.5],"boxes":[[10.0,10.0,50.0,50.0]]}\n'
    )


def one_image(label=0, score=0.5, box=BOX, name="a.jpg"):
    return ImageDetections(name, np.array([label]), np.array([score], np.float32), np.array([box], np.float32))


@pytest.mark.parametrize(
    ("detected", "words"),
    [
        ([one_image(label=2)], r"a\.jpg: has labels that are no whole numbers from 0 to 1"),
        ([one_image(label=-1)], r"a\.jpg: has labels"),
        ([one_image(label=0.0)], r"a\.jpg: has labels"),
        ([one_image(score=math.nan)], "not finite"),
        ([one_image(box=(5, 0, 4, 1))], "inside out"),
        ([one_image(box=(0, 5, 1, 4))], "inside out"),
        ([one_image()._replace(scores=np.zeros(2))], r"scores \(2,\)"),
        ([], "detections of 0 images, must be of 1"),
        ([one_image(), one_image(name="b.jpg")], "detections of 2 images, must be of 1"),
    ],
)
def test_wrong_detections_are_not_written_and_nothing_is_lost(tmp_path, detected, words):
    path = tmp_path / "detections.jsonl"
    path.write_text("old")
    with pytest.raises(ValueError, match=words):
        write_detections(path, detected, classes=("cat", "dog"), images=1, about={})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


HEADER = '{"about":{},"classes":["cat"],"images":1}'


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], r":1: not a file of detections"),
        (["[]"], r":1: not a file"),
        (["{}"], r":1: .*'about' is missing"),
        (['{"about":[],"classes":["cat"],"images":1}'], ":1: .*about must be keys"),
        ([HEADER], ":1: .*detections of 0 images, must be of 1"),
        ([HEADER, "{"], ":2: not a file"),
        ([HEADER, '{"name":"a"}'], ":2: .*'labels' is missing"),
        ([HEADER, '{"name":1,"labels":[],"scores":[],"boxes":[]}'], ":2: .*name must be text"),
        (
            [HEADER, '{"name":"a","labels":[0.5],"scores":[1],"boxes":[[0,0,1,1]]}'],
            ":2: .*labels must be whole numbers",
        ),
        ([HEADER, '{"name":"a","labels":[1],"scores":[1],"boxes":[[0,0,1,1]]}'], ":2: .*labels that are no whole"),
        ([HEADER, '{"name":"a","labels":[0],"scores":[NaN],"boxes":[[0,0,1,1]]}'], ":2: .*not finite"),
        ([HEADER, '{"name":"a","labels":[0],"scores":[1],"boxes":[[0,0,1]]}'], ":2: not a file"),
    ],
)
def test_other_files_are_refused_by_line(tmp_path, lines, words):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ValueError, match=rf"x\.jsonl{words}") as error:
        read_detections(path)
    assert str(error.value).isprintable()


def test_voc_result_files_count_pixels_from_one(tmp_path):
    images = truth(objects_of(), objects_of())
    detections = found(images, (0, 0, 0.125, (0, 0, 500, 375)), (1, 0, 0.1, (1.5, 2, 3, 4)))
    files = write_voc_results(tmp_path, detections, "val")
    assert [file.name for file in files] == ["comp3_det_val_cat.txt", "comp3_det_val_dog.txt"]
    assert files[0].read_text() == "0 0.125 1 1 500 375\n1 0.100000001 2.5 3 3 4\n"
    assert files[1].read_text() == ""
    same = annotated_files("root", ["a/0.jpg", "b/0.jpg"], [objects_of()] * 2, ("cat",))
    with pytest.raises(ValueError, match="0: two images have this name"):
        write_voc_results(tmp_path, found(same))
