"""result.json: what is written, what old versions wrote, what is refused."""

import dataclasses
import json

import pytest

from sppnet.results.records import Epoch, Result, read_result, result_text, shows_top5, write_result
from sppnet.runtime.files import write_json

RESULT = {
    "network": "zf5 (width 0.25), pyramid 6, 3, 2, 1, 1,000 parameters",
    "data": "shapes",
    "n": 500,
    "num_classes": 10,
    "protocol": "centre crop 224",
    "top1_error": 0.1,
    "top1_wrong": 50,
    "top5_wrong": 5,
    "epochs": 4,
    "seconds": 3725.0,
    "hardware": "2 cores of a processor",
    "training_images": 100,
    "history": [{"images_per_second": 50.0}],
}
OLD_VALUES = {key: value for key, value in RESULT.items() if key not in ("top1_error", "history")}


# A file as training writes it, with one epoch that was not validated.
FULL_RESULT = """{
  "data": "shapes",
  "network": "zf5",
  "protocol": "centre crop 224 of images at shorter side 256, one view",
  "top1_error": 0.1,
  "top5_error": 0.01,
  "top1_wrong": 50,
  "top5_wrong": 5,
  "n": 500,
  "num_classes": 10,
  "training_images": 100,
  "unreadable_training_images": 0,
  "data_fingerprint": "123",
  "epochs": 2,
  "seconds": 3725.0,
  "seed": 9223372036854775807,
  "precision": "32-true",
  "versions": {
    "python": "3.11.2",
    "sppnet": null
  },
  "commit": null,
  "hardware": "2 cores of a processor",
  "history": [
    {
      "epoch": 1,
      "size": 224,
      "train_loss": 2.25,
      "learning_rate": 0.01,
      "images_per_second": 50.0,
      "seconds": 1800.0
    },
    {
      "epoch": 2,
      "size": 180,
      "train_loss": 1.5,
      "learning_rate": 0.01,
      "images_per_second": 60.0,
      "seconds": 1925.0,
      "top1_wrong": 50,
      "top5_wrong": 5,
      "n": 500
    }
  ],
  "checkpoint": "abc",
  "validation_images": "456"
}
"""


def test_a_result_is_written_as_it_was_read(tmp_path):
    (tmp_path / "result.json").write_text(FULL_RESULT)
    write_result(tmp_path / "copy", read_result(tmp_path))
    assert (tmp_path / "copy" / "result.json").read_text() == FULL_RESULT
    assert [file.name for file in (tmp_path / "copy").iterdir()] == ["result.json"]


def test_a_result_has_its_errors_and_epochs(tmp_path):
    (tmp_path / "result.json").write_text(FULL_RESULT)
    result = read_result(tmp_path)
    assert (result.top1_error, result.top5_error) == (0.1, 0.01)
    assert [epoch.size for epoch in result.history] == [224, 180]
    assert [epoch.n for epoch in result.history] == [None, 500]  # the first was not validated


def test_a_result_of_an_old_version_is_read_without_what_it_lacks(tmp_path):
    write_json(tmp_path / "result.json", RESULT | {"a key of another version": 1})
    result = read_result(tmp_path)
    assert result == Result(**OLD_VALUES, history=(Epoch(images_per_second=50.0),))
    assert (result.seed, result.commit, result.validation_images, result.history[0].size) == (None, None, None, None)


def test_json_has_one_value_per_line_and_missing_folders_are_made(tmp_path):
    file = tmp_path / "runs" / "one" / "result.json"
    write_json(file, {"n": 500, "data": "shapes"})
    assert file.read_text() == '{\n  "n": 500,\n  "data": "shapes"\n}\n'


def test_a_network_that_is_always_wrong_has_a_result(tmp_path):
    write_json(tmp_path / "result.json", RESULT | {"top1_error": 1.0, "top1_wrong": 500, "top5_wrong": 500})
    result = read_result(tmp_path)
    assert (result.top1_wrong, result.top1_error) == (500, 1.0)


def test_an_unfinished_run_has_no_result(tmp_path):
    assert read_result(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"top1_error": "abc"}'])
def test_the_error_names_a_damaged_result(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json: not a result of a run"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("top1_error", [0.1], "top1_error must be a number from 0 to 1"),
        ("top1_error", float("nan"), "top1_error must be a number from 0 to 1"),
        ("n", "500", "n must be a whole number from 1"),
        ("n", True, "n must be a whole number from 1"),
        ("n", 10**400, "n must be a whole number from 1"),
        ("top1_wrong", 501, "more images are wrong than n=500"),
        ("seconds", None, "seconds must be a number from 0"),
        ("hardware", 7, "hardware must be text"),
        ("history", [], "history must be a list of epochs"),
        ("history", 5, "history must be a list of epochs"),
        ("history", [{}], "history must be a list of epochs with images_per_second"),
        ("history", [{"images_per_second": 50.0, "size": "64"}], r"history\[0\]\.size must be a whole number from 1"),
        ("network", ["zf5"], "network must be text"),
        ("versions", ["3.11"], "versions must be names with text or null"),
        ("hardware", "\ud800", "surrogates not allowed"),
    ],
)
def test_a_result_with_another_value_is_refused_by_key(tmp_path, key, value, words):
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {key: value}))
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/result\.json: not a result of a run \(.*{words}.*\); delete it"
    ):
        read_result(tmp_path)


def test_a_result_that_is_too_deep_or_too_large_is_refused(tmp_path):
    for text in ("[" * 100_000, '{"n": ' + "9" * 5000 + "}", " " * (65 << 20)):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(ValueError, match=r"result\.json: not a result of a run"):
            read_result(tmp_path)


def test_a_value_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "result.json", RESULT)
    with pytest.raises(TypeError):
        write_json(tmp_path / "result.json", {"top1_error": object()})
    assert json.loads((tmp_path / "result.json").read_text()) == RESULT
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_top5_is_shown_unless_a_guess_is_right_more_often_than_not():
    assert [shows_top5(classes) for classes in (1, 2, 5, 6, 9, 10, 11, 1000)] == [False] * 5 + [True] * 3


def test_the_text_shows_errors_with_interval_n_and_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tensorboard").mkdir()
    assert result_text(Result.from_dict(RESULT), tmp_path).splitlines() == [
        "  network        zf5 (width 0.25), pyramid 6, 3, 2, 1, 1,000 parameters",
        "  data           shapes (500 validation images, 10 classes)",
        "  protocol       centre crop 224",
        "  top-1 error    10.00 %  (95 % interval 7.67 to 12.94 %)",
        "  top-5 error    1.00 %  (95 % interval 0.43 to 2.32 %)",
        "  trained        4 epochs in 1 h 2 min on 2 cores of a processor",
        f"  run directory  {tmp_path}",
        f"  TensorBoard    tensorboard --logdir {tmp_path}",
        f"  next           sppnet predict run={tmp_path} images=PHOTOS",
    ]


def test_the_text_shows_a_better_epoch_early_stopping_and_the_file_of_metrics(tmp_path, monkeypatch):
    """As a run that trained one epoch, one that stopped early, and one with logger=csv."""
    monkeypatch.chdir(tmp_path)
    epochs = [{"images_per_second": 1.0, "top1_wrong": wrong, "n": 50} for wrong in (7, 5, 6)]
    values = RESULT | {"top1_wrong": 1, "top5_wrong": 0, "n": 1, "num_classes": 1, "epochs": 1, "history": epochs[:1]}
    one = result_text(Result.from_dict(values), tmp_path, 0)
    assert "(1 validation image, 1 class)" in one
    assert "1 epoch in" in one
    assert "best" not in one

    (tmp_path / "checkpoints").mkdir()
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    finished = Result.from_dict(RESULT | {"epochs": 3, "history": epochs})
    assert "best" not in result_text(finished, tmp_path, 1)
    checkpoint.touch()
    assert f"\n  best epoch     2, top-1 error 10.00 %: {checkpoint}\n" in result_text(finished, tmp_path, 1)
    assert "best" not in result_text(finished, tmp_path, 2)

    reason = "no lower validation error in 1 epoch (recipe.stop_patience)"
    stopped = dataclasses.replace(finished, stopped=reason, best_epoch=2)
    assert f"; stopped early: {reason}; epoch 2 is the result\n" in result_text(stopped, tmp_path, 1)
    assert "best" not in result_text(stopped, tmp_path, 1)

    for number in range(11):
        (tmp_path / "csv" / f"version_{number}").mkdir(parents=True)
        (tmp_path / "csv" / f"version_{number}" / "metrics.csv").touch()
    assert f"\n  metrics        {tmp_path}/csv/version_10/metrics.csv\n  next " in result_text(finished, tmp_path)
