"""Files of decisions of transfer: found, read and checked."""

import pytest

from made_runs import make_run
from made_transfers import (
    UNTRAINED,
    made_about,
    made_decisions,
    make_transfer,
    only_feature,
    write_decisions,
)
from sppnet.results.scores import write_scores
from sppnet.results.transferred_features import (
    features,
)
from sppnet.results.transfers import TRANSFER_RULES, read_transfers


def test_decisions_are_found_below_runs_and_folders_and_named_directly(tmp_path):
    make_transfer(tmp_path / "a", [1, 2])
    make_transfer(tmp_path / "b", [1, 2, 3], "fc6")
    run = tmp_path / "a"
    for place, count in {
        tmp_path: 5,
        tmp_path / "*": 5,
        run: 2,
        run / "transfer": 2,
        run / "transfer" / "*": 2,
    }.items():
        assert len(read_transfers([str(place)])) == count
    assert len(read_transfers([str(tmp_path), str(run)])) == 5


def test_other_files_are_not_read(tmp_path):
    (path,) = make_transfer(tmp_path / "a", [1])
    for name in ("features.npz", "fc7-split0.npz.tmp", "split0.npz", "fc7-splitx.npz"):
        (path.parent / name).write_bytes(b"anything")
    assert len(read_transfers([str(tmp_path)])) == 1


def test_a_pattern_without_runs_and_decisions_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    make_transfer(tmp_path / "a", [1])
    for name in ("empty", "nothing*"):
        with pytest.raises(ValueError, match=r"no run directories there, and no decisions of transfer"):
            read_transfers([str(tmp_path / "a"), str(tmp_path / name)])
    make_run(tmp_path / "trained", "single")
    assert read_transfers([str(tmp_path / "trained")]) == []


def test_decisions_of_another_version_of_the_code_are_left_out(tmp_path):
    make_transfer(tmp_path / "a", [1], rules=TRANSFER_RULES + 1)
    make_transfer(tmp_path / "a", [1], "fc6")
    assert only_feature(tmp_path).about["layer"] == "fc6"


def test_decisions_of_an_earlier_checkpoint_are_left_out_but_not_its_baselines(tmp_path):
    run = make_run(tmp_path, "single")  # result.json names the checkpoint "abc"
    make_transfer(run, [1], "fc6")
    make_transfer(run, [1], checkpoint="earlier")
    make_transfer(run, [1], network=UNTRAINED, checkpoint="earlier")
    layers = [(feature.about["layer"], feature.trained) for feature in features(read_transfers([str(run)]))]
    assert layers == [("fc6", True), ("fc7", False)]
    (run / "result.json").unlink()  # training continues: no record says which checkpoint is the last
    assert len(read_transfers([str(run)])) == 3


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, content):
    (path,) = make_transfer(tmp_path / "a", [1])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"fc7-split0\.npz: not a scores file \(.*run .*transfer.* again$") as error:
        read_transfers([str(tmp_path)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer": 7}, "layer must be text"),
        ({"length": 0}, "length must be a whole number from 1"),
        ({"C": "1"}, "C must be a number above 0"),
        ({"aligned": "no"}, "aligned must be true or false"),
        ({"split": -1}, "split must be a whole number from 0"),
        ({"data": "folder"}, "data must be keys with values"),
        ({"classes": ["ant", 2]}, "classes must be a list of names"),
        ({"classes": None}, "classes must be a list of names"),
        ({"network": None}, "network must be keys with values"),
    ],
)
def test_what_is_said_about_decisions_is_checked(tmp_path, changes, words):
    scores = made_decisions(made_about(), wrong=1)
    scores.about.update(changes)
    write_scores(tmp_path / "a" / "transfer" / "title" / "fc7-split0.npz", scores)
    with pytest.raises(ValueError, match=rf"fc7-split0\.npz: not decisions of transfer \({words}\)"):
        read_transfers([str(tmp_path)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": "0"}, "network.seed must be null or a whole number"),
        ({"on_imagenet": 1}, "network.on_imagenet must be true or false"),
        ({"trained_on": ""}, "network.trained_on must be null or text"),
        ({"levels": "6"}, "network.levels must be null or a list of whole numbers"),
    ],
)
def test_what_is_said_about_the_network_is_checked(tmp_path, changes, words):
    make_transfer(tmp_path / "a", [1], network=changes)
    with pytest.raises(ValueError, match=rf"not decisions of transfer \({words}"):
        read_transfers([str(tmp_path)])


def test_every_key_is_needed(tmp_path):
    about = made_about()
    for key in set(about) - {"rules", "checkpoint", "run"}:
        scores = made_decisions(about, wrong=1)
        write_decisions(tmp_path / "a", scores)
        (path,) = (tmp_path / "a").rglob("*.npz")
        write_scores(path, type(scores)(scores.scores, scores.labels, scores.names, {**about, key: None}))
        with pytest.raises(ValueError, match=rf"\({key} must be"):
            read_transfers([str(tmp_path)])
        shorter = {name: value for name, value in about.items() if name != key}
        write_scores(path, type(scores)(scores.scores, scores.labels, scores.names, shorter))
        with pytest.raises(ValueError, match=rf"\({key} is missing\)"):
            read_transfers([str(tmp_path)])


def test_decisions_of_other_classes_than_named_are_refused(tmp_path):
    scores = made_decisions(made_about(), wrong=1)
    scores.about["classes"] = ["ant"]
    write_decisions(tmp_path / "a", scores)
    with pytest.raises(ValueError, match=r"fc7-split0\.npz: decisions of 4 classes, and 1 names of classes"):
        _ = only_feature(tmp_path).shape
