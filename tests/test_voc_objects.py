"""Objects in the layout of PASCAL VOC: boxes, splits, classes, and what is odd about real data sets."""

import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import jpeg, names
from sppnet.data.voc_objects import voc_objects
from test_annotations import annotation_xml, box_xml, object_xml

SPLITS = {"trainval": ["c", "a", "b"], "test": ["d", "e"]}
BOXES = {
    "a": [
        object_xml("dog", box=box_xml(1, 1, 30, 20)),
        object_xml("cat", "<difficult>1</difficult>", box_xml(5, 6, 7, 8)),
    ],
    "b": [],
    "c": [object_xml("cat", box=box_xml(2, 3, 4, 5))],
    "d": [object_xml("fox", box=box_xml(1, 1, 1, 1))],
    "e": [object_xml("dog", box=box_xml(1, 1, 2, 2))],
}


def write_image(root, name, objects, size=(20, 30), stated=(20, 30), folders=("JPEGImages", "Annotations")):
    """Writes an image of `size` (height, width) and an annotation that states another one."""
    (root / folders[0] / f"{name}.jpg").write_bytes(jpeg(np.zeros((*size, 3), np.uint8)))
    text = f"<size><width>{stated[1]}</width><height>{stated[0]}</height></size>"
    (root / folders[1] / f"{name}.xml").write_bytes(annotation_xml(*objects, size=text))


def make_data(root, folders=("JPEGImages", "Annotations")):
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for name, objects in BOXES.items():
        write_image(root, name, objects, folders=folders)
    return root


@pytest.fixture
def data(tmp_path):
    root = make_data(tmp_path / "VOCdevkit" / "VOC2030")
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, images in SPLITS.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{image}\n" for image in images))
    return root


def rows(images):
    return [
        list(zip(map(tuple, one.boxes), one.labels.tolist(), one.difficult.tolist(), strict=True))
        for one in map(images.objects, range(len(images)))
    ]


def refuses(root, words, error=ValueError, **options):
    with pytest.raises(error, match=words) as caught:
        voc_objects(root=str(root), **options)
    assert str(caught.value).isprintable()


def test_objects_are_those_of_the_annotations_by_image_in_the_order_of_the_lists(data):
    train, test = voc_objects(root=str(data))
    assert train.classes == test.classes == ("cat", "dog", "fox")
    assert (names(train), names(test)) == (
        ["JPEGImages/c.jpg", "JPEGImages/a.jpg", "JPEGImages/b.jpg"],
        ["JPEGImages/d.jpg", "JPEGImages/e.jpg"],
    )
    assert rows(train) == [
        [((1, 2, 4, 5), 0, False)],
        [((0, 0, 30, 20), 1, False), ((4, 5, 7, 8), 0, True)],
        [],
    ]
    assert rows(test) == [[((0, 0, 1, 1), 2, False)], [((0, 0, 2, 2), 1, False)]]
    assert train.read(0) == (data / "JPEGImages/c.jpg").read_bytes()


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_the_root_may_be_around_a_single_voc_folder(data, levels):
    root = [data, *data.parents][levels]
    assert voc_objects(root=str(root)).train.root == str(data)


def test_of_several_voc_folders_one_must_be_named(data):
    shutil.copytree(data, data.with_name("VOC2007"))
    refuses(data.parent, "found VOC2007, VOC2030, expected one of them as the root", FileNotFoundError)
    refuses(data / "ImageSets", "found the folders Main, expected Annotations, ImageSets", FileNotFoundError)


def test_classes_are_chosen_in_their_order_and_images_stay(data):
    train, test = voc_objects(root=str(data), classes=["dog", "cat"])
    assert train.classes == test.classes == ("dog", "cat")
    assert rows(train)[1] == [((0, 0, 30, 20), 0, False), ((4, 5, 7, 8), 1, True)]
    assert rows(test) == [[], [((0, 0, 2, 2), 0, False)]]
    refuses(data, "has no class dgo; did you mean dog", classes=["dgo"])


# Splits.


def test_a_part_of_one_split_is_held_out_by_seed_and_names(data):
    def held_out(**options):
        train, test = voc_objects(root=str(data), val_fraction=0.34, test_split=None, **options)
        assert sorted(names(train) + names(test)) == [f"JPEGImages/{name}.jpg" for name in "abc"]
        return names(test)

    assert len(held_out()) == 1
    assert len({tuple(held_out(split_seed=seed)) for seed in range(8)}) > 1
    first = held_out(split_seed=5)
    (data / "ImageSets/Main/trainval.txt").write_text("b\na\nc\n")
    assert held_out(split_seed=5) == first


def test_without_lists_all_annotated_images_are_split(tmp_path):
    root = make_data(tmp_path, ("images", "annotations"))
    refuses(root, r"found 5 annotations and no ImageSets/Main; give val_fraction=0\.2 to hold out")
    train, test = voc_objects(root=str(root), val_fraction=0.4)
    assert (len(train), len(test)) == (3, 2)
    assert sorted(names(train) + names(test)) == [f"images/{name}.jpg" for name in "abcde"]
    train, test = voc_objects(root=str(root), val_fraction=0.01)
    assert len(test) == 1


def test_splits_that_cannot_be_are_refused(data):
    refuses(
        data, r"Main: found test\.txt, trainval\.txt, expected val\.txt; val_fr", FileNotFoundError, test_split="val"
    )
    refuses(data, r"Main: found test\.txt, val_fraction=0\.2 is for data without it", val_fraction=0.2)
    refuses(data, r"^test_split=null: needs val_fraction", test_split=None)
    refuses(data, r"found a, b, c in train_split=trainval and in test_split=trainval", test_split="trainval")
    for fraction in (0, 1, -0.5, 2):
        refuses(data, "val_fraction=.*: must be above 0 and below 1", val_fraction=fraction, test_split=None)
    (data / "ImageSets/Main/trainval.txt").write_text("a\n")
    refuses(data, "found 1 image, expected two or more to split", val_fraction=0.2, test_split=None)
    (data / "ImageSets/Main/trainval.txt").write_text("\n")
    refuses(data, r"trainval\.txt: found no images")
    refuses(data / "nowhere", "there is no such folder", FileNotFoundError)


# Odd files.


def test_boxes_that_reach_outside_are_cut_and_counted_once(data):
    write_image(data, "a", [object_xml(box=box_xml(0, -4, 31, 20)), object_xml(box=box_xml(1, 1, 30, 20))])
    write_image(data, "d", [object_xml(box=box_xml(29, 19, 99, 99))])
    with pytest.warns(
        UserWarning, match=r"2 boxes reach outside their images and are cut to them, .*a\.xml$"
    ) as caught:
        train, test = voc_objects(root=str(data))
    assert len(caught) == 1
    assert rows(train)[1] == [((0, 0, 30, 20), 1, False)] * 2
    assert rows(test)[0] == [((28, 18, 30, 20), 1, False)]


@pytest.mark.parametrize("box", [(31, 1, 40, 5), (1, 21, 5, 30), (-9, 1, 0, 5)])
def test_a_box_wholly_outside_is_named(data, box):
    write_image(data, "d", [object_xml(), object_xml(box=box_xml(*box))][1:])
    refuses(data, rf"d\.xml: object 1 \(dog\) has the box xmin {box[0]}, .* outside the image of 30x20 pixels$")


def test_empty_and_inside_out_annotations_are_named(data):
    write_image(data, "d", [object_xml(box=box_xml(9, 1, 7, 5))])
    refuses(data, r"d\.xml: object 1 \(dog\) has the empty box xmin 9")
    (data / "Annotations/d.xml").write_text("")
    refuses(data, r"d\.xml: no element found")
    (data / "Annotations/d.xml").unlink()
    refuses(data, r"d\.xml: there is no such file", FileNotFoundError)
    (data / "JPEGImages/d.jpg").unlink()
    refuses(data, r"JPEGImages: found no image files of d, expected \.jpg", FileNotFoundError)


def test_no_objects_at_all_is_refused(data):
    for name in "abcde":
        write_image(data, name, [])
    refuses(data, "found no objects in the annotations of 5 images")


def test_the_image_decides_where_its_annotation_states_another_size(data):
    write_image(data, "a", [object_xml(box=box_xml(1, 1, 60, 40))], stated=(40, 60))
    with pytest.warns(UserWarning, match=r"another size|reach outside") as caught:
        train, _ = voc_objects(root=str(data))
    assert sorted(str(one.message).partition(": ")[2] for one in caught) == [
        f"1 annotations have another size than their images, whose size counts, first {data}/Annotations/a.xml",
        f"1 boxes reach outside their images and are cut to them, first in {data}/Annotations/a.xml",
    ]
    assert rows(train)[1] == [((0, 0, 30, 20), 1, False)]


def test_the_size_is_that_of_the_upright_image(data):
    turned = Image.new("RGB", (20, 30))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(data / "JPEGImages/a.jpg", exif=exif)
    assert rows(voc_objects(root=str(data)).train)[1][0] == ((0, 0, 30, 20), 1, False)


def test_an_unreadable_image_keeps_its_objects_until_it_is_excluded(data):
    (data / "JPEGImages/a.jpg").write_text("not an image")
    assert len(rows(voc_objects(root=str(data)).train)[1]) == 2
