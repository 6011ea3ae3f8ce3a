"""Classes in names of files, and lists of images: what is read, splits, and errors."""

import os

import numpy as np
import pytest
from omegaconf import open_dict

from conftest import assert_refuses, make_tree, names, rows
from sppnet.commands.naming import run_directory
from sppnet.data.folders import unsplit_folder
from sppnet.data.sources import has_fixed_parts, open_data
from test_configs import composed

WORDNET = r"^(n\d+)_"


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file)
    return str(root)


@pytest.fixture
def flat(tmp_path):
    """A folder of images of three classes, in one folder or below it."""
    kinds = ("n01440764_tench", "n02_cat", "n10_dog")
    return touch(tmp_path, *(f"{'deep/' * (i % 2)}{kind}_{i}.JPEG" for kind in kinds for i in range(10)), "notes.txt")


# Classes in names.


def test_classes_are_in_names_of_files_in_any_folder(flat):
    data = open_data("folder", root=flat, class_pattern=WORDNET)
    assert data.classes == ("n01440764", "n02", "n10")
    assert np.bincount(data.val.labels).tolist() == [2, 2, 2]
    everything = rows(data.train) + rows(data.val)
    assert len(everything) == 30
    for content, label, name in everything:
        assert content == name.encode()
        assert name.removeprefix("deep/").startswith(data.classes[label] + "_")
    images, nothing = unsplit_folder(root=flat, class_pattern=WORDNET, classes=["n10"])
    assert (len(images), len(nothing), images.classes) == (10, 0, ("n10",))


def test_the_split_is_that_of_class_folders_of_the_same_names(flat, tmp_path):
    data = open_data("folder", root=flat, class_pattern=WORDNET, val_fraction=0.4, split_seed=3)
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"{n},{n.split('_')[0][-9:].removeprefix('deep/')}\n"
                                              for n in names(data.train) + names(data.val)))  # fmt: skip
    of_table = open_data("table", file=str(table), val_fraction=0.4, split_seed=3)
    assert (rows(data.train), rows(data.val)) == (rows(of_table.train), rows(of_table.val))


def test_a_pattern_works_in_train_and_val_folders(tmp_path):
    root = touch(tmp_path, "train/cat.1.jpg", "train/x/dog.2.jpg", "val/dog.3.jpg", "train/10.1.jpg", "val/10.4.jpg")
    data = open_data("folder", root=root, class_pattern=r"^(.*?)\.")
    assert data.classes == data.val.classes == ("10", "cat", "dog")
    assert [(label, name) for _, label, name in rows(data.val)] == [(0, "val/10.4.jpg"), (2, "val/dog.3.jpg")]
    touch(tmp_path, "val/bee.1.jpg")
    assert_refuses("found validation images of bee, and no training images", root=root, class_pattern=r"^(.*?)\.")


def test_numbers_in_names_are_sorted_by_value(tmp_path):
    root = touch(tmp_path, *(f"age{age}_{i}.jpg" for age in (2, 10, 1, 33) for i in range(2)))
    assert open_data("folder", root=root, class_pattern=r"age(\d+)").classes == ("1", "2", "10", "33")


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (r"^(dog|n\d+)_t", r"class_pattern=\^\(dog\|n\\d\+\)_t finds no class in 20 of 30 names: deep/n02_cat_1"),
        (r"^(x?)", r"finds no class in 30 of 30 names"),
        (r"^(x)?n", r"finds no class in 30 of 30 names"),
        (r"^n\d+_", r"has 0 groups, expected one: \(\.\.\.\) around the part that is the class"),
        (r"^(n)(\d+)_", "has 2 groups, expected one"),
        (r"^(n\d+_", "is no regular expression"),
        ("", "has 0 groups"),
        ("^(n)", "class_pattern=.*: found only the class n in 30 training images, expected two or more$"),
        (r"(\d+)\.", "found 3 images|expected two or more to split|10 classes"),
    ],
)
def test_wrong_patterns_are_refused_in_one_line(flat, pattern, line):
    if pattern == r"(\d+)\.":
        assert open_data("folder", root=flat, class_pattern=pattern).classes == tuple(map(str, range(10)))
        return
    assert_refuses(line, root=flat, class_pattern=pattern)


def test_a_pattern_needs_images_and_classes_of_text(tmp_path):
    assert_refuses("found no images, expected files such as", root=str(tmp_path), class_pattern="^(a)")
    for name in (b"caf\xe9_1.jpg", b"tea_1.jpg"):
        (tmp_path / os.fsdecode(name)).touch()
    assert_refuses(r"the name of a class must be UTF-8, and is caf\\xe9", root=str(tmp_path), class_pattern="^(.*?)_")


# Lists.


@pytest.fixture
def listed(tmp_path):
    """A folder of two classes with lists of five images in all."""
    root = make_tree(tmp_path / "data", {"a": 4, "b/deep": 3, "junk": 2})
    touch(root, "other.jpg")
    (root / "train.txt").write_text("b/deep/image_0.jpg\na/image_1.jpg\n\n./a//image_0.jpg \n")
    (root / "lists").mkdir()
    (root / "lists/val.txt").write_bytes(b"\xef\xbb\xbfa/image_3.jpg\r\nb/deep/image_2.jpg\r\n")
    return root


def lists(root, **options):
    return {"root": str(root), "train_list": "train.txt", "val_list": "lists/val.txt", **options}


def test_lists_name_the_images_and_other_files_are_ignored(listed):
    data = open_data("folder", **lists(listed))
    assert data.classes == ("a", "b")
    assert names(data.train) == ["a/image_0.jpg", "a/image_1.jpg", "b/deep/image_0.jpg"]
    assert [(label, name) for _, label, name in rows(data.val)] == [(0, "a/image_3.jpg"), (1, "b/deep/image_2.jpg")]
    assert open_data("folder", **lists(listed, classes=["b"])).val.classes == ("b",)
    absolute = open_data("folder", **lists(listed, val_list=str(listed / "lists/val.txt")))
    assert rows(absolute.val) == rows(data.val)


def test_lists_may_leave_out_suffixes_and_name_train_and_val_folders(tmp_path):
    root = make_tree(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    touch(root, "train/a/image_0.png", "train/a/image_1.txt")
    (root / "one").write_text("train/a/image_0\ntrain/a/image_1\nval/b/image_0.jpg\n")
    (root / "two").write_text("val/a/image_0\n")
    data = open_data("folder", root=str(root), train_list="one", val_list="two")
    assert names(data.train) == ["train/a/image_0.jpg", "train/a/image_1.jpg", "val/b/image_0.jpg"]
    assert (data.classes, names(data.val)) == (("a", "b"), ["val/a/image_0.jpg"])


def test_lists_and_patterns_go_together(flat, tmp_path):
    (tmp_path / "one.txt").write_text("n02_cat_2\nn10_dog_4\ndeep/n10_dog_3.JPEG")
    (tmp_path / "two.txt").write_text("n10_dog_8\n")
    options = {"root": flat, "train_list": "one.txt", "val_list": "two.txt"}
    data = open_data("folder", class_pattern=WORDNET, **options)
    assert (data.classes, data.train.labels.tolist(), data.val.labels.tolist()) == (("n02", "n10"), [0, 1, 1], [1])
    assert_refuses("one.txt:1: n02_cat_2.JPEG is in no folder of a class; class_pattern= takes classes from", **options)


def test_one_list_is_split_by_a_fraction(listed):
    (listed / "train.txt").write_text(
        "".join(f"{folder}/image_{i}.jpg\n" for folder in ("a", "b/deep") for i in (0, 2))
    )
    data = open_data("folder", root=str(listed), train_list="train.txt", val_fraction=0.5)
    assert (len(data.train), len(data.val), data.val.classes) == (2, 2, ("a", "b"))
    assert not has_fixed_parts("folder", {"root": str(listed), "train_list": "train.txt"})
    assert has_fixed_parts("folder", lists(listed))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "train.txt: lists no images"),
        (
            "a/image_0.jpg\n\na/image_7.jpg\nb/no",
            r"train.txt:3: there is no a/image_7.jpg in .*data \(no file for 2 of 3 lines",
        ),
        ("a/image_0.jpg 0\nb/deep/image_0.jpg 1", r"train.txt:1: there is no a/image_0.jpg 0 in"),
        ("a/image_0.jpg\nb/deep/image_0\na/image_0", "train.txt:3: found a/image_0.jpg a second time, after line 1"),
        ("a/image_0.jpg\na/image_1.jpg", "train.txt: found only the class a in 2 training images"),
        ("a/image_0.jpg\nother.jpg", "train.txt:2: other.jpg is in no folder of a class; class_pattern="),
        ("a/image_0.jpg\na/image_3.jpg\nb/deep/image_2.jpg", "val.txt: lists 2 images of train_list too, such as a/im"),
        ("a/image_0.jpg\njunk/image_0.jpg", "found validation images of b, and no training images"),
        (f"a/image_0.jpg\n{'x' * 300}/a", r"train.txt:2: there is no x{300}/a in .*data \(no file for 1 of 2 lines"),
        ("a/image_0.jpg\na\0b/c.jpg", r"train.txt:2: there is no a\\x00b/c.jpg in .*data"),
        ("a\nb/deep/image_0.jpg", "train.txt:1: there is no a in"),
    ],
)
def test_wrong_lists_are_refused_in_one_line(listed, text, line):
    (listed / "train.txt").write_text(text)
    assert_refuses(line, error=(ValueError, FileNotFoundError), **lists(listed))


def test_images_of_lists_are_compared_in_any_spelling(listed):
    (listed / "link").symlink_to(listed / "a")
    pattern = {"class_pattern": r"_(\d)\."}
    (listed / "train.txt").write_text("a/image_0.jpg\na/image_1.jpg\n")
    for path in (str(listed / "a/image_1.jpg"), "junk/../a/image_1", "link/image_1.jpg"):
        (listed / "lists/val.txt").write_text(path)
        line = "val.txt: lists an image of train_list too, such as .*image_1.jpg$"
        assert path in assert_refuses(line, **lists(listed, **pattern))
        (listed / "twice.txt").write_text(f"a/image_0.jpg\na/image_1.jpg\n\n{path}")
        line = "twice.txt:4: found .*image_1.jpg a second time, after line 2$"
        assert path in assert_refuses(line, **lists(listed, **pattern, train_list="twice.txt"))


def test_lists_that_do_not_go_together_are_refused(listed, monkeypatch):
    root = str(listed)
    assert_refuses("val_list=v.txt: needs train_list=FILE beside it", root=root, val_list="v.txt")
    assert_refuses("train_list=t: found neither val_list nor val_fraction, expected one", root=root, train_list="t")
    line = "train_list=train.txt: found both val_list and val_fraction, expected one of them"
    assert_refuses(line, **lists(listed, val_fraction=0.1))
    monkeypatch.chdir(listed / "lists")
    line = f"data/val.txt: there is no such file; give {listed}/lists/val.txt"
    assert_refuses(line, error=FileNotFoundError, **lists(listed, val_list="val.txt"))
    assert_refuses("none.txt: there is no such file$", error=FileNotFoundError, **lists(listed, val_list="none.txt"))


# Names of runs.


def test_settings_that_are_null_leave_the_names_of_runs_as_they_were():
    base = composed("data=folder", "data.root=/disk1/flowers")
    name = run_directory(base).path
    for key in ("class_pattern", "train_list", "val_list"):
        other = composed("data=folder", "data.root=/disk1/flowers", f"data.{key}=x")
        assert run_directory(other).path != name
    with open_dict(base):
        for key in ("class_pattern", "train_list", "val_list"):
            del base.data[key]
    assert run_directory(base).path == name


def test_a_table_names_a_run_by_its_folder_and_file(monkeypatch, tmp_path):
    (tmp_path / "flowers").mkdir()
    monkeypatch.chdir(tmp_path / "flowers")
    paths = {
        file: run_directory(composed("data=table", f"data.file={file}")).path
        for file in ("one.csv", "/disk2/flowers/one.csv", "../flowers/one.csv", "two.csv", "/disk2/birds/one.csv")
    }
    assert len(set(paths.values())) == 3
    assert paths["one.csv"] == paths["/disk2/flowers/one.csv"] == paths["../flowers/one.csv"]
