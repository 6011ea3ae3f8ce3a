"""Data sets for transfer: splits that are disjoint and the same wherever the data is, every image once, true labels."""

import shutil

import numpy as np
import pytest

from conftest import make_image_folder, make_tree, names
from sppnet.data.prepare import prepare
from sppnet.data.shards import Settings
from sppnet.data.sources import content_digests, open_data
from sppnet.transfer.protocols import SPLITS, open_transfer_data
from test_stores import hub  # noqa: F401

VOC = {  # split -> labels of its images: car, dog, person
    "trainval": [(1, -1, -1), (-1, 1, 0), (-1, -1, 1), (1, 0, 1), (0, 1, -1)],
    "test": [(1, -1, 1), (-1, 1, -1), (0, -1, 1)],
}
VOC_CLASSES = ("car", "dog", "person")
CLASSES = [f"category_{i:03}" for i in range(102)]


@pytest.fixture(scope="module")
def caltech(tmp_path_factory):
    """102 categories of 4 images, and one of 12."""
    return make_tree(tmp_path_factory.mktemp("data") / "caltech", dict.fromkeys(CLASSES, 4) | {CLASSES[3]: 12})


def open_caltech(root, **options):
    return open_transfer_data("caltech101", root=str(root), train_per_class=2, test_per_class=3, **options)


def make_voc(root, image=lambda name: name.encode()):
    """Makes the files of VOC that classification needs; `image` makes the content of an image."""
    for folder in ("ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for split, labels in VOC.items():
        names = [f"{split}{i}" for i in range(len(labels))]
        for name in names:
            (root / "JPEGImages" / f"{name}.jpg").write_bytes(image(name))
        for label, column in zip(VOC_CLASSES, zip(*labels, strict=True), strict=True):
            lines = [f"{name} {value:2d}\n" for name, value in zip(names, column, strict=True)]
            (root / "ImageSets" / "Main" / f"{label}_{split}.txt").write_text("".join(lines))
    return root


def split_names(data):
    """Returns for every split the names of its training and of its test images."""
    return [tuple([data.images.name(i) for i in part] for part in split) for split in data.splits]


def check_data(data):
    """Every image is there once, no split tests on what it trains on, and images are of the class of their folder."""
    found = names(data.images)
    assert len(set(found)) == len(found) == len(data.truth) == len(data.images)
    assert data.truth.dtype == np.int8
    used = set()
    for train, test in data.splits:
        assert not set(train) & set(test)
        assert len(set(train)) == len(train)
        assert len(set(test)) == len(test)
        used |= {*train, *test}
    assert used == set(range(len(found)))


def check_labels(data, folder=0):
    """Of data in class folders, at this place in the path."""
    check_data(data)
    for i, name in enumerate(names(data.images)):
        shown = [data.classes[label] for label in np.flatnonzero(data.truth[i] == 1)]
        assert shown == [name.split("/")[folder]]
        assert data.images.read(i) == data.images.sources[data.images.places[i][0]].read(data.images.places[i][1])
    labels = data.labels(np.arange(len(data.truth)))
    assert labels.dtype == np.int64
    assert np.array_equal(data.truth == 1, labels[:, None] == np.arange(len(data.classes)))


# Random splits.


def test_ten_splits_of_30_and_50_images_of_each_category_are_the_papers():
    assert SPLITS == 10


def test_random_splits_have_the_numbers_of_images_that_the_data_says(caltech):
    data = open_caltech(caltech)
    check_labels(data)
    assert data.classes == tuple(CLASSES)
    assert len(data.splits) == 10
    for train, test in data.splits:
        assert np.array_equal(np.bincount(data.labels(train)), np.full(102, 2))
        counts = np.full(102, 2)
        counts[3] = 3  # at most
        assert np.array_equal(np.bincount(data.labels(test)), counts)
    assert len({tuple(sorted(split.train)) for split in data.splits}) == 10


def test_fewer_splits_are_the_first_ones(caltech):
    assert split_names(open_caltech(caltech, splits=3)) == split_names(open_caltech(caltech))[:3]


def test_a_split_is_the_training_and_validation_part_of_its_seed(caltech):
    options = {"root": str(caltech), "train_per_class": 2, "test_per_class": 3}
    for seed, found in enumerate(split_names(open_caltech(caltech, splits=2))):
        data = open_data("caltech101", split_seed=seed, **options)
        assert found == (names(data.train), names(data.val))


def test_the_seeds_of_the_splits_follow_the_given_one(caltech):
    later = split_names(open_caltech(caltech, splits=2, split_seed=4))
    assert later == split_names(open_caltech(caltech, splits=6))[4:]
    assert later[0] != split_names(open_caltech(caltech, splits=1))[0]


def test_splits_and_fingerprints_are_the_same_wherever_the_data_is(caltech, tmp_path):
    copy = shutil.copytree(caltech, tmp_path / "other" / "101_ObjectCategories")
    here, there = (open_caltech(root, splits=2) for root in (caltech, copy.parent))
    assert split_names(here) == split_names(there)
    prints = [
        [data.fingerprint(part, content_digests(data.images, "reading")) for split in data.splits for part in split]
        for data in (here, there)
    ]
    assert prints[0] == prints[1]
    assert len(set(prints[0])) == 4


def test_categories_can_be_chosen(caltech):
    data = open_caltech(caltech, splits=2, classes=[CLASSES[9], CLASSES[3]])
    check_labels(data)
    assert data.classes == (CLASSES[3], CLASSES[9])
    everything = split_names(open_caltech(caltech, splits=2))
    for chosen, both in zip(split_names(data), everything, strict=True):
        for part, of_all in zip(chosen, both, strict=True):
            assert part == [name for name in of_all if name.split("/")[0] in data.classes]


def test_a_folder_without_val_is_split_at_random_even_if_few_splits_are_possible(tmp_path):
    """Three images of each of two classes: some of the ten splits are equal."""
    data = open_transfer_data("folder", root=str(make_tree(tmp_path / "tree", {"a": 3, "b": 3})))
    check_labels(data)
    assert len(data.splits) == 10
    assert len({tuple(split.test) for split in data.splits}) < 10


def test_a_class_of_two_images_has_one_to_train_on(tmp_path):
    data = open_transfer_data("folder", root=str(make_tree(tmp_path / "tree", {"a": 2, "b": 9})), splits=4)
    check_labels(data)
    assert all((data.labels(split.train) == 0).sum() == 1 for split in data.splits)


# Fixed parts.


def test_a_folder_with_val_has_one_split(tree):
    data = open_transfer_data("folder", root=str(tree))
    check_labels(data, folder=1)
    ((train, test),) = split_names(data)
    assert train == ["train/a/image_0.jpg", "train/a/image_1.jpg", *(f"train/b/image_{i}.jpg" for i in range(3))]
    assert test == ["val/a/image_0.jpg", "val/b/image_0.jpg", "val/b/image_1.jpg"]
    assert split_names(open_transfer_data("folder", root=str(tree), splits=1)) == [(train, test)]


@pytest.mark.parametrize("splits", [2, 10])
def test_more_splits_than_fixed_parts_have_are_refused(tree, splits):
    with pytest.raises(ValueError, match=rf"^splits={splits}: the parts of this data are fixed; give splits=1"):
        open_transfer_data("folder", root=str(tree), splits=splits)


def test_more_splits_are_refused_before_the_data_is_read():
    """There is none."""
    for source in ("voc2007", "imagenet", "prepared"):
        with pytest.raises(ValueError, match=r"^splits=3: the parts of this data are fixed; give splits=1 or leave it"):
            open_transfer_data(source, root="nowhere", splits=3)


@pytest.mark.parametrize("source", ["shapes", "prepared", "hub"])
def test_other_sources_have_one_split(source, tmp_path, hub):  # noqa: F811
    root = make_image_folder(tmp_path / "images", train=2, val=1)
    if source == "prepared":
        prepare(open_data("folder", root=str(root)), tmp_path / "store", Settings(short_side=32, quality=95), workers=0)
    options = {
        "shapes": {"root": str(tmp_path / "shapes"), "train": 20, "val": 10},
        "prepared": {"root": str(tmp_path / "store")},
        "hub": {"name": str(root), "cache": str(tmp_path / "cache")},
    }[source]
    data = open_transfer_data(source, **options)
    check_data(data)
    assert len(data.splits) == 1
    assert len(data.splits[0].train) == 2 * len(data.splits[0].test) > 0
    with pytest.raises(ValueError, match=r"^splits=2: the parts of this data are fixed"):
        open_transfer_data(source, splits=2, **options)


# Several labels.


def test_images_of_several_labels_have_one_split_and_keep_ignored_labels(tmp_path):
    data = open_transfer_data("voc2007", root=str(make_voc(tmp_path)))
    check_data(data)
    assert not data.one_label
    assert len(data.splits) == 1
    assert {*np.unique(data.truth)} == {-1, 0, 1}
    for part, source, labels in zip(data.splits[0], data.images.sources, VOC.values(), strict=True):
        assert [data.images.name(i) for i in part] == names(source)
        assert np.array_equal(data.truth[part], source.labels)
        assert np.array_equal(data.labels(part), source.labels)
        assert data.truth[part].tolist() == [list(row) for row in labels]
        assert data.labels(part).dtype == np.int8


def test_images_of_several_labels_can_be_excluded(tmp_path):
    everything = open_transfer_data("voc2007", root=str(make_voc(tmp_path)))
    ((train, test),) = split_names(everything)
    data = open_transfer_data("voc2007", root=str(tmp_path), exclude=[test[0], train[1]])
    check_data(data)
    assert split_names(data) == [([train[0], *train[2:]], test[1:])]
    before = dict(zip(names(everything.images), everything.truth.tolist(), strict=True))
    assert all(row == before[name] for name, row in zip(names(data.images), data.truth.tolist(), strict=True))


def test_images_of_several_labels_have_no_second_split(tmp_path):
    make_voc(tmp_path)
    with pytest.raises(ValueError, match=r"^splits=2: the parts of this data are fixed; give splits=1 or leave it"):
        open_transfer_data("voc2007", root=str(tmp_path), splits=2)
    with pytest.raises(ValueError, match=r"^exclude=no\.jpg: no image has this name; such a name is JPEGImages/"):
        open_transfer_data("voc2007", root=str(tmp_path), exclude=["no.jpg"])


# Excluded images.


def test_an_excluded_image_is_in_no_split_and_the_other_images_stay_where_they_are(caltech):
    """It need not be in every split: of 12 images of its category, each has five."""
    before = split_names(open_caltech(caltech, splits=3))
    name = next(one for one in before[1][0] if one.startswith(CLASSES[3]) and one not in [*before[0][0], *before[0][1]])
    data = open_caltech(caltech, splits=3, exclude=[name])
    check_labels(data)
    assert split_names(data) == [tuple([one for one in part if one != name] for part in split) for split in before]


def test_an_unknown_name_is_refused(caltech):
    line = r"^exclude=nothing\.jpg: no image of these splits has this name; such a name is category_000/image_\d\.jpg$"
    with pytest.raises(ValueError, match=line):
        open_caltech(caltech, splits=2, exclude=["nothing.jpg"])


# What cannot be classified.


@pytest.mark.parametrize("splits", [0, -1, 1001])
def test_a_number_of_splits_out_of_range_is_refused(caltech, splits):
    with pytest.raises(ValueError, match=rf"^splits={splits}: must be from 1 to 1000, or null"):
        open_caltech(caltech, splits=splits)


def test_one_class_is_refused(caltech):
    with pytest.raises(ValueError, match=f"^the data has one class, {CLASSES[4]}: transfer needs two or more"):
        open_caltech(caltech, classes=[CLASSES[4]])


def test_a_class_without_training_images_is_refused_by_name(tree):
    make_tree(tree, {"val/a": 2})
    exclude = ["train/a/image_0.jpg", "train/a/image_1.jpg"]
    with pytest.raises(ValueError, match=r"^split 0: no training image shows a; leave the class out$"):
        open_transfer_data("folder", root=str(tree), exclude=exclude)


@pytest.mark.parametrize(
    ("excluded", "words"),
    [(["train/a/image_0", "train/a/image_1"], "1 image"), (["train/a/image_0", "val/a/image_0"], "1 image"),
     (["train/a/image_0", "train/a/image_1", "val/a/image_0"], "0 images")],
)  # fmt: skip
def test_a_class_of_one_image_is_refused_with_what_to_do(tree, excluded, words):
    line = (
        f"^a: {words}, and a class needs one to train on and one to test on; add images of it, or leave the class out$"
    )
    with pytest.raises(ValueError, match=line):
        open_transfer_data("folder", root=str(tree), exclude=[f"{name}.jpg" for name in excluded])


def test_a_folder_with_a_class_of_one_image_says_what_to_do_and_that_works(tmp_path):
    root = make_tree(tmp_path / "tree", {"a": 4, "b": 3, "lonely": 1})
    with pytest.raises(ValueError, match=r"^\S+tree: found one image of lonely, expected two or more to split; add "):
        open_transfer_data("folder", root=str(root))
    assert open_transfer_data("folder", root=str(root), classes=["a", "b"]).classes == ("a", "b")


def test_a_class_with_a_single_training_image_is_fine(tree):
    data = open_transfer_data("folder", root=str(tree), exclude=["train/a/image_0.jpg"])
    assert data.labels(data.splits[0].train).tolist() == [0, 1, 1, 1]


def test_data_without_test_images_is_refused(tree):
    everything = [f"val/{name}.jpg" for name in ("a/image_0", "b/image_0", "b/image_1")]
    with pytest.raises(ValueError, match="leaves none of the 3 images of val"):
        open_transfer_data("folder", root=str(tree), exclude=everything)


@pytest.mark.parametrize(
    ("excluded", "line"),
    [
        ([0, 3], "split 0: no training image shows car; leave the class out"),
        ([0, 1, 2], "split 0: no training image is without car, dog; leave the class out"),
    ],
)
def test_a_class_that_no_or_every_training_image_shows_is_refused_by_name(tmp_path, excluded, line):
    """An image whose label is ignored does neither."""
    root = make_voc(tmp_path)
    with pytest.raises(ValueError, match=f"^{line}$"):
        open_transfer_data("voc2007", root=str(root), exclude=[f"JPEGImages/trainval{i}.jpg" for i in excluded])


# Fingerprints.


def test_a_fingerprint_depends_on_names_classes_labels_contents_and_order(tree):
    data = open_transfer_data("folder", root=str(tree))
    digests, every = content_digests(data.images, "reading"), np.arange(8)
    prints = {data.fingerprint(chosen, digests) for chosen in (every, every[::-1], every[1:])}
    other = digests.copy()
    other[3] ^= 1
    prints.add(data.fingerprint(every, other))
    data.truth[3] *= -1
    prints.add(data.fingerprint(every, digests))
    data.truth[3] *= -1
    object.__setattr__(data, "classes", ("a", "c"))
    prints.add(data.fingerprint(every, digests))
    assert len(prints) == 6
