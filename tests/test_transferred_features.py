"""Transferred features: decisions grouped over splits and runs, and compared with their baselines."""

import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest

from made_transfers import (
    RAW_PIXELS,
    UNTRAINED,
    made_about,
    made_decisions,
    made_several_labels,
    make_transfer,
    only_feature,
    write_decisions,
)
from sppnet.results.statistics import gain_interval, resampled_interval
from sppnet.results.transferred_features import (
    by_protocol,
    features,
    gain,
    layer_order,
    pixels_baseline,
    untrained_baseline,
)
from sppnet.results.transfers import Transfer, read_transfers

# Grouping.


def test_splits_are_averaged_with_their_standard_deviation(tmp_path):
    make_transfer(tmp_path / "a", [4, 8, 6])
    feature = only_feature(tmp_path)
    assert feature.splits == [0, 1, 2]
    assert feature.mean("overall") == pytest.approx(1 - 6 / 40)
    assert feature.deviation("overall") == pytest.approx(2 / 40)  # n - 1


def test_one_split_has_no_standard_deviation(tmp_path):
    make_transfer(tmp_path / "a", [4])
    assert only_feature(tmp_path).deviation("overall") is None


def test_runs_that_differ_in_seed_are_averaged_and_their_deviations_too(tmp_path):
    make_transfer(tmp_path / "a", [4, 8])
    make_transfer(tmp_path / "b", [12, 12], network={"seed": 1})
    feature = only_feature(tmp_path)
    assert feature.means("overall") == pytest.approx([34 / 40, 28 / 40])
    assert feature.mean("overall") == pytest.approx(31 / 40)
    assert feature.deviation("overall") == pytest.approx(np.std([4 / 40, 8 / 40], ddof=1) / 2)


@pytest.mark.parametrize(
    ("changes", "network"),
    [
        ({"view": "crop"}, {}),
        ({"scale": 392}, {}),
        ({"aligned": True}, {}),
        ({"C": 10.0}, {}),
        ({"length": 512}, {}),
        ({"n_train": 10}, {}),
        ({"data_text": "folder drawings"}, {}),
        ({}, {"setting": "{}"}),
        ({}, {"trained_on": "timm"}),
        ({}, {"name": "resnet50"}),
    ],
)
def test_what_differs_in_more_than_the_seed_is_not_averaged(tmp_path, changes, network):
    make_transfer(tmp_path / "a", [4])
    make_transfer(tmp_path / "b", [8], network={"seed": 1} | network, **changes)
    assert len(features(read_transfers([str(tmp_path)]))) == 2


def test_other_images_of_the_same_name_are_another_protocol(tmp_path):
    make_transfer(tmp_path / "a", [4])
    make_transfer(tmp_path / "b", [8], network={"seed": 1}, images="other test images")
    found = features(read_transfers([str(tmp_path)]))
    assert [len(block) for block in by_protocol(found)] == [1, 1]
    make_transfer(tmp_path / "b", [8], "fc6", {"seed": 1}, images="other test images")
    assert sorted(len(block) for block in by_protocol(features(read_transfers([str(tmp_path)])))) == [1, 2]


def test_the_first_split_tells_the_images_whichever_file_is_read_first(tmp_path):
    make_transfer(tmp_path / "a", [4, 5])
    make_transfer(tmp_path / "b", [4], network={"seed": 1})
    assert len(only_feature(tmp_path).runs) == 2


def test_the_same_network_does_not_count_twice_but_shared_baselines_may(tmp_path):
    for name in ("a", "b"):
        make_transfer(tmp_path / name, [20], "pixels", RAW_PIXELS)
        make_transfer(tmp_path / name, [15], network=UNTRAINED)
    make_transfer(tmp_path / "a", [4])
    make_transfer(tmp_path / "b", [4], network={"variant": "none", "setting": "other"})
    found = features(read_transfers([str(tmp_path)]))
    assert [len(feature.runs) for feature in found] == [1, 1, 1, 1]
    assert all(pixels_baseline(feature, found) is found[3] for feature in found[:3])

    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    with pytest.raises(ValueError, match=r"name only one of them in runs=\[\.\.\.\]"):
        features(read_transfers([str(tmp_path)]))


def test_features_are_in_the_order_of_the_papers_tables(tmp_path):
    order = ["conv4", "conv5", "pool5_6x6", "pool5", "fc6", "fc7"]
    assert all(layer_order(first) < layer_order(second) for first, second in pairwise(order))
    make_transfer(tmp_path / "a", [20], "pixels", RAW_PIXELS)
    for layer in reversed(order):
        make_transfer(tmp_path / "a", [9], layer, UNTRAINED)
        make_transfer(tmp_path / "a", [4], layer)
    found = features(read_transfers([str(tmp_path)]))
    assert [feature.about["layer"] for feature in found] == [*order, *order, "pixels"]
    assert [feature.trained for feature in found] == [True] * 6 + [False] * 7


# Comparing.


def test_baselines_are_those_beside_the_feature(tmp_path):
    for name, setting in (("a", "1"), ("b", "2")):
        make_transfer(tmp_path / name, [4], network={"setting": setting})
        make_transfer(tmp_path / name, [9], network=UNTRAINED | {"setting": setting})
        make_transfer(tmp_path / name, [9], "fc6", UNTRAINED | {"setting": setting})
    first, second, *others = features(read_transfers([str(tmp_path)]))
    for feature in (first, second):
        baseline = untrained_baseline(feature, [first, second, *others])
        assert (baseline.setting, baseline.about["layer"]) == (feature.setting, "fc7")
        assert pixels_baseline(feature, others) is None
    assert all(untrained_baseline(feature, others) is None for feature in others)


def test_a_gain_over_splits_has_the_corrected_interval(tmp_path):
    make_transfer(tmp_path / "a", [4, 5, 9], n_train=20)
    make_transfer(tmp_path / "a", [10, 8, 12, 30], "pixels", RAW_PIXELS, n_train=20)
    feature, pixels = features(read_transfers([str(tmp_path)]))
    gained = gain(feature, pixels)
    differences = [6 / 40, 3 / 40, 3 / 40]  # the fourth split has no partner
    assert gained.value == pytest.approx(4 / 40)
    assert gained[1:3] == pytest.approx(resampled_interval(differences, 20, 40))
    assert gained.over_splits


def test_a_gain_with_one_split_is_over_its_images(tmp_path):
    make_transfer(tmp_path / "a", [4])
    make_transfer(tmp_path / "a", [10], "pixels", RAW_PIXELS)
    feature, pixels = features(read_transfers([str(tmp_path)]))
    wrong, pixels_wrong = np.arange(40) < 4, np.arange(40) < 10
    gained = gain(feature, pixels)
    assert gained == pytest.approx((6 / 40, *gain_interval(pixels_wrong[None], wrong[None]), False))


def test_a_gain_with_one_split_and_several_runs_is_over_both(tmp_path):
    for seed, (ours, theirs) in enumerate([(4, 10), (6, 11)]):
        make_transfer(tmp_path / f"{seed}", [ours], network={"seed": seed})
        make_transfer(tmp_path / f"{seed}", [theirs], network=UNTRAINED | {"seed": seed})
    feature, untrained = features(read_transfers([str(tmp_path)]))
    sides = [np.arange(40) < np.array(counts)[:, None] for counts in ((10, 11), (4, 6))]
    assert gain(feature, untrained)[1:3] == pytest.approx(gain_interval(*sides))


def several_labels(folder, hits, layer="fc7", **changes):
    about = made_about(layer, data_text="voc", **changes)
    return write_decisions(folder, made_several_labels(about, hits, n=60))


def test_a_gain_in_average_precision_is_over_the_same_resampled_images(tmp_path):
    several_labels(tmp_path / "a", 1.0)
    several_labels(tmp_path / "a", 0.3, network=UNTRAINED)
    feature, untrained = features(read_transfers([str(tmp_path)]))
    gained = gain(feature, untrained)
    assert gained.value == pytest.approx(feature.mean("11 points") - untrained.mean("11 points"))
    spread = 1.96 * (feature.at(0)[0].resampled - untrained.at(0)[0].resampled).std(ddof=1)
    assert gained[1:3] == pytest.approx((gained.value - spread, gained.value + spread))
    # A feature and its double agree on every image.
    assert gain(feature, feature)[:3] == pytest.approx((0, -1.96 * 2**0.5 / 60, 1.96 * 2**0.5 / 60))


def test_without_a_common_split_there_is_no_gain(tmp_path):
    make_transfer(tmp_path / "a", [4, 5])
    make_transfer(tmp_path / "a", [9, 9], "pixels", RAW_PIXELS)
    for path in ("fc7-split0", "pixels-split1"):
        next(tmp_path.rglob(f"{path}.npz")).unlink()
    feature, pixels = features(read_transfers([str(tmp_path)]))
    assert gain(feature, pixels) is None


def test_splits_with_other_images_are_not_compared(tmp_path):
    make_transfer(tmp_path / "a", [4, 5])
    paths = make_transfer(tmp_path / "a", [9, 9], "pixels", RAW_PIXELS)
    about = made_about("pixels", 1, RAW_PIXELS, train_images="other")
    write_decisions(tmp_path / "a", made_decisions(about, wrong=9))
    feature, pixels = features(read_transfers([str(tmp_path)]))
    with pytest.raises(ValueError, match=re.escape(f"{paths[1]}: split 1 has different images or classes in them")):
        gain(feature, pixels)


def test_values_by_class_are_means_over_splits_and_runs(tmp_path):
    make_transfer(tmp_path / "a", [4, 0])  # of 10 images per class, 1 is wrong in the first split
    make_transfer(tmp_path / "b", [8, 40], network={"seed": 1})
    assert only_feature(tmp_path).class_means() == pytest.approx([(0.9 + 1 + 0.8 + 0) / 4] * 4)


def test_decisions_in_memory_need_no_file():
    abouts = [made_about(split=split, network=network) for split in (0, 1) for network in (None, UNTRAINED)]
    found = features([Transfer.in_memory(made_decisions(about, wrong=4)) for about in abouts])
    assert [feature.splits for feature in found] == [[0, 1], [0, 1]]
    assert untrained_baseline(found[0], found) is found[1]
    assert json.dumps(found[0].about)
