"""The JSON of COCO: boxes, classes in the order of their ids, crowds, and what is refused."""

import json
import sys

import numpy as np
import pytest

from conftest import names
from sppnet.data.coco import coco
from test_objects import rows

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 2, "name": "person"}, {"id": 18, "name": "cat"}]
IMAGES = [
    {"id": 30, "file_name": "b.jpg", "width": 40, "height": 20},
    {"id": 4, "file_name": "a.jpg", "width": 10, "height": 13},
]


def annotation(number, image, category, bbox, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


ANNOTATIONS = [
    annotation(1, 30, 18, [1.5, 2.25, 10, 3], iscrowd=0),
    annotation(2, 30, 7, [0, 0, 40, 20], iscrowd=1),
    annotation(3, 4, 2, [0.1, 0.2, 0.3, 0.4]),
]


@pytest.fixture
def write(tmp_path):
    def write(split="train2017", images=IMAGES, annotations=ANNOTATIONS, categories=CATEGORIES, **more):
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": categories, **more}
        file = tmp_path / f"annotations/instances_{split}.json"
        file.write_text(json.dumps(content))
        return file

    write()
    write("val2017")
    return write


def refuses(root, words, error=ValueError, **options):
    with pytest.raises(error, match=words) as caught:
        coco(root=str(root), **options)
    assert str(caught.value).isprintable()


def test_boxes_are_half_open_classes_in_the_order_of_ids_and_crowds_difficult(tmp_path, write, capsys):
    write("val2017", images=IMAGES[:1], annotations=[])
    train, test = coco(root=str(tmp_path))
    assert train.classes == test.classes == ("person", "dog", "cat")
    assert names(train) == ["train2017/a.jpg", "train2017/b.jpg"]
    assert [rows(train.objects(i)) for i in range(2)] == [
        [((0.1, 0.2, 0.1 + 0.3, 0.2 + 0.4), 0, False)],
        [((1.5, 2.25, 11.5, 5.25), 2, False), ((0, 0, 40, 20), 1, True)],
    ]
    assert (names(test), len(test.objects(0))) == (["val2017/b.jpg"], 0)
    assert capsys.readouterr() == ("", "")


def test_the_files_and_folders_may_have_other_names_and_classes_are_chosen(tmp_path, write):
    write().rename(tmp_path / "train2017/_annotations.coco.json")
    data = coco(root=str(tmp_path), train_annotations="train2017/_annotations.coco.json", classes=["cat", "person"])
    assert data.train.classes == ("cat", "person")
    assert [label for i in range(2) for _, label, _ in rows(data.train.objects(i))] == [1, 0]
    refuses(tmp_path, r"instances_train2017\.json: there is no such file", FileNotFoundError)


def test_boxes_outside_are_cut_and_empty_ones_left_out_and_both_counted(tmp_path, write):
    boxes = [[-5, 3, 20, 99], [30, 1, 11, 2], [1, 1, 0, 5], [1, 1, 5, 0]]
    write(annotations=[annotation(number, 30, 7, bbox) for number, bbox in enumerate(boxes, 11)])
    with pytest.warns(UserWarning, match=r"2 boxes") as caught:
        train, _ = coco(root=str(tmp_path))
    assert [str(one.message).partition("json: ")[2] for one in caught] == [
        "2 boxes reach outside their images and are cut to them, first that of annotation 11",
        "2 boxes have no width or no height and are left out, first that of annotation 13",
    ]
    np.testing.assert_array_equal(train.objects(1).boxes, [[0, 3, 15, 20], [30, 1, 40, 3]])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"annotations": [annotation(5, 30, 7, [1, 2, 3])]},
            r"annotation 5 has the bbox \[1, 2, 3\], expected 4 numbers",
        ),
        ({"annotations": [annotation(5, 30, 7, [1, 2, 3, "4"])]}, "annotation 5 has the bbox .*expected 4 numbers"),
        ({"annotations": [annotation(5, 30, 7, [1, 2, 3, float("nan")])]}, "annotation 5 has the bbox"),
        ({"annotations": [annotation(5, 30, 7, None)]}, "annotation 5 has the bbox None"),
        ({"annotations": [annotation(5, 30, 7, [1, 2, -3, 4])]}, "annotation 5 .*expected a width and height from 0"),
        ({"annotations": [annotation(5, 30, 7, [40, 2, 3, 4])]}, "annotation 5 .*, outside its image of 40x20"),
        ({"annotations": [annotation(5, 30, 8, [1, 2, 3, 4])]}, "annotation 5 has the category_id 8, and there is no"),
        ({"annotations": [annotation(5, 31, 7, [1, 2, 3, 4])]}, "found annotations of image 31, and no such image"),
        ({"annotations": 2 * [annotation(5, 30, 7, [1, 2, 3, 4])]}, "1 ids of annotations are there twice"),
        ({"annotations": [{"id": 5}]}, "an image, annotation or category has no 'image_id'"),
        ({"annotations": [5]}, "not the JSON of COCO"),
        ({"images": [{"id": 30, "file_name": "b.jpg"}], "annotations": ANNOTATIONS[:1]}, "annotation 1: its image has"),
        ({"images": []}, "found 0 images and 3 categories"),
        ({"categories": [*CATEGORIES, {"id": 8, "name": "dog"}]}, "two categories are called dog"),
        ({"categories": CATEGORIES[:2]}, "has other categories than .*: 18 cat"),
    ],
)
def test_what_is_malformed_is_named_by_file_and_annotation(tmp_path, write, changes, words):
    write(**changes)
    refuses(tmp_path, rf"\.json: .*{words}|{words}")


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"images": 5}', "\xff"])
def test_other_files_are_refused(tmp_path, write, content):
    write().write_text(content, encoding="latin-1")
    refuses(tmp_path, r"instances_train2017\.json: (not the JSON of COCO|found 0 images)")


def test_without_pycocotools_the_extra_is_named(tmp_path, write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    refuses(tmp_path, r'^data=coco needs pycocotools: pip install "sppnet\[coco\]"$', ModuleNotFoundError)
