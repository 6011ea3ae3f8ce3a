"""Evaluations: every image is scored once; interrupted ones resume; scores of other images never count."""

import shutil

import numpy as np
import pytest
import torch

from conftest import make_image_folder
from sppnet.backbones import build_backbone
from sppnet.classify import evaluator
from sppnet.classify.evaluator import Evaluation, evaluate, evaluate_to_file
from sppnet.classify.views import ViewProtocol
from sppnet.data.images import UnreadableImage
from sppnet.data.sources import content_digests, images_fingerprint, open_data, select_images
from sppnet.network import SPPNet
from sppnet.results.scores import (
    SCORING_RULES,
    ScorePart,
    Scores,
    add_score_part,
    read_score_parts,
    read_scores,
    write_scores,
)
from sppnet.runtime.hardware import Hardware

PROTOCOL = ViewProtocol(full_scales=[48])
CPU = Hardware(accelerator="cpu", workers=0, precision="float32")


@pytest.fixture
def network():
    torch.manual_seed(0)
    backbone = build_backbone("zf5", width=0.05)
    return SPPNet(backbone, (2, 1), 2, hidden=8, initialization="fan_in", classes=("cat", "dog")).eval()


@pytest.fixture
def images(tmp_path):
    return val_images(make_image_folder(tmp_path / "images", train=2, val=4))


def val_images(root, exclude=()):
    return select_images(open_data("folder", root=str(root)), "val", exclude)


def digests_of(images):
    return content_digests(images, "reading")


def score(path, network, images, **changes):
    options = {
        "protocol": PROTOCOL,
        "hardware": CPU,
        "title": path.stem,
        "checkpoint": "abc",
        "about": {"run": "one"},
    } | changes
    return evaluate_to_file(path, network, images, digests_of(images), **options)


def scores_one_by_one(network, images):
    """name -> scores, of each image scored by itself."""
    rows = {}
    for i in range(len(images)):
        scorer = evaluator.Scorer(network, PROTOCOL, pixels=10**6)
        ((_, values),) = evaluator.score_images(scorer, images, [i], workers=0)
        rows[images.name(i)] = values[0].numpy()
    return rows


def check_rows(scores, network, images):
    """Every row holds the scores of the image that its name names."""
    expected = scores_one_by_one(network, images)
    assert scores.names.tolist() == list(expected)
    np.testing.assert_allclose(scores.scores, np.stack(list(expected.values())), rtol=1e-4)


def test_scores_labels_and_names_are_saved_with_their_origin(network, images, tmp_path):
    path = tmp_path / "scores" / "full.npz"
    scores = score(path, network, images)
    assert scores.scores.shape == (8, 2)
    np.testing.assert_allclose(scores.scores.sum(1), 1, rtol=1e-5)
    assert scores.labels.tolist() == [0] * 4 + [1] * 4
    assert scores.names[:2].tolist() == ["val/cat/0.jpg", "val/cat/1.jpg"]
    about = read_scores(path).about
    assert (about["checkpoint"], about["precision"], about["run"], about["n"]) == ("abc", "float32", "one", 8)
    assert about["images"] == images_fingerprint(images, digests_of(images))
    assert about["rules"] == SCORING_RULES
    assert about["versions"]["torch"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["full.npz"]


def test_the_same_evaluation_again_reads_the_file(network, images, tmp_path, monkeypatch, capsys):
    first = score(tmp_path / "full.npz", network, images)
    monkeypatch.setattr(evaluator, "evaluate", None)
    again = score(tmp_path / "full.npz", network, images)
    assert np.array_equal(first.scores, again.scores)
    assert "full: scored already (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"checkpoint": "def"}, "the checkpoint changed"),
        ({"hardware": Hardware(accelerator="cpu", workers=0, precision="bf16")}, "the precision changed"),
        ({"protocol": ViewProtocol(full_scales=[56])}, "the protocol changed"),
    ],
)
def test_a_changed_evaluation_is_scored_again_and_the_reason_shown(network, images, tmp_path, capsys, changes, reason):
    score(tmp_path / "full.npz", network, images)
    score(tmp_path / "full.npz", network, images, **changes)
    assert f"full: scoring again, as {reason}" in capsys.readouterr().out


# Scores are of images, not of the names of files and folders.


def test_other_images_of_the_same_names_are_scored_again(network, tmp_path, capsys):
    one, other = (make_image_folder(tmp_path / place / "images", train=2, val=4) for place in "AB")
    (other / "val" / "cat" / "1.jpg").write_bytes((one / "val" / "dog" / "3.jpg").read_bytes())
    path = tmp_path / "full.npz"
    score(path, network, val_images(one))
    again = score(path, network, val_images(other))
    assert "full: scoring again, as the images changed" in capsys.readouterr().out
    check_rows(again, network, val_images(other))


def test_swapped_contents_of_two_class_folders_are_scored_again(network, tmp_path, capsys):
    root = make_image_folder(tmp_path / "images", train=2, val=4)
    path = tmp_path / "full.npz"
    score(path, network, val_images(root))
    for source, target in (("cat", "kept"), ("dog", "cat"), ("kept", "dog")):
        (root / "val" / source).rename(root / "val" / target)
    again = score(path, network, val_images(root))
    assert "scoring again, as the images changed" in capsys.readouterr().out
    check_rows(again, network, val_images(root))


def test_a_copy_of_the_images_elsewhere_is_not_scored_again(network, tmp_path, monkeypatch):
    root = make_image_folder(tmp_path / "images", train=2, val=4)
    first = score(tmp_path / "full.npz", network, val_images(root))
    copy = shutil.copytree(root, tmp_path / "elsewhere" / "copied", copy_function=shutil.copyfile)
    shutil.rmtree(root)
    monkeypatch.setattr(evaluator, "evaluate", None)
    assert np.array_equal(score(tmp_path / "full.npz", network, val_images(copy)).scores, first.scores)


def test_images_are_scored_again_after_a_change_of_the_scoring_rules(network, images, tmp_path, capsys):
    path = tmp_path / "full.npz"
    scores = score(path, network, images)
    about = {key: value for key, value in scores.about.items() if key != "rules"}
    write_scores(path, Scores(scores.scores[::-1], scores.labels, scores.names, about))
    check_rows(score(path, network, images), network, images)
    assert "full: scoring again, as they were made by the rules of another version (" in capsys.readouterr().out


def test_an_evaluation_without_images_is_refused_and_writes_nothing(network, images, tmp_path):
    everything = [images.name(i) for i in range(len(images))]
    with pytest.raises(ValueError, match=r"exclude: leaves none of the 8 images of val"):
        val_images(tmp_path / "images", everything)
    none = images.__class__(images.sources, images.places[:0], images.labels[:0], images.classes)
    with pytest.raises(ValueError, match="full: no images to test on"):
        score(tmp_path / "full.npz", network, none)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


# Interrupted evaluations.


def test_a_stopped_evaluation_resumes(network, images, tmp_path, monkeypatch):
    path, uninterrupted = tmp_path / "resumed" / "full.npz", score(tmp_path / "uninterrupted.npz", network, images)
    scored = []
    original = evaluator.score_images

    def stops_after_three(scorer, images, indices, workers):
        for batch, values in original(scorer, images, indices, workers=workers):
            if len(scored) >= 3:
                raise KeyboardInterrupt
            scored.extend(batch)
            yield batch, values

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
    np.testing.assert_allclose(resumed.scores, uninterrupted.scores, rtol=1e-5)
    assert not path.with_suffix(".parts").exists()


@pytest.fixture
def stopped(network, tmp_path, monkeypatch):
    """A folder of images and a test of it that stopped at the unreadable val/dog/2.jpg, with parts saved."""
    monkeypatch.setattr(evaluator, "SECONDS_BETWEEN_PARTS", 0)
    monkeypatch.setattr("sppnet.data.inputs.MAX_WAITING_BYTES", 1)  # so that each image is scored at once
    monkeypatch.setattr("sppnet.data.inputs.MAX_LOADER_BATCH", 1)
    root = make_image_folder(tmp_path / "images", train=2, val=4)
    (root / "val" / "dog" / "2.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"val/dog/2\.jpg: .*skip it with exclude=\[val/dog/2\.jpg\]"):
        score(tmp_path / "scores" / "full.npz", network, val_images(root))
    assert len(list((tmp_path / "scores" / "full.parts").iterdir())) == 6
    return root


def test_after_images_were_deleted_every_row_holds_its_own_scores(network, stopped, tmp_path, capsys):
    for name in ("dog/2.jpg", "cat/1.jpg"):
        (stopped / "val" / name).unlink()
    scores = score(tmp_path / "scores" / "full.npz", network, val_images(stopped))
    assert "resuming after 5 of 6 images" in capsys.readouterr().out
    check_rows(scores, network, val_images(stopped))


def test_an_image_that_changed_since_the_stop_is_scored_again(network, stopped, tmp_path, capsys):
    shutil.copy(stopped / "train" / "dog" / "0.jpg", stopped / "val" / "dog" / "2.jpg")
    shutil.copy(stopped / "train" / "dog" / "1.jpg", stopped / "val" / "cat" / "0.jpg")
    scores = score(tmp_path / "scores" / "full.npz", network, val_images(stopped))
    assert "resuming after 5 of 8 images" in capsys.readouterr().out
    check_rows(scores, network, val_images(stopped))


def test_skipping_the_unreadable_image_keeps_the_other_scores(network, stopped, tmp_path, capsys):
    images = val_images(stopped, ["val/dog/2.jpg"])
    scores = score(tmp_path / "scores" / "full-without.npz", network, images)
    assert "resuming after 6 of 7 images" in capsys.readouterr().out
    check_rows(scores, network, images)


def test_parts_of_other_evaluations_and_damaged_parts_do_not_count(network, images, tmp_path):
    parts = tmp_path / "full.parts"
    names = np.array([images.name(i) for i in range(8)])
    wrong = ScorePart(names, digests_of(images), np.full((8, 2), 9, np.float32))
    identity = {
        "rules": SCORING_RULES,
        "protocol": vars(PROTOCOL),
        "checkpoint": "abc",
        "precision": "float32",
    }
    for other in ({"checkpoint": "other"}, {"rules": SCORING_RULES - 1}, {"precision": "bf16"}):
        add_score_part(parts, identity | other, wrong)
    (parts / "0-damaged.npz").write_bytes(b"PK\x03\x04 no")  # read first
    for changes in (
        {"names": names[:3]},
        {"digests": wrong.digests[:, :4]},
        {"digests": wrong.digests.astype(np.float32)},
        {"scores": wrong.scores * np.nan},
        {"scores": wrong.scores[:, :, None][..., 0].astype(np.int64)},
        {"scores": np.full((8, 3), 9, np.float32)},
    ):
        add_score_part(parts, identity, wrong._replace(**changes))
    assert [part.scores.shape for part in read_score_parts(tmp_path, identity)] == [(8, 3)]
    check_rows(score(tmp_path / "full.npz", network, images), network, images)


@pytest.mark.slow
def test_two_processes_score_every_image_once(network, images, tmp_path):
    one = score(tmp_path / "one.npz", network, images)
    two = Hardware(accelerator="cpu", devices=2, workers=0, precision="float32")
    both = score(tmp_path / "two.npz", network, images, hardware=two)
    np.testing.assert_allclose(one.scores, both.scores, rtol=1e-4)
    assert both.names.tolist() == one.names.tolist()


@pytest.mark.slow
def test_an_unreadable_image_in_one_of_two_processes_is_an_error_of_one_line(network, images, tmp_path):
    (tmp_path / "images" / "val" / "dog" / "2.jpg").write_bytes(b"no image")
    two = Hardware(accelerator="cpu", devices=2, workers=1, precision="float32")
    with pytest.raises(UnreadableImage, match=r"^val/dog/2\.jpg: not an image .*exclude=\[val/dog/2\.jpg\]$") as error:
        score(tmp_path / "full.npz", network, images, hardware=two)
    assert "\n" not in str(error.value)


def test_a_missed_image_is_an_error(network, images, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "score_images", lambda *_, **__: (item for item in ()))
    evaluation = Evaluation(network, images, digests_of(images), PROTOCOL, CPU, tmp_path / "parts", {})
    with pytest.raises(RuntimeError, match="8 of 8 images were not scored"):
        evaluate(evaluation, "full")
