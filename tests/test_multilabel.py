"""Tables of images with several labels each: what is read, parts, and errors."""

import re

import numpy as np
import pytest

from conftest import make_tree, names
from sppnet.data.multilabel import multilabel
from sppnet.transfer.protocols import open_transfer_data
from test_table_images import write, write_rows

ROWS = [("0", "sea;beach"), ("1", "sea"), ("2", ""), ("3", " city ; sea;;"), ("4", "beach"), ("5", "city"), ("6", "")]


@pytest.fixture
def photos(tmp_path):
    return make_tree(tmp_path / "photos", {"a": 7})


def image(number):
    return f"a/image_{number}.jpg"


def labels_by_name(*parts):
    """Returns image -> the set of its labels, checked to be 1 or -1."""
    found = {}
    for part in parts:
        assert part.labels.dtype == np.int8
        assert set(np.unique(part.labels)) <= {-1, 1}
        for name, row in zip(names(part), part.labels, strict=True):
            found[name] = {part.classes[i] for i in np.flatnonzero(row == 1)}
    return found


EXPECTED = {image(number): {name.strip() for name in labels.split(";") if name.strip()} for number, labels in ROWS}


@pytest.mark.parametrize("form", ["one row", "several rows", "both", "bars"])
def test_labels_are_in_one_row_or_several(photos, form):
    found = [(image(number), labels) for number, labels in ROWS]
    separator = "|" if form == "bars" else None if form == "several rows" else ";"
    if form == "several rows":
        found = [(path, name) for path, labels in found for name in labels.split(";") if name.strip() or not labels]
    if form == "both":
        found += [(image(0), "beach"), ("./" + image(1), "sea;sea")]
    if form == "bars":
        found = [(path, labels.replace(";", "|")) for path, labels in found]
    file = write_rows(photos / "photos.csv", found)
    train, test = multilabel(file=file, label_separator=separator, val_fraction=0.4)
    assert (len(train), len(test)) == (4, 3)
    assert train.classes == test.classes == ("beach", "city", "sea")
    assert labels_by_name(train, test) == EXPECTED
    assert train.read(0).decode() == train.name(0)


def test_a_random_split_depends_on_seed_and_paths_only(photos):
    found = [(image(number), labels) for number, labels in ROWS]
    first = multilabel(file=write_rows(photos / "one.csv", found))
    again = multilabel(file=write_rows(photos / "two.csv", [*found[::-1], (image(1), "beach")]))
    assert (names(first.train), names(first.test)) == (names(again.train), names(again.test))
    seeds = {tuple(names(multilabel(file=str(photos / "one.csv"), split_seed=seed).test)) for seed in range(9)}
    assert len(seeds) > 3
    assert first.train.fingerprint() != again.train.fingerprint()


def test_an_image_in_two_spellings_is_one_image(photos):
    (photos / "link").symlink_to(photos / "a")
    found = [(image(number), labels) for number, labels in ROWS]
    others = [(f"link/image_{number}.jpg", "moon") for number, _ in ROWS]
    splits = multilabel(file=write_rows(photos / "t.csv", [*others, *found]), val_fraction=0.4)
    assert labels_by_name(*splits) == {name: labels | {"moon"} for name, labels in EXPECTED.items()}
    once = multilabel(file=write_rows(photos / "once.csv", found), val_fraction=0.4)
    assert [names(part) for part in splits] == [names(part) for part in once]
    line = r"link.csv:2: link/image_0.jpg is among the training images, .*once.csv:2, which names it a/.*, and 6 more"
    with pytest.raises(ValueError, match=line):
        multilabel(file=str(photos / "once.csv"), val_file=write_rows(photos / "link.csv", others))
    rows = [(path, labels, part) for part, of_part in (("train", found), ("val", others)) for path, labels in of_part]
    with pytest.raises(ValueError, match="is among the training images"):
        multilabel(file=write_rows(photos / "s.csv", rows, ("path", "label", "split")), split_column="split")


def test_parts_by_column_and_by_file(photos):
    found = [(image(number), labels, "test" if int(number) > 4 else "train") for number, labels in ROWS]
    file = write_rows(photos / "photos.csv", found, ("path", "label", "split"))
    train, test = multilabel(file=file, split_column="split")
    assert (names(train), names(test)) == ([image(i) for i in range(5)], [image(5), image(6)])
    assert labels_by_name(train, test) == EXPECTED
    parts = [[row[:2] for row in part] for part in (found[:5], found[5:])]
    files = [write_rows(photos / f"{i}.csv", part) for i, part in enumerate(parts)]
    by_file = multilabel(file=files[0], val_file=files[1])
    assert [part.fingerprint() for part in by_file] == [train.fingerprint(), test.fingerprint()]


def test_labels_of_images_in_no_part_are_no_classes(photos):
    parts = ("train", "val", "test")
    found = [(image(i), ("sea", "city", "moon")[i % 3], parts[i % 3]) for i in range(6)]
    file = write_rows(photos / "photos.csv", found, ("path", "label", "split"))
    with pytest.warns(UserWarning, match="validation uses the rows whose split is val, not test$"):
        assert multilabel(file=file, split_column="split").train.classes == ("city", "sea")


def test_chosen_classes_keep_all_images(photos):
    file = write_rows(photos / "photos.csv", [(image(number), labels) for number, labels in ROWS])
    train, test = multilabel(file=file, classes=["sea", "beach"])
    assert labels_by_name(train, test) == {name: labels & {"sea", "beach"} for name, labels in EXPECTED.items()}


def test_transfer_opens_it_as_one_fixed_split(photos):
    found = [(image(number), labels, "val" if int(number) > 3 else "train") for number, labels in ROWS]
    file = write_rows(photos / "photos.csv", found, ("path", "label", "split"))
    data = open_transfer_data(
        "multilabel", file=file, split_column="split", classes=["sea", "city"], exclude=[image(0)]
    )
    assert (data.one_label, data.classes, data.truth.tolist()) == (
        False, ("city", "sea"), [[-1, 1], [-1, -1], [1, 1], [-1, -1], [1, -1], [-1, -1]]
    )  # fmt: skip
    assert [indices.tolist() for indices in data.splits[0]] == [[0, 1, 2], [3, 4, 5]]
    assert len(data.splits) == 1
    with pytest.raises(ValueError, match="splits=2: the parts of this data are fixed"):
        open_transfer_data("multilabel", splits=2, file=file)


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        (
            "path,label\na/image_0.jpg,x\na/no.jpg,y\n",
            {},
            r"t.csv:3: there is no a/no.jpg in .*photos \(no file for 1 of ",
        ),
        ("path,label\na/image_0.jpg,x\na\0b/c/d.jpg,y\n", {}, r"t.csv:3: there is no a\\x00b/c/d.jpg in .*photos"),
        ("path,label\na/image_0.jpg,\na/image_1.jpg,;\n", {}, "t.csv: found no labels in the column label"),
        ("path,label\na/image_0.jpg,x;y\n", {}, "t.csv: found one image, expected two or more to split"),
        ("path,label\na/image_0.jpg,x\na/image_1.jpg,y\n", {"val_fraction": 0}, "val_fraction=0: must be above"),
        ("path,label\na/image_0.jpg,x\na/image_1.jpg,y\n", {"classes": ["z"]}, "t.csv has no class z; there are x, y"),
        ("path,tags\na/image_0.jpg,x\n", {}, "t.csv: found the columns path, tags, expected label"),
        (
            "path,label,split\na/image_0.jpg,x,train\na/image_0.jpg,y,val\n",
            {"split_column": "split"},
            "t.csv:3: a/image_0.jpg is among the training images, .*t.csv:2$",
        ),
        ("path,label\na/image_0.jpg,x\n", {"label_separator": ""}, "label_separator='': must be text, or null"),
    ],
)
def test_wrong_tables_are_refused_in_one_line(photos, text, options, line):
    with pytest.raises((ValueError, FileNotFoundError), match=line) as error:
        multilabel(file=write(photos / "t.csv", text), **options)
    assert not re.search("\n", str(error.value))
