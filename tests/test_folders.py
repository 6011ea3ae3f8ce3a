"""Folders of image files in small trees made here: what is read, how it is split, and errors for unexpected layouts."""

import os
import pickle
import re
import shutil
from hashlib import sha256

import numpy as np
import pytest

from conftest import assert_refuses, make_tree, names, rows
from sppnet.data.folders import unsplit_folder
from sppnet.data.image_files import ImageFiles
from sppnet.data.sources import open_data


def test_folder_reads_files_labels_and_names(tree):
    data = open_data("folder", root=str(tree))
    assert data.classes == data.train.classes == data.val.classes == ("a", "b")
    assert len(data.train) == 5
    assert names(data.train) == [
        f"train/{name}/image_{i}.jpg" for name, i in zip("aabbb", (0, 1, 0, 1, 2), strict=True)
    ]
    assert data.train.labels.dtype == np.int64
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    for split in (data.train, data.val):
        for i in range(len(split)):
            assert split.read(i) == split.name(i).encode()
            assert data.classes[split.labels[i]] == split.name(i).split("/")[1]
    with pytest.raises(IndexError):
        data.train.read(5)


def test_order_is_by_class_and_path(tree):
    make_tree(tree, {"train/b": 40, "train/a/nested": 3, "train/a": 30})
    found = names(open_data("folder", root=str(tree)).train)
    assert len(found) == 73
    assert found == sorted(found)


@pytest.mark.parametrize("val_name", ["validation", "test"])
def test_names_of_the_val_folder(tree, val_name):
    (tree / "val").rename(tree / val_name)
    assert names(open_data("folder", root=str(tree)).val)[0] == f"{val_name}/a/image_0.jpg"


def test_val_is_used_before_test_and_a_warning_names_the_unused_folder(tree):
    shutil.copytree(tree / "val", tree / "test")
    line = (
        f"{tree}: validation uses val/, not test/; test on it by "
        f"python scripts/evaluate.py data=folder data.root={tree}/test part=all"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(line)}$"):
        data = open_data("folder", root=str(tree))
    assert all(name.startswith("val/") for name in names(data.val))


def test_only_visible_images_count_at_any_depth(tree):
    make_tree(tree, {"train/a/deep/deeper": 1, "train/.hidden": 1, "train/a/.cache": 1})
    for name in ("._image_0.jpg", "notes.txt", "no_suffix", "jpg"):
        (tree / "train/a" / name).touch()
    (tree / "train/a/UPPER case.JPEG").touch()
    (tree / "train/README.md").touch()
    (tree / "train/a/ring").symlink_to(tree / "train", target_is_directory=True)
    data = open_data("folder", root=str(tree))
    found = {name.removeprefix("train/a/") for name in names(data.train) if name.startswith("train/a/")}
    assert found == {"UPPER case.JPEG", "deep/deeper/image_0.jpg", "image_0.jpg", "image_1.jpg"}


def test_linked_class_folders_and_files_are_read(tree):
    (tree / "train/c").symlink_to(tree / "train/a", target_is_directory=True)
    (tree / "val/c").mkdir()
    (tree / "val/c/link.jpg").symlink_to(tree / "val/a/image_0.jpg")
    data = open_data("folder", root=str(tree))
    assert data.classes == ("a", "b", "c")
    assert rows(data.val)[-1] == (b"val/a/image_0.jpg", 2, "val/c/link.jpg")


def test_broken_links_among_class_folders_are_no_classes(tree):
    (tree / "train" / "gone").symlink_to("nowhere")
    (tree / "train" / "ring").symlink_to(tree / "train" / "ring")
    assert open_data("folder", root=str(tree)).classes == ("a", "b")


def test_a_class_whose_name_is_not_text_is_named(tree):
    os.mkdir(os.fsencode(tree / "train") + b"/caf\xe9")
    assert_refuses(r"train/caf\\xe9: the name of a class must be UTF-8; rename the folder", root=str(tree))


def test_names_that_are_not_ascii(tree):
    (tree / "train/a/grün 猫.jpg").write_text("x")
    data = open_data("folder", root=str(tree))
    assert (b"x", 0, "train/a/grün 猫.jpg") in rows(data.train)


def test_a_class_without_images_is_refused(tree):
    make_tree(tree, {"train/empty": 0, "val/empty": 1})
    assert_refuses(r"train/empty: found no images", root=str(tree))


def test_images_without_class_folders_are_refused(tree):
    shutil.rmtree(tree / "train")
    make_tree(tree, {"train": 3})
    assert_refuses(
        r"train: found 3 images lying flat and the folders: none, expected a folder for each", root=str(tree)
    )


def test_a_folder_one_level_too_high_is_refused(tree):
    assert_refuses("found 0 images lying flat and the folders: tree, expected", root=str(tree.parent))


def test_empty_and_missing_folders_and_files_are_refused(tmp_path):
    assert_refuses(f"{tmp_path}: found 0 images", root=str(tmp_path))
    assert_refuses("nowhere: there is no such folder", error=FileNotFoundError, root=str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    assert_refuses("file: found a file, expected a folder", root=str(tmp_path / "file"))


def test_only_train_or_only_val(tree):
    shutil.rmtree(tree / "val")
    assert_refuses("found train/, expected val/ beside it, or val_fraction", root=str(tree))
    (tree / "train").rename(tree / "test")
    assert_refuses("found test/, expected train/ beside it", root=str(tree))


# Splits.


def test_single_tree_gives_a_fifth_of_every_class_to_val(tmp_path):
    make_tree(tmp_path, {"a": 10, "b": 33, "c": 2})
    data = open_data("folder", root=str(tmp_path))
    assert np.bincount(data.val.labels).tolist() == [2, 7, 1]
    assert np.bincount(data.train.labels).tolist() == [8, 26, 1]
    assert sorted(names(data.train) + names(data.val)) == sorted(
        str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*")
    )
    assert data.val.read(0).decode() == data.val.name(0)


def test_val_fraction_splits_train(tree):
    shutil.rmtree(tree / "val")
    data = open_data("folder", root=str(tree), val_fraction=0.5)
    assert np.bincount(data.train.labels).tolist() == [1, 1]
    assert np.bincount(data.val.labels).tolist() == [1, 2]
    assert all(name.startswith("train/") for name in names(data.train) + names(data.val))


def test_a_split_depends_on_seed_and_names_only(tmp_path):
    counts = {"a": 40, "b": 40}
    first = open_data("folder", root=str(make_tree(tmp_path / "one", counts)), split_seed=3)
    again = open_data("folder", root=str(make_tree(tmp_path / "two", dict(reversed(counts.items())))), split_seed=3)
    assert names(first.val) == names(again.val)
    assert names(first.val) != names(open_data("folder", root=str(tmp_path / "two"), split_seed=4).val)
    make_tree(tmp_path / "two", {"another": 5})
    assert set(names(first.val)) < set(names(open_data("folder", root=str(tmp_path / "two"), split_seed=3).val))


def test_splits_never_change(tmp_path):
    data = open_data("folder", root=str(make_tree(tmp_path, {"a": 6, "b": 6})), val_fraction=0.34)
    first = [min(range(6), key=lambda i: sha256(f"0/{c}/image_{i}.jpg".encode()).digest()) for c in "ab"]
    assert {f"a/image_{first[0]}.jpg", f"b/image_{first[1]}.jpg"} < set(names(data.val))
    assert names(data.val) == ["a/image_0.jpg", "a/image_5.jpg", "b/image_1.jpg", "b/image_5.jpg"]


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.99, 4)])
def test_every_class_stays_in_both_parts(tmp_path, fraction, count):
    data = open_data("folder", root=str(make_tree(tmp_path, {"a": 5, "b": 5})), val_fraction=fraction)
    assert np.bincount(data.val.labels).tolist() == [count, count]
    assert np.bincount(data.train.labels).tolist() == [5 - count, 5 - count]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_a_fraction_out_of_range_is_refused(tmp_path, fraction):
    make_tree(tmp_path, {"a": 3, "b": 3})
    assert_refuses("must be above 0 and below 1", root=str(tmp_path), val_fraction=fraction)


def test_fractions_that_cannot_be_used(tree):
    assert_refuses("found val/, val_fraction=0.1 is for", root=str(tree), val_fraction=0.1)
    shutil.rmtree(tree / "val")
    make_tree(tree, {"train/lonely": 1})
    line = (
        r"tree: found one image of lonely, expected two or more to split; add images of it, or leave it out by classes="
    )
    assert_refuses(line, root=str(tree), val_fraction=0.1)


def test_a_class_of_one_image_can_be_left_out_of_a_split(tmp_path):
    data = open_data("folder", root=str(make_tree(tmp_path, {"a": 4, "b": 3, "lonely": 1})), classes=["b", "a"])
    assert data.classes == ("a", "b")
    assert np.bincount(data.train.labels).tolist() == [3, 2]


# Some of the classes.


LAYOUTS = {
    "with val": ({"train/a": 5, "train/b": 3, "train/c": 4, "val/a": 2, "val/b": 1, "val/c": 2}, {}),
    "split train": ({"train/a": 9, "train/b": 5, "train/c": 7}, {"val_fraction": 0.4, "split_seed": 5}),
    "one tree": ({"a": 9, "b": 5, "c": 7}, {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [["c"], ["c", "a"], ["b", "c"], ["b", "c", "a"]])
def test_chosen_classes_have_the_same_images_in_the_same_splits(tmp_path, layout, classes):
    counts, options = LAYOUTS[layout]
    root = str(make_tree(tmp_path, counts))
    everything = open_data("folder", root=root, **options)
    data = open_data("folder", root=root, classes=classes, **options)
    assert_only(classes, data, everything)


def assert_only(classes, data, everything):
    """Checks that `data` is `everything` reduced to `classes`."""
    assert data.classes == tuple(sorted(classes))
    for images, all_images in zip(data[:2], everything[:2], strict=True):
        assert images.labels.dtype == np.int64
        named = [(encoded, images.classes[label], name) for encoded, label, name in rows(images)]
        all_named = [(encoded, all_images.classes[label], name) for encoded, label, name in rows(all_images)]
        assert named == [row for row in all_named if row[1] in classes]
        assert (images.fingerprint() == all_images.fingerprint()) == (data.classes == everything.classes)


def test_all_images_of_chosen_classes_can_be_tested_on(tmp_path):
    root = str(make_tree(tmp_path, {"a": 2, "b": 3, "c": 1}))
    images, nothing = unsplit_folder(root=root, classes=["c", "b"])
    assert rows(images) == [(name.encode(), "bc".index(name[0]), name) for name in names(images)]
    assert (len(images), len(nothing), nothing.classes) == (4, 0, ("b", "c"))


def test_a_class_that_only_one_split_has_can_be_left_out_but_not_chosen(tree):
    make_tree(tree, {"train/only_here": 2})
    assert open_data("folder", root=str(tree), classes=["b", "a"]).classes == ("a", "b")
    assert_refuses(
        "found no validation images of only_here, expected",
        root=str(tree),
        classes=["a", "only_here"],
    )


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([], r"^classes=\[\]: must name at least one class, or be null for all$"),
        (["a", "b", "a"], r"^classes: a is there twice$"),
        (["a", "zebra"], r"tree has no class zebra; there are a, b$"),
        (["A\n"], r"tree has no class A\\n; there are a, b$"),
        (["cats", "a"], r"tree has no class cats; did you mean cat\?$"),
    ],
)
def test_classes_that_cannot_be_chosen(tree, classes, words):
    if "cats" in classes:
        make_tree(tree, {"train/cat": 1, "val/cat": 1})
    assert_refuses(words, root=str(tree), classes=classes)


# Loader processes.


def test_paths_are_one_array_and_survive_pickling(tree):
    data = open_data("folder", root=str(tree)).train
    assert isinstance(data, ImageFiles)
    assert data.paths.dtype.kind == "S"
    assert not any(isinstance(value, list | dict) for value in vars(data).values())
    copy = pickle.loads(pickle.dumps(data))
    assert rows(copy) == rows(data)
    assert copy.classes == data.classes


# ImageNet.


@pytest.fixture(scope="module")
def small_imagenet(tmp_path_factory):
    places = [f"{split}/n{i:08d}" for split in ("train", "val") for i in range(1000)]
    return make_tree(tmp_path_factory.mktemp("imagenet"), dict.fromkeys(places, 1))


def test_imagenet(small_imagenet):
    data = open_data("imagenet", root=str(small_imagenet))
    assert data.classes[7] == "n00000007"
    assert rows(data.val)[7] == (b"val/n00000007/image_0.jpg", 7, "val/n00000007/image_0.jpg")
    assert len(data.train) == len(data.val) == 1000


def test_imagenet_with_another_folder(small_imagenet):
    (small_imagenet / "val/n00000007").rename(small_imagenet / "val/cat")
    try:
        assert_refuses("found the folders cat, expected WordNet ids", "imagenet", root=str(small_imagenet))
    finally:
        (small_imagenet / "val/cat").rename(small_imagenet / "val/n00000007")


def test_imagenet_with_another_number_of_classes(tree):
    assert_refuses("train: found 2 class folders, expected 1000", "imagenet", root=str(tree))


def test_imagenet_as_downloaded(small_imagenet, tmp_path):
    (tmp_path / "train").symlink_to(small_imagenet / "train", target_is_directory=True)
    assert_refuses("val: there is no such folder", "imagenet", FileNotFoundError, root=str(tmp_path))
    (tmp_path / "val").mkdir()
    (tmp_path / "val/ILSVRC2012_val_00000001.JPEG").touch()
    message = assert_refuses("1 image lying flat", "imagenet", root=str(tmp_path))
    assert "ground truth" in message
    assert "valprep" in message


# Caltech101.


@pytest.fixture(scope="module")
def small_caltech(tmp_path_factory):
    counts = {f"101_ObjectCategories/class_{i:03d}": 12 for i in range(102)}
    return make_tree(tmp_path_factory.mktemp("caltech"), counts)


def test_caltech101_takes_the_same_number_of_each_class(small_caltech):
    options = {"train_per_class": 5, "test_per_class": 4}
    data = open_data("caltech101", root=str(small_caltech), **options)
    assert np.bincount(data.train.labels).tolist() == [5] * 102
    assert np.bincount(data.val.labels).tolist() == [4] * 102
    assert not set(names(data.train)) & set(names(data.val))
    same = open_data("caltech101", root=str(small_caltech / "101_ObjectCategories"), **options)
    assert names(same.train) == names(data.train)
    assert names(same.val) == names(data.val)
    other = open_data("caltech101", root=str(small_caltech), split_seed=1, **options)
    assert names(other.train) != names(data.train)


def test_caltech101_tests_what_is_left(small_caltech):
    data = open_data("caltech101", root=str(small_caltech), train_per_class=9, test_per_class=50)
    assert np.bincount(data.val.labels).tolist() == [3] * 102


def test_caltech101_refuses_too_few_images_and_other_data(small_caltech, tmp_path):
    root = str(small_caltech)
    assert_refuses("class_000 has 12 images, train_per_class=12", "caltech101", root=root, train_per_class=12)
    assert_refuses("test_per_class=0", "caltech101", root=root, train_per_class=3, test_per_class=0)
    make_tree(tmp_path, {"a": 2, "b": 2})
    assert_refuses("found 2 class folders, expected Caltech101's 102", "caltech101", root=str(tmp_path))


def test_caltech101_of_some_categories_has_the_same_splits(small_caltech):
    options = {"root": str(small_caltech), "train_per_class": 5, "test_per_class": 4, "split_seed": 3}
    chosen = ["class_070", "class_003"]
    assert_only(chosen, open_data("caltech101", **options, classes=chosen), open_data("caltech101", **options))
    assert_refuses("has no class class_103; did you mean class_", "caltech101", **options, classes=["class_103"])
