"""Any data set: digests and fingerprints of contents, selecting images, and the table of sources."""

import shutil
from dataclasses import replace
from hashlib import blake2b

import pytest

from conftest import assert_refuses, make_tree, names, rows
from sppnet.data.images import UnreadableImage
from sppnet.data.sources import DATA_SOURCES, content_digests, images_fingerprint, open_data, select_images

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


def test_an_unreadable_image_is_named_with_what_to_do(tree):
    data = open_data("folder", root=str(tree))
    (tree / "val/b/image_1.jpg").unlink()
    with pytest.raises(UnreadableImage) as error:
        content_digests(data.val, "reading")
    reason = "No such file or directory; repair the file, or skip it with exclude=[val/b/image_1.jpg]"
    assert str(error.value) == f"val/b/image_1.jpg: {reason}"


# The table of sources.


def test_shapes_are_drawn_and_read(tmp_path):
    data = open_data("shapes", root=str(tmp_path / "shapes"), train=20, val=10, seed=1)
    assert (len(data.train), len(data.val), len(data.classes)) == (20, 10, 10)
    assert data.train.read(0)[:2] == b"\xff\xd8"


def test_shapes_of_some_classes_are_the_same_images(tmp_path):
    options = {"root": str(tmp_path / "shapes"), "train": 20, "val": 10}
    everything = open_data("shapes", **options)
    data = open_data("shapes", **options, classes=["dots_row", "bars_across_top"])
    assert data.classes == ("bars_across_top", "dots_row")
    for images, all_images in zip(data[:2], everything[:2], strict=True):
        chosen = [name for name in names(all_images) if name.split("/")[1] in data.classes]
        assert names(images) == chosen
        assert [data.classes[label] for label in images.labels] == [name.split("/")[1] for name in chosen]


def test_different_classes_in_train_and_val_are_refused(tree):
    make_tree(tree, {"train/only_here": 1, "val/only_there": 1})
    assert_refuses("found no validation images of only_here and no training images of only_there, ", root=str(tree))


def test_an_unknown_source_is_refused():
    with pytest.raises(
        ValueError, match="source='floder': must be one of shapes, folder, table, imagenet, hub, caltech101, prepared"
    ):
        open_data("floder", root="x")
    assert set(DATA_SOURCES) == {"shapes", "folder", "imagenet", "hub", "caltech101", "prepared", "table"}


# Selecting.


@pytest.mark.parametrize("part", ["train", "val", "all"])
def test_a_selection_without_images_is_refused(tree, part):
    data = open_data("folder", root=str(tree))
    parts = {"train": [data.train], "val": [data.val], "all": [data.train, data.val]}[part]
    everything = [name for images in parts for name in names(images)]
    with pytest.raises(ValueError, match=f"^exclude: leaves none of the {len(everything)} images of {part}$"):
        select_images(data, part, everything)


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
