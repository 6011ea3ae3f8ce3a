"""The classification task of PASCAL VOC in small devkits made here, and errors for unexpected files."""

import pickle
import shutil

import numpy as np
import pytest

from conftest import names
from sppnet.data.sources import DATA_SOURCES, MULTI_LABEL_SOURCES, content_digests
from sppnet.data.voc import voc2007
from test_annotations import annotation_xml, object_xml

OBJECTS = {  # image -> class and whether it is difficult
    "000005": [("chair", False), ("chair", True)],
    "000007": [("car", False)],
    "000009": [("horse", False), ("person", True), ("train", True)],
    "000012": [],
    "000001": [("dog", True), ("person", False), ("train", False)],
    "000002": [("train", False), ("car", True)],
}
SPLITS = {"train": ["000005", "000009"], "val": ["000012", "000007"], "test": ["000001", "000002"]}
SPLITS["trainval"] = SPLITS["train"] + SPLITS["val"]
CLASSES = ("car", "chair", "dog", "horse", "person", "train")


def label_of(image, name):
    difficult = [is_difficult for other, is_difficult in OBJECTS[image] if other == name]
    return -1 if not difficult else 0 if all(difficult) else 1


def make_devkit(root):
    """Makes a folder in the layout of VOC2007 with all splits, class files and annotations."""
    for folder in ("ImageSets/Main", "ImageSets/Layout", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for image, objects in OBJECTS.items():
        (root / "JPEGImages" / f"{image}.jpg").write_text(f"image {image}")
        flags = [object_xml(name, f"<difficult>{int(is_difficult)}</difficult>") for name, is_difficult in objects]
        (root / "Annotations" / f"{image}.xml").write_bytes(annotation_xml(*flags))
    for split, images in SPLITS.items():
        write_lines(root, f"{split}.txt", images)
        for name in CLASSES:
            write_lines(root, f"{name}_{split}.txt", [f"{image} {label_of(image, name):2d}" for image in images])
    return root


def write_lines(root, name, lines):
    (root / "ImageSets" / "Main" / name).write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def devkit(tmp_path):
    return make_devkit(tmp_path / "data" / "VOCdevkit" / "VOC2007")


def refuses(root, words, error=ValueError, **options):
    with pytest.raises(error, match=words) as caught:
        voc2007(root=str(root), **options)
    assert str(caught.value).isprintable()


def test_labels_are_those_of_the_class_files_by_image_and_class(devkit):
    data = voc2007(root=str(devkit))
    for images, split in ((data.train, "trainval"), (data.test, "test")):
        assert images.classes == CLASSES
        assert names(images) == [f"JPEGImages/{image}.jpg" for image in SPLITS[split]]
        assert images.labels.dtype == np.int8
        assert images.labels.tolist() == [[label_of(image, name) for name in CLASSES] for image in SPLITS[split]]
        assert [images.read(i) for i in range(len(images))] == [f"image {image}".encode() for image in SPLITS[split]]
    assert data.train.labels[1].tolist() == [-1, -1, -1, 1, 0, 0]
    assert content_digests(data.test, "reading").shape == (2, 16)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_the_root_may_be_vocs_folder_or_one_of_the_two_around_it(devkit, levels):
    root = [devkit, *devkit.parents][levels]
    assert voc2007(root=str(root)).train.root == str(devkit)


@pytest.mark.parametrize("without", [("trainval", "test"), ("test",), ("trainval",)])
def test_without_class_files_the_annotations_give_the_same_labels(devkit, without):
    expected = voc2007(root=str(devkit))
    for split in without:
        for file in (devkit / "ImageSets/Main").glob(f"*_{split}.txt"):
            file.unlink()
    found = voc2007(root=str(devkit))
    for images, others in zip(found, expected, strict=True):
        assert images.classes == others.classes
        np.testing.assert_array_equal(images.labels, others.labels)
        assert images.fingerprint() == others.fingerprint()


def test_class_files_alone_are_enough(devkit):
    expected = voc2007(root=str(devkit))
    shutil.rmtree(devkit / "Annotations")
    for split in SPLITS:
        (devkit / f"ImageSets/Main/{split}.txt").unlink()
    assert [images.fingerprint() for images in voc2007(root=str(devkit))] == [
        images.fingerprint() for images in expected
    ]


def test_the_split_train_is_not_the_class_train(devkit):
    data = voc2007(root=str(devkit), train_split="train", test_split="val")
    assert data.train.classes == CLASSES
    assert [len(data.train), len(data.test)] == [2, 2]
    assert data.train.labels[:, CLASSES.index("train")].tolist() == [-1, 0]


def test_lines_may_come_in_any_order_with_other_spaces_line_ends_and_a_byte_order_mark(devkit):
    expected = voc2007(root=str(devkit)).train
    lines = [f" {image}\t{label_of(image, 'car')} \r" for image in reversed(SPLITS["trainval"])]
    write_lines(devkit, "car_trainval.txt", ["\ufeff", *lines, "", "  "])
    assert voc2007(root=str(devkit)).train.labels.tolist() == expected.labels.tolist()


def test_images_may_be_png_or_jpeg(devkit):
    (devkit / "JPEGImages/000005.jpg").rename(devkit / "JPEGImages/000005.PNG")
    (devkit / "JPEGImages/000009.jpg").rename(devkit / "JPEGImages/000009.jpeg")
    (devkit / "JPEGImages/000007.png").touch()
    found = names(voc2007(root=str(devkit)).train)
    assert found == ["JPEGImages/" + name for name in ("000005.PNG", "000009.jpeg", "000012.jpg", "000007.jpg")]


def test_the_fingerprint_changes_with_names_labels_and_classes_and_not_with_the_folder(devkit, tmp_path):
    def fingerprint(root=devkit):
        return voc2007(root=str(root)).train.fingerprint()

    prints = [fingerprint()]
    assert fingerprint(shutil.copytree(devkit, tmp_path / "copy")) == prints[0]
    write_lines(devkit, "dog_trainval.txt", [f"{image} 0" for image in SPLITS["trainval"]])
    prints.append(fingerprint())
    for split in ("trainval", "test"):
        (devkit / f"ImageSets/Main/dog_{split}.txt").rename(devkit / f"ImageSets/Main/fox_{split}.txt")
    prints.append(fingerprint())
    (devkit / "JPEGImages/000005.jpg").rename(devkit / "JPEGImages/000005.png")
    prints.append(fingerprint())
    assert len(set(prints)) == 4


def test_images_survive_pickling_and_hold_no_object_per_image(devkit):
    images = voc2007(root=str(devkit)).train
    assert not any(isinstance(value, list | dict) for value in vars(images).values())
    copy = pickle.loads(pickle.dumps(images))
    assert names(copy) == names(images)
    assert copy.fingerprint() == images.fingerprint()


def test_images_with_several_labels_are_no_source_to_train_on():
    assert set(MULTI_LABEL_SOURCES) == {"voc2007", "multilabel"}
    assert not set(MULTI_LABEL_SOURCES) & set(DATA_SOURCES)


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("car_trainval.txt", ["000005  1", "000007"], r"car_trainval\.txt:2: found '000007', expected the name of an"),
        ("car_trainval.txt", ["", "000005  2"], r"car_trainval\.txt:2: found '000005  2', expected the name of an im"),
        ("car_trainval.txt", ["000005  1.0"], r"car_trainval\.txt:1: found '000005  1\.0', expected"),
        ("car_trainval.txt", ["000005  1\x1b"], r"car_trainval\.txt:1: found '000005  1\\x1b', expected"),
        ("car_trainval.txt", 2 * ["000005  1"], r"car_trainval\.txt:2: found 000005 a second time"),
        ("trainval.txt", ["000005", "000007", "000005"], r"trainval\.txt:3: found 000005 a second time"),
        (
            "car_trainval.txt",
            ["000005 1", "000009 1", "000012 1"],
            r"car_trainval\.txt: has other images than the other files of trainval: 000007$",
        ),
        ("trainval.txt", ["000005"], r"car_trainval\.txt: has other images .*: 000007, 000009, 000012$"),
        ("trainval.txt", [], r"Main: found no images in the files of trainval$"),
    ],
)
def test_wrong_lines_are_refused_by_file_and_line(devkit, name, lines, words):
    write_lines(devkit, name, lines)
    refuses(devkit, words)


def test_missing_folders_and_splits_are_named(devkit, tmp_path):
    refuses(tmp_path / "nowhere", "nowhere: there is no such folder", FileNotFoundError)
    refuses(devkit / "ImageSets", "found the folders Layout, Main, expected ImageSets/Main there,", FileNotFoundError)
    refuses(devkit, "found the splits test, train, trainval, val, expected best$", FileNotFoundError, test_split="best")
    shutil.rmtree(devkit / "JPEGImages")
    refuses(devkit, "JPEGImages: there is no such folder", FileNotFoundError)


def test_a_newer_voc_beside_it_is_not_taken_for_voc2007(devkit):
    devkit.rename(devkit.with_name("VOC2012"))
    refuses(devkit.parent, "VOCdevkit: found the folders VOC2012, expected ImageSets/Main there", FileNotFoundError)
    assert len(voc2007(root=str(devkit.with_name("VOC2012"))).train) == 4


def test_missing_images_annotations_and_class_files_are_named(devkit):
    (devkit / "JPEGImages/000012.jpg").unlink()
    refuses(devkit, r"JPEGImages: found no image files of 000012, expected \.jpg", FileNotFoundError)
    (devkit / "JPEGImages/000012.jpg").touch()
    (devkit / "ImageSets/Main/dog_test.txt").unlink()
    refuses(devkit, r"Main: found no files dog_test\.txt, expected one for each class: car, chair, dog, horse, person")
    for file in (devkit / "ImageSets/Main").glob("*_test.txt"):
        file.unlink()
    (devkit / "Annotations/000002.xml").unlink()
    refuses(devkit, r"Annotations/000002\.xml: there is no such file", FileNotFoundError)
    (devkit / "Annotations/000002.xml").write_bytes(annotation_xml(object_xml("zebra")))
    refuses(devkit, r"found no files zebra_trainval\.txt")


def test_a_name_that_leads_out_of_the_folders_is_no_image(devkit):
    (devkit / "outside.jpg").touch()
    (devkit / "outside.xml").write_bytes(annotation_xml(object_xml()))
    for file in (devkit / "ImageSets/Main").glob("*_test.txt"):
        file.unlink()
    write_lines(devkit, "test.txt", ["../outside"])
    refuses(devkit, r"found no image files of \.\./outside", FileNotFoundError)


def test_images_without_any_object_are_refused(devkit):
    for file in (devkit / "ImageSets/Main").glob("*_*.txt"):
        file.unlink()
    for file in (devkit / "Annotations").iterdir():
        file.write_bytes(annotation_xml())
    refuses(devkit, "Annotations: found no objects in the images of trainval and test")


@pytest.mark.parametrize("splits", [("trainval", "trainval"), ("trainval", "val")])
def test_an_image_in_both_splits_is_named(devkit, splits):
    shared = ", ".join(sorted(SPLITS[splits[1]]))
    words = f"found {shared} in train_split={splits[0]} and in test_split={splits[1]}, expected different images"
    refuses(devkit, words, train_split=splits[0], test_split=splits[1])
