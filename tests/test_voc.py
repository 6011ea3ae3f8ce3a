"""PASCAL VOC in small devkits made here: annotations, the classification task, and errors for unexpected files."""

import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import names
from sppnet.data.sources import DATA_SOURCES, MULTI_LABEL_SOURCES, content_digests
from sppnet.data.voc import Annotation, read_annotation, voc2007

# Annotations.


def box_xml(xmin=48, ymin=240, xmax=195, ymax=371):
    return f"<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>"


def object_xml(name="dog", rest="", box=None):
    return f"<object><name>{name}</name>{rest}{box_xml() if box is None else box}</object>"


def annotation_xml(*objects, size="<size><width>353</width><height>500</height><depth>3</depth></size>"):
    return f"<annotation><folder>VOC2007</folder>{size}{''.join(objects)}</annotation>".encode()


DEVKIT_XML = b"""<annotation>
	<folder>VOC2007</folder>
	<filename>000001.jpg</filename>
	<size>
		<width>353</width>
		<height>500</height>
		<depth>3</depth>
	</size>
	<object>
		<name>dog</name>
		<pose>Left</pose>
		<truncated>1</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>48</xmin>
			<ymin>240</ymin>
			<xmax>195</xmax>
			<ymax>371</ymax>
		</bndbox>
	</object>
	<object>
		<name>person</name>
		<truncated>0</truncated>
		<difficult>1</difficult>
		<bndbox><xmax>353</xmax><xmin>1</xmin><ymax>500</ymax><ymin>1</ymin></bndbox>
		<part><name>head</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>7</xmax><ymax>8</ymax></bndbox></part>
	</object>
</annotation>
"""


def test_an_annotation_of_the_devkit_counts_from_zero_with_half_open_boxes(tmp_path):
    file = tmp_path / "000001.xml"
    file.write_bytes(DEVKIT_XML)
    annotation = read_annotation(file, "000001")
    assert annotation == read_annotation(DEVKIT_XML, "000001")
    assert (annotation.width, annotation.height) == (353, 500)
    dog, person = annotation.objects
    assert dog == ("dog", (47, 239, 195, 371), False, True)
    assert person == ("person", (0, 0, 353, 500), True, False)


@given(st.lists(st.integers(1, 500), min_size=4, max_size=4))
def test_a_half_open_box_holds_exactly_the_pixels_of_vocs_box(corners):
    xmin, ymin, xmax, ymax = corners
    content = annotation_xml(object_xml(box=box_xml(xmin, ymin, xmax, ymax)))
    if xmax < xmin or ymax < ymin:
        with pytest.raises(ValueError, match=rf"^x: object 1 \(dog\) has the empty box xmin {xmin}, ymin {ymin}, "):
            read_annotation(content, "x")
        return
    x0, y0, x1, y1 = read_annotation(content, "x").objects[0].box
    assert list(range(int(x0), int(x1))) == [pixel - 1 for pixel in range(xmin, xmax + 1)]
    assert list(range(int(y0), int(y1))) == [pixel - 1 for pixel in range(ymin, ymax + 1)]


def test_what_real_files_lack_or_have_otherwise():
    assert read_annotation(b"<annotation/>", "x") == Annotation(None, None, ())
    zero = "<size><width>0</width><height> 0 </height></size>"
    assert read_annotation(annotation_xml(size=zero), "x") == Annotation(None, None, ())
    assert read_annotation(b"\xef\xbb\xbf<?xml version='1.0'?>" + annotation_xml(), "x").height == 500
    (found,) = read_annotation(annotation_xml(object_xml(" dog\n", box=box_xml("45.70", -3, 700, 371))), "x").objects
    assert found == ("dog", (44.70, -4, 700, 371), False, False)
    (found,) = read_annotation(annotation_xml(object_xml(rest="<difficult/><truncated> 1 </truncated>")), "x").objects
    assert found[2:] == (False, True)


BOMB = "".join(f'<!ENTITY a{i} "{10 * f"&a{i - 1};"}">' for i in range(1, 10))
BOMB = f'<!DOCTYPE annotation [<!ENTITY a0 "dog">{BOMB}]><annotation>&a9;</annotation>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BOMB.encode(), "found a DOCTYPE"),
        (b'<?xml version="1.0" encoding="UTF-16"?>' + BOMB.encode(), "found a DOCTYPE"),
        (BOMB.encode("utf-16"), "can't decode byte"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "found a DOCTYPE"),
        (annotation_xml(" " * 2_000_000), "more than 2,000,000 bytes"),
        (b"", "no element found"),
        (b"<annotation>", "no element found"),
        (b"<annotation>&dog;</annotation>", "undefined entity"),
        (b"<html/>", "found <html>, expected <annotation>"),
        (annotation_xml(object_xml(), object_xml(box="")), r"object 2 \(dog\) has None as <bndbox/xmin>"),
        (
            annotation_xml(
                object_xml(""),
            ),
            "object 1 has no <name>",
        ),
        (annotation_xml(object_xml(box=box_xml(xmin="left"))), r"\(dog\) has 'left' as <bndbox/xmin>, expected a num"),
        (annotation_xml(object_xml(box=box_xml(xmax="inf"))), r"has 'inf' as <bndbox/xmax>"),
        (annotation_xml(object_xml(box=box_xml(ymax="nan"))), r"has 'nan' as <bndbox/ymax>"),
        (annotation_xml(object_xml(box=box_xml(ymin=9, ymax=8))), r"has the empty box .*ymin 9, .*ymax 8$"),
        (annotation_xml(object_xml(rest="<difficult>yes</difficult>")), "has 'yes' as <difficult>, expected 0 or 1"),
        (annotation_xml(object_xml("a\x1b[2J")), "not well-formed"),
        (annotation_xml(size="<size><width>-5</width></size>"), "has the width -5"),
        (annotation_xml(size="<size><width>wide</width></size>"), "has 'wide' as <size/width>"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_other_files_are_refused_by_name_and_object(tmp_path, content, words):
    file = tmp_path / "x.xml"
    file.write_bytes(content)
    for source in (content, file):
        with pytest.raises(ValueError, match=rf"^x\.xml: .*{words}") as error:
            read_annotation(source, "x.xml")
        assert str(error.value).isprintable()


def test_a_deep_or_missing_file_ends_in_an_error_or_an_annotation(tmp_path):
    deep = 100_000 * b"<a>" + 100_000 * b"</a>"
    assert read_annotation(b"<annotation>" + deep + b"</annotation>", "x").objects == ()
    with pytest.raises(FileNotFoundError, match=r"^x\.xml: there is no such file$"):
        read_annotation(tmp_path / "x.xml", "x.xml")


# The classification task.

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
    assert set(MULTI_LABEL_SOURCES) == {"voc2007"}
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
