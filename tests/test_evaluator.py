"""Evaluations: every image once, gone on with after a stop, saved whole, never mistaken for another."""

import json

import numpy as np
import pytest
import torch

from conftest import make_image_folder
from sppnet.backbones import build_backbone
from sppnet.classify import evaluator
from sppnet.classify.evaluator import EvaluationJob, Hardware, evaluate, evaluate_to_file
from sppnet.classify.views import ViewProtocol
from sppnet.datasets import open_data, select_images
from sppnet.network import SPPNet
from sppnet.records import Scores, add_score_part, read_score_parts, read_scores, write_scores

PROTOCOL = ViewProtocol(full_scales=[48])
CPU = Hardware(accelerator="cpu", workers=0, precision="float32")
IDENTITY = {"checkpoint": "abc"}


@pytest.fixture
def network():
    torch.manual_seed(0)
    backbone = build_backbone("zf5", width=0.05)
    return SPPNet(backbone, (2, 1), 2, hidden=8, initialization="fan_in", classes=("cat", "dog")).eval()


@pytest.fixture
def images(tmp_path):
    root = make_image_folder(tmp_path / "images", train=2, val=4)
    return select_images(open_data("folder", root=str(root)), "val")


def score(path, network, images, **changes):
    options = {"protocol": PROTOCOL, "hardware": CPU, "identity": IDENTITY, "about": {"run": "one"}} | changes
    return evaluate_to_file(path, network, images, **options)


def test_scores_labels_and_names_are_saved_with_where_they_come_from(network, images, tmp_path):
    path = tmp_path / "scores" / "full.npz"
    scores = score(path, network, images)
    assert scores.scores.shape == (8, 2)
    np.testing.assert_allclose(scores.scores.sum(1), 1, rtol=1e-5)
    assert scores.labels.tolist() == [0] * 4 + [1] * 4
    assert scores.names[:2].tolist() == ["val/cat/0.jpg", "val/cat/1.jpg"]
    about = read_scores(path).about
    assert (about["checkpoint"], about["precision"], about["run"], about["n"]) == ("abc", "float32", "one", 8)
    assert about["versions"]["torch"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["full.npz"]


def test_the_same_again_reads_the_file(network, images, tmp_path, monkeypatch, capsys):
    first = score(tmp_path / "full.npz", network, images)
    monkeypatch.setattr(evaluator, "evaluate", None)
    again = score(tmp_path / "full.npz", network, images)
    assert np.array_equal(first.scores, again.scores)
    assert "scored already" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [{"identity": {"checkpoint": "def"}}, {"hardware": Hardware(accelerator="cpu", workers=0, precision="bf16")}],
)
def test_anything_else_is_scored_anew_and_said(network, images, tmp_path, capsys, changes):
    score(tmp_path / "full.npz", network, images)
    score(tmp_path / "full.npz", network, images, **changes)
    out = capsys.readouterr().out
    assert "scoring anew, as checkpoint changed" in out or "scoring anew, as precision changed" in out


def test_a_stopped_evaluation_goes_on(network, images, tmp_path, monkeypatch):
    path, whole = tmp_path / "full.npz", score(tmp_path / "whole.npz", network, images)
    scored = []
    original = evaluator.score_images

    def stops_after_three(scorer, images, indices, workers):
        for some, values in original(scorer, images, indices, workers=workers):
            if len(scored) >= 3:
                raise KeyboardInterrupt
            scored.extend(some)
            yield some, values

    monkeypatch.setattr(evaluator, "score_images", stops_after_three)
    with pytest.raises(KeyboardInterrupt):
        score(path, network, images)
    assert not path.exists()
    done = len(scored)
    assert 3 <= done < 8

    def notes(scorer, images, indices, workers):
        scored.extend(indices)
        return original(scorer, images, indices, workers=workers)

    monkeypatch.setattr(evaluator, "score_images", notes)
    resumed = score(path, network, images)
    assert sorted(scored) == list(range(8))
    np.testing.assert_allclose(resumed.scores, whole.scores, rtol=1e-5)
    assert not path.with_suffix(".parts").exists()


def test_parts_of_something_else_and_damaged_parts_do_not_count(network, images, tmp_path):
    parts = tmp_path / "full.parts"
    wrong = np.full((8, 2), 9, np.float32)
    add_score_part(parts, {"checkpoint": "other"}, np.arange(8), wrong)
    (parts / "damaged.npz").write_bytes(b"PK\x03\x04 no")
    identity = IDENTITY | {"precision": "float32"}
    add_score_part(parts, identity, np.array([2, 99]), wrong[:2])
    assert [indices.tolist() for indices, _ in read_score_parts(parts, identity)] == [[2, 99]]
    assert score(tmp_path / "full.npz", network, images).scores.max() <= 1


@pytest.mark.slow
def test_two_processes_score_every_image_once(network, images, tmp_path):
    one = score(tmp_path / "one.npz", network, images)
    two = Hardware(accelerator="cpu", devices=2, workers=0, precision="float32")
    both = score(tmp_path / "two.npz", network, images, hardware=two)
    np.testing.assert_allclose(one.scores, both.scores, rtol=1e-4)
    assert both.names.tolist() == one.names.tolist()


def test_a_missed_image_is_an_error(network, images, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "score_images", lambda *_, **__: iter(()))
    job = EvaluationJob(network, images, PROTOCOL, CPU, 0, tmp_path / "parts", IDENTITY)
    with pytest.raises(RuntimeError, match="8 of 8 images were not scored"):
        evaluate(job, "full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "cuda"}, "hardware.accelerator=cuda: must be one of auto, cpu, gpu"),
        ({"accelerator": "cpu", "devices": 0}, "hardware.devices=0: must be 1 to"),
        ({"precision": "half"}, "hardware.precision=half: must be bf16, float32 or null"),
        ({"megapixels": 0}, "hardware.megapixels=0: must be above 0"),
        ({"workers": -1}, "hardware.workers=-1: must be at least 0"),
    ],
)
def test_hardware_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Hardware(**options)


# The file.


def example():
    scores = np.array([[0.5, 0.5, 0], [0, 1, 0]], np.float32)
    return Scores(scores, np.array([0, 2]), np.array(["a.jpg", "b.jpg"]), {"run": "x"})


def test_what_is_written_is_read(tmp_path):
    write_scores(tmp_path / "file.npz", example())
    read = read_scores(tmp_path / "file.npz")
    assert np.array_equal(read.scores, example().scores)
    assert read.about == {"run": "x"}
    assert [path.name for path in tmp_path.iterdir()] == ["file.npz"]


def damaged(**changes):
    fields = {"scores": example().scores, "labels": example().labels, "names": example().names, "about": json.dumps({})}
    return fields | changes


@pytest.mark.parametrize(
    "fields",
    [
        damaged(scores=np.array([[np.nan, 1, 0], [0, 1, 0]], np.float32)),
        damaged(scores=np.zeros((2, 3), np.int64)),
        damaged(scores=np.zeros(2, np.float32)),
        damaged(labels=np.array([0, 3])),
        damaged(labels=np.array([0])),
        damaged(names=np.array(["a", "b"], object)),
        damaged(about="no json"),
        damaged(about="[]"),
        {"scores": example().scores},
    ],
)
def test_a_damaged_scores_file_is_refused_in_one_line(tmp_path, fields):
    np.savez(tmp_path / "file.npz", **fields)
    with pytest.raises(
        ValueError, match=r"file\.npz: not a scores file \(.*delete it and run evaluate\.py again$"
    ) as error:
        read_scores(tmp_path / "file.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"])
def test_any_other_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "file.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.npz: not a scores file"):
        read_scores(tmp_path / "file.npz")
