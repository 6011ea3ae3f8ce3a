"""Combinations of transferred features: averaged decisions, which features may be combined, and their row."""

import numpy as np
import pytest

from made_runs import row_of
from made_transfers import (
    RAW_PIXELS,
    UNTRAINED,
    made_about,
    made_decisions,
    made_several_labels,
    make_transfer,
    write_decisions,
)
from sppnet.commands import tables
from sppnet.results.combinations import combined
from sppnet.results.scores import Scores, read_scores
from sppnet.results.transfer_page import transfer_page
from sppnet.results.transferred_features import features, gain
from sppnet.results.transfers import read_transfers


def found_in(*places):
    return read_transfers([str(place) for place in places])


def make_random(run, layer, seed, split=0, network=None, title="photos-full224-1a2b3c4d", **changes):
    """Saves decisions that are random numbers, but for the true class somewhat larger; returns them."""
    about = made_about(layer, split, network, **changes)
    scores = made_decisions(about, wrong=0)
    noise = np.random.default_rng(seed).normal(size=scores.scores.shape).astype(np.float32)
    scores = Scores(scores.scores / 2 + noise, scores.labels, scores.names, about)
    write_decisions(run, scores, title)
    return scores


def test_decision_values_are_averaged_split_by_split(tmp_path):
    made = {
        (layer, split): make_random(tmp_path / "a", layer, seed, split)
        for seed, (layer, split) in enumerate([("conv4", 0), ("conv4", 1), ("pool5", 0), ("pool5", 1)])
    }
    feature = combined("conv4+pool5", found_in(tmp_path)).feature
    assert feature.splits == [0, 1]
    for split in (0, 1):
        mean = (made["conv4", split].scores + made["pool5", split].scores) / 2
        (transfer,) = feature.at(split)
        assert transfer.scores.scores == pytest.approx(mean)
        right = mean.argmax(axis=1) == made["conv4", split].labels
        assert transfer.measures["overall"] == pytest.approx(right.mean())


def test_a_weak_and_a_strong_feature_have_equal_weights_whatever_their_order(tmp_path):
    for seed, layer in enumerate(("conv4", "pool5", "fc7")):
        make_random(tmp_path / "a", layer, seed)
    one, other = (combined(text, found_in(tmp_path)).feature for text in ("conv4+pool5+fc7", " fc7 + conv4 + pool5 "))
    assert one.at(0)[0].scores.scores == pytest.approx(other.at(0)[0].scores.scores)


def test_several_labels_are_combined_too(tmp_path):
    for layer, hits in (("fc6", 0.5), ("fc7", 1.0)):
        write_decisions(tmp_path / "a", made_several_labels(made_about(layer), hits))
    fc6, fc7 = features(found_in(tmp_path))
    both = combined("fc6+fc7", found_in(tmp_path)).feature
    assert both.measure_names == ("11 points", "all points")
    expected = (fc6.at(0)[0].scores.scores + fc7.at(0)[0].scores.scores) / 2
    assert both.at(0)[0].scores.scores == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "photos-full224-*/fc7+photos-full392-*/fc7",  # scales
        "photos-full224-1a/fc7+a/transfer/photos-full392-2b/fc7",
        "photos-full224-*/fc7+fc7-untrained",  # networks
        "photos-full224-*/fc7 + pixels",
    ],
)
def test_features_of_other_scales_and_networks_are_named_by_more_of_the_path(tmp_path, text):
    make_random(tmp_path / "a", "fc7", 0, title="photos-full224-1a")
    make_random(tmp_path / "a", "fc7", 1, title="photos-full392-2b", scale=392)
    make_random(tmp_path / "a", "fc7", 2, title="photos-full224-1a", network=UNTRAINED)
    make_random(tmp_path / "a", "pixels", 3, title="photos-full224-1a", network=RAW_PIXELS)
    assert len(combined(text, found_in(tmp_path)).parts) == 2


def test_runs_are_combined_by_seed(tmp_path):
    made = {}
    for seed in (0, 1):
        for layer in ("fc6", "fc7"):
            made[seed, layer] = make_random(tmp_path / f"{seed}", layer, len(made), network={"seed": seed})
    feature = combined("fc6+fc7", found_in(tmp_path)).feature
    assert list(feature.runs) == [0, 1]
    for seed, splits in feature.runs.items():
        mean = (made[seed, "fc6"].scores + made[seed, "fc7"].scores) / 2
        assert splits[0].scores.scores == pytest.approx(mean)


def test_runs_of_several_seeds_of_the_same_network_are_combined_by_their_folders(tmp_path):
    one, other = (make_random(tmp_path / f"{seed}", "fc7", seed, network={"seed": seed}) for seed in (0, 1))
    feature = combined("0/transfer/*/fc7+1/transfer/*/fc7", found_in(tmp_path)).feature
    assert feature.at(0)[0].scores.scores == pytest.approx((one.scores + other.scores) / 2)


# What cannot be combined.


def refused(text, place):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        _ = combined(text, found_in(place)).feature.at(0)[0].scores
    return str(error.value)


@pytest.mark.parametrize("text", ["fc7", "", "fc7+", "+fc7", "fc6++fc7"])
def test_one_name_is_no_combination(tmp_path, text):
    make_transfer(tmp_path / "a", [1])
    assert refused(text, tmp_path).startswith(
        f"combine={text}: must be two or more names of decisions joined by +, as in pool5+fc7"
    )


def test_a_name_without_decisions_is_told_with_those_that_there_are(tmp_path):
    make_transfer(tmp_path / "a", [1, 2])
    make_transfer(tmp_path / "a", [1], network=UNTRAINED)
    assert refused("fc7+fc8", tmp_path) == "combine=fc7+fc8: no decisions of fc8; there are fc7, fc7-untrained"


def test_a_name_of_several_features_is_told_with_their_paths(tmp_path):
    for view in ("full", "crop"):
        for layer in ("fc6", "fc7"):
            make_random(tmp_path / "a", layer, 0, title=f"photos-{view}224", view=view)
    message = refused("fc6+fc7", tmp_path)
    folder = tmp_path / "a" / "transfer"
    assert message == (
        f"combine=fc6+fc7: fc6 is the name of 2 features, such as {folder}/photos-crop224/fc6 and "
        f"{folder}/photos-full224/fc6; give more of the path of one"
    )


def test_a_feature_is_not_combined_with_itself(tmp_path):
    make_transfer(tmp_path / "a", [1])
    assert refused("fc7+*/fc7", tmp_path) == "combine=fc7+*/fc7: must not name the same decisions twice"


def test_other_splits_are_refused(tmp_path):
    make_transfer(tmp_path / "a", [1, 2, 3], "fc6")
    make_transfer(tmp_path / "a", [1, 2])
    assert refused("fc6+fc7", tmp_path) == "combine=fc6+fc7: has the splits 0, 1, 2 and 0, 1; must have the same ones"


def test_other_seeds_are_refused(tmp_path):
    for seed in (0, 1):
        make_transfer(tmp_path / f"{seed}", [1], "fc6", {"seed": seed})
    make_transfer(tmp_path / "0", [1])
    assert "has runs of the seeds 0, 1 and 0; must be the same seeds" in refused("fc6+fc7", tmp_path)


@pytest.mark.parametrize(
    "changes", [{"images": "other"}, {"train_images": "other"}, {"classes": ["bee", "ant", "<cat>", "dog"]}]
)
def test_other_images_and_classes_are_refused(tmp_path, changes):
    (first,) = make_transfer(tmp_path / "a", [1], "fc6")
    (other,) = make_transfer(tmp_path / "b", [1], **changes)
    assert refused("fc6+fc7", tmp_path) == f"{first} and {other}: split 0 has different images or classes in them"


def test_other_labels_are_refused_by_the_names_of_the_files(tmp_path):
    (first,) = make_transfer(tmp_path / "a", [1], "fc6")
    (other,) = make_transfer(tmp_path / "a", [1])
    scores = read_scores(other)
    write_decisions(tmp_path / "a", Scores(scores.scores, scores.labels[::-1], scores.names, scores.about))
    assert refused("fc6+fc7", tmp_path).startswith(f"{first} and {other} were tested on different images or classes")


# The row in the table.


def test_the_row_has_gains_over_the_pixels_and_over_each_part(tmp_path):
    for split in range(3):
        for seed, layer in enumerate(("conv4", "pool5")):
            make_random(tmp_path / "a", layer, 10 * split + seed, split, length=100)
        make_random(tmp_path / "a", "pixels", 10 * split + 5, split, RAW_PIXELS, length=768)
    transfers = found_in(tmp_path)
    page = transfer_page(transfers, ["conv4+pool5"])
    row = row_of(page, "conv4 + pool5")
    assert row[:7] == ["zf5, SPP, two sizes", "caltech101", "full 224", "conv4 + pool5", "100", "1", "3"]

    conv4, pool5, pixels = features(transfers)
    both = combined("conv4+pool5", transfers).feature
    assert row[7].startswith(f"{100 * both.mean('overall'):.2f} ± ")
    over = [gain(both, other) for other in (pixels, conv4, pool5)]
    texts = [f"{100 * g.value:+.2f} ({100 * g.low:+.2f} to {100 * g.high:+.2f})" for g in over]
    assert row[9:] == [texts[0], f"{texts[1]}, {texts[2]}"]
    assert over[0].value != over[1].value != over[2].value
    text = page.markdown()
    assert "gain over each part" in text
    assert "A + B: features combined by the mean of the decision values of their SVMs, with equal weights." in text
    assert row_of(page, "| conv4  ")[-1] == ""


def test_what_differs_between_the_parts_is_joined_in_the_row(tmp_path):
    other = {"name": "convnet5", "setting": "other", "trained_on": "shapes"}
    make_random(tmp_path / "a", "fc7", 0, title="photos-full224-1a")
    make_random(tmp_path / "b", "fc7", 1, title="photos-full392-2b", scale=392, network=other)
    page = transfer_page(found_in(tmp_path), ["*full224*/fc7+*full392*/fc7"])
    assert row_of(page, "fc7 + fc7")[:5] == [
        "zf5, SPP, two sizes + convnet5, SPP, two sizes",
        "caltech101 + shapes",
        "full 224 + full 392",
        "fc7 + fc7",
        "4,096",
    ]


def test_a_combination_is_in_the_table_of_its_data_only(tmp_path):
    for data in ("photos", "drawings"):
        changes = {"data_text": f"folder {data}", "images": data, "title": f"{data}-full224"}
        for seed, layer in enumerate(("fc6", "fc7")):
            make_random(tmp_path / "a", layer, seed, **changes)
    text = transfer_page(found_in(tmp_path), ["photos*/fc6+photos*/fc7"]).markdown()
    assert text.count("fc6 + fc7") == 1
    assert "fc6 + fc7" in text.split("## folder photos")[1].split("## folder")[0]


def test_without_combinations_the_page_says_nothing_of_them(tmp_path):
    make_transfer(tmp_path / "a", [1, 2])
    text = transfer_page(found_in(tmp_path)).markdown()
    assert "A + B" not in text
    assert "each part" not in text


@pytest.mark.parametrize("value", ["fc6+fc7", "[fc6+fc7]", "[fc6+fc7,fc6+pool5]"])
def test_the_command_takes_one_combination_or_several(tmp_path, capsys, value):
    for layer in ("pool5", "fc6", "fc7"):
        make_transfer(tmp_path / "a", [1, 2], layer)
    tables.main(["transfer", f"runs={tmp_path}", f"out={tmp_path / 'out'}", f"combine={value}"])
    out = capsys.readouterr().out
    assert out.count("fc6 + fc7") == 1
    assert out.count("fc6 + pool5") == value.count("pool5")


@pytest.mark.parametrize("choice", ["table2", "table7", "all", "compare"])
def test_only_transfer_combines_features(tmp_path, choice):
    make_transfer(tmp_path / "a", [1, 2])
    with pytest.raises(ValueError, match=r"^combine=fc6\+fc7: is for transfer, table12, detection; compare combines"):
        tables.main([choice, f"runs={tmp_path}", "combine=fc6+fc7"])
