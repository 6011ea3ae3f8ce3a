"""Data sets in small trees made here: what is read, how it is split, and what is said when it is not as expected."""

import os
import pickle
import re
import shutil
import sys
from dataclasses import replace
from hashlib import blake2b, sha256

import numpy as np
import pytest

from conftest import jpeg, rows
from sppnet.data.folders import ImageFiles
from sppnet.data.images import UnreadableImage
from sppnet.data.sources import DATA_SOURCES, content_digests, images_fingerprint, open_data, select_images


def make_tree(root, counts):
    """Files `root`/FOLDER/image_0.jpg, ... for {folder: count}; each holds its own path."""
    for place, count in counts.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / place / f"image_{i}.jpg").write_text(f"{place}/image_{i}.jpg")
    return root


def names(images):
    return [images.name(i) for i in range(len(images))]


def assert_refuses(pattern, source="folder", error=ValueError, **options):
    with pytest.raises(error, match=pattern) as caught:
        open_data(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "tree", {"train/b": 3, "train/a": 2, "val/a": 1, "val/b": 2})


# Contents.


def test_digests_are_of_contents_in_order_however_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr("sppnet.data.sources._IMAGES_PER_ROUND", 7)
    root = make_tree(tmp_path, {"train/a": 20, "train/b": 3, "val/a": 1, "val/b": 1})
    data = open_data("folder", root=str(root))
    digests = content_digests(data.train, "reading")
    assert [digest.tobytes() for digest in digests] == [
        blake2b(name.encode(), digest_size=16).digest() for name in names(data.train)
    ]


def test_the_fingerprint_of_images_changes_with_names_labels_and_contents(tree):
    def fingerprint(**changes):
        images = open_data("folder", root=str(tree)).val
        images = replace(images, **changes)
        return images_fingerprint(images, content_digests(images, "reading"))

    first = fingerprint()
    images = open_data("folder", root=str(tree)).val
    assert fingerprint(root=str(shutil.copytree(tree, tree.with_name("copy")))) == first
    assert fingerprint(labels=images.labels[::-1].copy()) != first
    assert fingerprint(classes=("a", "c")) != first
    assert fingerprint(paths=images.paths[::-1].copy()) != first
    one, other = tree / "val/b/image_0.jpg", tree / "val/b/image_1.jpg"
    contents = one.read_bytes(), other.read_bytes()
    assert len(contents[0]) == len(contents[1])
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    assert fingerprint() != first


def test_an_image_that_cannot_be_read_is_named_with_what_to_do(tree):
    data = open_data("folder", root=str(tree))
    (tree / "val/b/image_1.jpg").unlink()
    with pytest.raises(UnreadableImage) as error:
        content_digests(data.val, "reading")
    reason = "No such file or directory; repair the file, or skip it with exclude=[val/b/image_1.jpg]"
    assert str(error.value) == f"val/b/image_1.jpg: {reason}"


def test_digests_of_a_store_are_of_its_files(saved):
    images = open_data("hub", name=saved, **COLUMNS).train
    assert [digest.tobytes() for digest in content_digests(images, "reading")] == [
        blake2b(images.read(i), digest_size=16).digest() for i in range(4)
    ]


@pytest.mark.parametrize("part", ["train", "val", "all"])
def test_a_selection_without_images_is_refused(tree, part):
    data = open_data("folder", root=str(tree))
    parts = {"train": [data.train], "val": [data.val], "all": [data.train, data.val]}[part]
    everything = [name for images in parts for name in names(images)]
    with pytest.raises(ValueError, match=f"^exclude: leaves none of the {len(everything)} images of {part}$"):
        select_images(data, part, everything)


# Folders.


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


def test_val_goes_before_test_and_the_test_folder_is_said(tree):
    shutil.copytree(tree / "val", tree / "test")
    line = (
        f"{tree}: validation uses val/, not test/; test on it by evaluate.py data=folder data.root={tree}/test part=all"
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


def test_links_among_class_folders_that_lead_nowhere_are_no_classes(tree):
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


def test_classes_must_be_the_same(tree):
    make_tree(tree, {"train/only_here": 1, "val/only_there": 1})
    assert_refuses(r"only in train \(only_here\) and only in val \(only_there\)", root=str(tree))


def test_a_class_without_images(tree):
    make_tree(tree, {"train/empty": 0, "val/empty": 1})
    assert_refuses(r"train/empty: found no images", root=str(tree))


def test_images_lying_flat(tree):
    shutil.rmtree(tree / "train")
    make_tree(tree, {"train": 3})
    assert_refuses(
        r"train: found 3 images lying flat and the folders: none, expected a folder for each", root=str(tree)
    )


def test_one_level_too_high(tree):
    assert_refuses("found 0 images lying flat and the folders: tree, expected", root=str(tree.parent))


def test_empty_missing_and_file(tmp_path):
    assert_refuses(f"{tmp_path}: found 0 images", root=str(tmp_path))
    assert_refuses("nowhere: there is no such folder", error=FileNotFoundError, root=str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    assert_refuses("file: found a file, expected a folder", root=str(tmp_path / "file"))


def test_train_or_val_alone(tree):
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


def test_split_depends_on_seed_and_names_alone(tmp_path):
    counts = {"a": 40, "b": 40}
    first = open_data("folder", root=str(make_tree(tmp_path / "one", counts)), split_seed=3)
    again = open_data("folder", root=str(make_tree(tmp_path / "two", dict(reversed(counts.items())))), split_seed=3)
    assert names(first.val) == names(again.val)
    assert names(first.val) != names(open_data("folder", root=str(tmp_path / "two"), split_seed=4).val)
    make_tree(tmp_path / "two", {"another": 5})
    assert set(names(first.val)) < set(names(open_data("folder", root=str(tmp_path / "two"), split_seed=3).val))


def test_split_is_the_same_for_ever(tmp_path):
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
def test_fraction_out_of_range(tmp_path, fraction):
    make_tree(tmp_path, {"a": 3, "b": 3})
    assert_refuses("must be between 0 and 1", root=str(tmp_path), val_fraction=fraction)


def test_fractions_that_cannot_be(tree):
    assert_refuses("found val/, val_fraction=0.1 is for", root=str(tree), val_fraction=0.1)
    shutil.rmtree(tree / "val")
    make_tree(tree, {"train/lonely": 1})
    assert_refuses("found one image of lonely", root=str(tree), val_fraction=0.1)


# What workers get.


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
    message = assert_refuses("1 images lying flat", "imagenet", root=str(tmp_path))
    assert "ground truth" in message
    assert "valprep" in message


# Caltech101.


@pytest.fixture(scope="module")
def small_caltech(tmp_path_factory):
    counts = {f"101_ObjectCategories/class_{i:03d}": 12 for i in range(102)}
    return make_tree(tmp_path_factory.mktemp("caltech"), counts)


def test_caltech101_takes_so_many_of_each_class(small_caltech):
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


def test_caltech101_refuses(small_caltech, tmp_path):
    root = str(small_caltech)
    assert_refuses("class_000 has 12 images, train_per_class=12", "caltech101", root=root, train_per_class=12)
    assert_refuses("test_per_class=0", "caltech101", root=root, train_per_class=3, test_per_class=0)
    make_tree(tmp_path, {"a": 2, "b": 2})
    assert_refuses("found 2 class folders, expected Caltech101's 102", "caltech101", root=str(tmp_path))


# The Hub, without a network: folders that `load_dataset` reads.


@pytest.fixture
def hub(monkeypatch):
    """The package `datasets`, kept from the network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def saved(hub, tmp_path):
    """A DatasetDict on disk with four pictures of cats and dogs in train, two in validation."""

    def split(labels):
        files = [jpeg(np.full((4, 5, 3), 40 * i, np.uint8)) for i in range(len(labels))]
        features = hub.Features({"picture": hub.Image(), "kind": hub.ClassLabel(names=["cat", "dog"])})
        return hub.Dataset.from_dict({"picture": [{"bytes": f, "path": None} for f in files], "kind": labels}, features)

    splits = hub.DatasetDict({"train": split([0, 1, 1, 0]), "validation": split([1, 0]), "unlabelled": split([-1, -1])})
    splits.save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


COLUMNS = {"image_column": "picture", "label_column": "kind"}


def test_hub_reads_what_save_to_disk_wrote(saved):
    data = open_data("hub", name=saved, **COLUMNS)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.dtype == np.int64
    assert data.train.labels.tolist() == [0, 1, 1, 0]
    assert rows(data.train)[2] == (jpeg(np.full((4, 5, 3), 80, np.uint8)), 1, "train/2")
    assert names(data.val) == ["validation/0", "validation/1"]
    assert len(data.val) == 2
    with pytest.raises(IndexError):
        data.val.read(2)
    copy = pickle.loads(pickle.dumps(data.train))
    assert rows(copy) == rows(data.train)


def test_hub_reads_a_folder_of_images_by_load_dataset(hub, tmp_path, image_folder):
    data = open_data("hub", name=str(image_folder), cache=str(tmp_path / "cache"))
    expected = open_data("folder", root=str(image_folder))
    assert data.classes == expected.classes
    assert sorted(row[:2] for row in rows(data.train)) == sorted(row[:2] for row in rows(expected.train))
    assert len(data.val) == len(expected.val)


def test_hub_reads_parquet_and_slices_of_splits(hub, saved, tmp_path):
    (tmp_path / "parquet").mkdir()
    hub.load_from_disk(saved)["train"].to_parquet(tmp_path / "parquet/train.parquet")
    options = COLUMNS | {"name": str(tmp_path / "parquet"), "cache": str(tmp_path / "cache")}
    data = open_data("hub", train_split="train[:3]", val_split="train[3:]", **options)
    assert (len(data.train), len(data.val)) == (3, 1)
    assert rows(data.val)[0][:2] == (jpeg(np.full((4, 5, 3), 120, np.uint8)), 0)
    assert_refuses("Unknown split", "hub", **options)


def test_hub_says_what_is_there(saved, hub, tmp_path):
    assert_refuses("columns picture, kind, expected image$", "hub", name=saved)
    assert_refuses(
        "found the splits train, validation, unlabelled, expected x", "hub", name=saved, val_split="x", **COLUMNS
    )
    assert_refuses("expected Image", "hub", name=saved, image_column="kind", label_column="kind")
    assert_refuses("2 of 2 images without a label", "hub", name=saved, val_split="unlabelled", **COLUMNS)
    hub.load_from_disk(saved)["train"].save_to_disk(tmp_path / "single")
    assert_refuses("expected a saved DatasetDict", "hub", name=str(tmp_path / "single"))
    assert_refuses("nowhere", "hub", name=str(tmp_path / "nowhere"), cache=str(tmp_path))


def test_hub_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert_refuses(r"pip install sppnet\[hub\]", "hub", name="any")


# Stores of strangers: made with `datasets`, but not as they should be.


def write_store(hub, root, images, labels, names=None, classes=("cat", "dog")):
    """A store in the layout of prepare_data.py; `images` are bytes, paths or None."""
    import pyarrow as pa

    rows = [{"bytes": i, "path": None} if isinstance(i, bytes) else i and {"bytes": None, "path": i} for i in images]
    features = hub.Features(
        {"image": hub.Image(), "label": hub.ClassLabel(names=list(classes)), "name": hub.Value("string")}
    )
    names = [f"{i}.jpg" for i in range(len(images))] if names is None else names
    table = pa.table(
        {
            "image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "label": pa.array(labels, pa.int64()),
            "name": pa.array(names, pa.string()),
        }
    )
    table = table.cast(features.arrow_schema)
    usual = hub.Dataset.from_dict({"image": [{"bytes": PHOTO}], "label": [0], "name": ["a"]}, features)
    hub.DatasetDict({"train": usual, "validation": usual}).save_to_disk(root)
    for file in root.glob("*/*.arrow"):  # not by `datasets`: it would put the files that rows name into the store
        with pa.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    return str(root)


PHOTO = jpeg(np.full((4, 5, 3), 90, np.uint8))


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        ([PHOTO] * 3, [0, 2, 1], None, "train: row 1 has the label 2, expected 0 to 1$"),
        ([PHOTO] * 3, [0, 2**40, 1], None, "train: row 1 has the label 1099511627776, expected 0 to 1$"),
        ([PHOTO] * 3, [0, 1, -1], None, "train: found 1 of 3 images without a label$"),
        ([PHOTO] * 3, [0, 1, None], None, "train: row 2 has no label$"),
        ([PHOTO, None, PHOTO], [0, 1, 0], None, "train: row 1 has no image$"),
        ([PHOTO] * 3, [0, 1, 0], ["a", None, "c"], "train: row 1 has no name$"),
    ],
)
def test_a_store_with_rows_that_cannot_be_is_refused_by_row(hub, tmp_path, images, labels, names, message):
    root = write_store(hub, tmp_path / "store", images, labels, names)
    assert_refuses(message, "prepared", root=root)
    if names is None:
        assert_refuses(message, "hub", name=root)


@pytest.mark.parametrize("kind", ["absolute", "relative", "link"])
def test_a_store_reads_no_file_outside_of_its_folder(hub, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(PHOTO)
    (tmp_path / "store").mkdir()
    named = {"absolute": str(secret), "relative": "../secret.jpg", "link": "link.jpg"}[kind]
    root = write_store(hub, tmp_path / "store", [PHOTO, named], [0, 1])
    (tmp_path / "store/link.jpg").symlink_to(secret)
    for data in (open_data("prepared", root=root), open_data("hub", name=root)):
        assert (data.train.read(0), data.train.labels[0]) == (PHOTO, 0)
        with pytest.raises(ValueError, match=rf"row 1 of train names {named}, outside {root}$"):
            data.train.read(1)


def test_a_store_reads_files_in_its_folder(hub, tmp_path):
    root = write_store(hub, tmp_path / "store", ["files/0.jpg", str(tmp_path / "store/files/0.jpg")], [0, 1])
    (tmp_path / "store/files").mkdir()
    (tmp_path / "store/files/0.jpg").write_bytes(PHOTO)
    data = open_data("prepared", root=root)
    assert rows(data.train) == [(PHOTO, 0, "0.jpg"), (PHOTO, 1, "1.jpg")]


def test_a_table_of_paths_reads_files_beside_it_only(hub, tmp_path):
    import pyarrow.parquet

    (tmp_path / "tables").mkdir()
    for place in (tmp_path, tmp_path / "tables"):
        (place / "photo.jpg").write_bytes(PHOTO)
    root = write_store(hub, tmp_path / "s", [str(tmp_path / "tables/photo.jpg"), str(tmp_path / "photo.jpg")], [0, 1])
    table = hub.load_from_disk(root)["train"].data.table
    pyarrow.parquet.write_table(table, tmp_path / "tables/train.parquet")
    data = open_data(
        "hub",
        name="parquet",
        data_files={"train": str(tmp_path / "tables/*.parquet")},
        val_split="train",
        cache=str(tmp_path / "cache"),
    )
    assert data.train.read(0) == PHOTO
    with pytest.raises(ValueError, match=r"row 1 of train names .*photo\.jpg, outside"):
        data.train.read(1)


@pytest.mark.parametrize("cut", [0, 100, -600])
def test_a_store_with_a_cut_file_is_refused_by_name(hub, tmp_path, cut):
    root = write_store(hub, tmp_path / "store", [PHOTO] * 3, [0, 1, 0])
    (file,) = (tmp_path / "store/train").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:cut])
    assert_refuses(rf"^{root}: cannot be read \(", "prepared", root=root)
    assert_refuses(rf"^{root}: cannot be read \(", "hub", name=root)


def test_remote_stores_name_the_extra_that_reads_them(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    message = r"s3://bucket/imagenet: needs a package for s3:// addresses: pip install sppnet\[remote\]$"
    assert_refuses(message, "prepared", root="s3://bucket/imagenet")
    assert_refuses("Protocol not known: ftps3", "prepared", root="ftps3://bucket/imagenet")


# The table of sources.


def test_shapes_are_drawn_and_read(tmp_path):
    data = open_data("shapes", root=str(tmp_path / "shapes"), train=20, val=10, seed=1)
    assert (len(data.train), len(data.val), len(data.classes)) == (20, 10, 10)
    assert data.train.read(0)[:2] == b"\xff\xd8"


# Selecting.


def test_selected_images_are_labelled_by_the_classes_of_the_network(tree):
    data = open_data("folder", root=str(tree))  # of the classes a and b
    for classes in (("a", "b"), ("b", "a")):
        for part in ("train", "val", "all"):
            images = select_images(data, part, classes=classes)
            assert images.classes == classes
            assert len(images) == len(images.labels) > 0
            for encoded, label, name in rows(images):
                assert classes[label] == name.split("/")[1]
                assert encoded == name.encode()


def test_unknown_source():
    with pytest.raises(
        ValueError, match="source='floder': must be one of shapes, folder, imagenet, hub, caltech101, prepared"
    ):
        open_data("floder", root="x")
    assert set(DATA_SOURCES) == {"shapes", "folder", "imagenet", "hub", "caltech101", "prepared"}
