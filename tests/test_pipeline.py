"""Detectors end to end on tiny scenes: every stage, its files, an interruption in every stage, and what is learned."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from sppnet.backbones import build_backbone
from sppnet.data.images import decode_image
from sppnet.data.objects import AnnotatedImages, DetectionSplits, Objects, annotated_files
from sppnet.data.scenes import scenes
from sppnet.detect import pipeline, testing, training
from sppnet.detect.detector import detect_image, load_detector
from sppnet.detect.finetuning_windows import FinetuneSettings
from sppnet.detect.maps import WindowRules
from sppnet.detect.mining import SvmSettings
from sppnet.detect.pipeline import DetectionPlan, Row, train_and_test
from sppnet.detect.proposals import Dense
from sppnet.detect.suppression import SuppressionSettings
from sppnet.detect.training import RegressionSettings
from sppnet.detect.windows import WindowsOfImages
from sppnet.network import SPPNet
from sppnet.results.precisions import match_detections, mean_precision
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.signals import Stopped

CPU = Hardware(accelerator="cpu", precision="float32", workers=0)
PLAN = DetectionPlan(
    rows=tuple(map(Row.parse, ("pool5", "fc7", "ftfc7", "ftfc7_bb"))),
    rules=WindowRules(scales=(112,)),
    proposer=Dense(windows=150, smallest=0.2),
    most_windows=150,
    finetune=FinetuneSettings(
        steps=20, dropped_after=15, learning_rate=0.01, batch_size=16, validate_every=10, validation_batches=2
    ),
    svm=SvmSettings(train_after=200),
    regression=RegressionSettings(),
    test=SuppressionSettings(),
    aligned=False,
    use_difficult=False,
    tune_fraction=0.3,
    seed=0,
    hardware=CPU,
)


def made_network():
    torch.manual_seed(0)
    backbone = build_backbone("zf5", width=0.1, normalization="none")
    return SPPNet(backbone, (2, 1), 3, hidden=16, initialization="fan_in", input_std=(58.0,) * 3).eval()


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return scenes(root=str(tmp_path_factory.mktemp("scenes") / "files"), train=10, test=4)


@pytest.fixture(scope="module")
def whole(splits, tmp_path_factory):
    """An uninterrupted run: its folder, its cache, and its detections."""
    folder = tmp_path_factory.mktemp("whole")
    found = train_and_test(
        made_network(), splits, PLAN, folder / "run", folder / "cache", about={"data_text": "scenes"}
    )
    return folder, found


def detections_in(run):
    return {path.name: path.read_bytes().split(b"\n", 1)[1] for path in sorted((run / "detections").glob("*.jsonl"))}


def test_every_row_has_a_detector_and_detections(whole, splits):
    folder, found = whole
    assert [one.about["row"] for one in found] == ["pool5", "fc7", "ftfc7", "ftfc7_bb"]
    for one in found:
        assert one.names == tuple(splits.test.name(i) for i in range(4))
        assert one.classes == splits.test.classes
        assert one.about["data_text"] == "scenes"
        assert {"versions", "checkpoint", "seed"} <= one.about.keys()
    detector = load_detector(folder / "run" / "detectors" / "ftfc7_bb.ckpt")
    assert detector.network.classes == ("background", *splits.train.classes)
    assert detector.regressors is not None
    assert detector.svms.layer == "fc7"
    assert detector.proposals == {**PLAN.proposer.settings(), "most": 150, "seed": 0}
    assert load_detector(folder / "run" / "detectors" / "fc7.ckpt").regressors is None
    assert not list((folder / "run" / "detections" / "parts").glob("*"))


def test_the_recall_of_the_proposals_is_saved_with_the_detections(whole, splits):
    _, found = whole
    best = []
    for i in range(4):
        windows = PLAN.proposer(decode_image(splits.test.read(i), splits.test.name(i))).astype(float)
        best.append(box_iou(torch.from_numpy(splits.test.objects(i).boxes), torch.from_numpy(windows)).amax(1))
    overlaps = torch.cat(best)
    for one in found:
        assert [entry["threshold"] for entry in one.about["recall"]] == [0.5, 0.7]
        for entry in one.about["recall"]:
            assert entry["objects"] == len(overlaps)
            assert entry["found"] == int((overlaps >= entry["threshold"]).sum())
    assert 0 < found[0].about["recall"][0]["found"] < len(overlaps)


def test_a_saved_detector_finds_in_an_image_what_its_test_found(whole, splits):
    folder, found = whole
    for tested in found:
        detector = load_detector(folder / "run" / "detectors" / f"{tested.about['row']}.ckpt")
        for i, expected in enumerate(tested):
            image = decode_image(splits.test.read(i), expected.name)
            boxes, labels, scores = map(np.asarray, detect_image(detector, image, name=expected.name))
            np.testing.assert_array_equal(labels, expected.labels)
            np.testing.assert_array_equal(scores, expected.scores)
            np.testing.assert_array_equal(boxes, expected.boxes)
            assert len(labels)


def test_rows_of_both_ways_are_trained_in_one_run_each_on_its_own_features(splits, tmp_path):
    plan = dataclasses.replace(
        PLAN, rows=tuple(map(Row.parse, ("rcnn_fc7_bb", "fc7"))), proposer=Dense(windows=20), most_windows=20
    )
    rcnn, _ = train_and_test(made_network(), splits, plan, tmp_path / "run", tmp_path / "cache", about={})
    detectors = {path.stem: load_detector(path) for path in (tmp_path / "run" / "detectors").glob("*.ckpt")}
    assert {name: one.warped for name, one in detectors.items()} == {"rcnn_fc7_bb": True, "fc7": False}
    assert not torch.allclose(detectors["fc7"].svms.weights, detectors["rcnn_fc7_bb"].svms.weights, atol=1e-3)
    for i, expected in enumerate(rcnn):
        image = decode_image(splits.test.read(i), expected.name)
        boxes, labels, scores = map(np.asarray, detect_image(detectors["rcnn_fc7_bb"], image, name=expected.name))
        np.testing.assert_array_equal(labels, expected.labels)
        np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(boxes, expected.boxes, atol=1e-3)
        assert len(labels)


def test_images_without_objects_have_no_recall(splits):
    nothing = splits.test.objects(0).of(slice(0))
    images = annotated_files("", ["a.jpg", "b.jpg"], [nothing, nothing], splits.test.classes)
    assert pipeline._recall(WindowsOfImages(images, None, None, None, None)) == []


def test_a_finished_run_trains_nothing_and_tests_nothing_again(whole, splits, monkeypatch, capsys):
    folder, found = whole
    for module, name in ((training, "train_svm"), (pipeline, "finetune"), (pipeline, "train_svms")):
        monkeypatch.setattr(module, name, None, raising=False)
    again = train_and_test(
        made_network(), splits, PLAN, folder / "run", folder / "cache", about={"data_text": "scenes"}
    )
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


class InterruptedStageError(Exception):
    """Stands for whatever ends a process in the middle of a stage."""


def interrupt_after(monkeypatch, module, name, calls, error=InterruptedStageError):
    """Makes a function of a module raise at one of its calls."""
    function, count = getattr(module, name), [0]

    def counted(*arguments, **options):
        count[0] += 1
        if count[0] == calls:
            if error is Stopped:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise error
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize(
    ("module", "name", "calls", "error"),
    [
        (pipeline, "save_network", 1, InterruptedStageError),
        (training.NegativeMiner, "add", 13, Stopped),
        (training, "_load_regressor", 4, InterruptedStageError),
        (pipeline, "save_detector", 3, InterruptedStageError),
        (testing, "detect_in_features", 5, InterruptedStageError),
    ],
)
def test_a_run_that_is_interrupted_in_a_stage_ends_like_another(
    whole, splits, monkeypatch, tmp_path, module, name, calls, error
):
    monkeypatch.setattr(testing, "_IMAGES_PER_PART", 1)
    folder, _ = whole
    with monkeypatch.context() as patch:
        interrupt_after(patch, module, name, calls, error)
        with pytest.raises(error):
            train_and_test(made_network(), splits, PLAN, tmp_path / "run", tmp_path / "cache", about={})
    train_and_test(made_network(), splits, PLAN, tmp_path / "run", tmp_path / "cache", about={})
    assert detections_in(tmp_path / "run") == detections_in(folder / "run")


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Images whose objects are all of one wrong class each: label + 1."""

    images: AnnotatedImages

    def __getattr__(self, name):
        return getattr(self.images, name)

    def __len__(self):
        return len(self.images)

    def objects(self, index):
        objects = self.images.objects(index)
        return Objects(objects.boxes, (objects.labels + 1) % len(self.images.classes), objects.difficult)


def test_a_detector_finds_the_objects_that_it_was_trained_on_and_not_those_of_other_labels(splits, tmp_path):
    """On its own training images, where even features of a random network suffice."""
    plan = dataclasses.replace(PLAN, rows=(Row.parse("pool5"),), proposer=Dense(windows=600), most_windows=600)
    for name, train in (("true", splits.train), ("shuffled", Shuffled(splits.train))):
        (found,) = train_and_test(
            made_network(), DetectionSplits(train, splits.train), plan, tmp_path / name, tmp_path / "cache", about={}
        )
        precision = mean_precision(match_detections(found, splits.train), None)
        assert precision > 0.3 if name == "true" else precision < 0.1


def test_other_objects_than_the_run_began_with_are_refused(whole, splits):
    folder, _ = whole
    changed = DetectionSplits(Shuffled(splits.train), splits.test)
    with pytest.raises(ValueError, match="the data has changed since the run began"):
        train_and_test(made_network(), changed, PLAN, folder / "run", folder / "cache", about={})


@pytest.mark.parametrize(
    "name", ["conv5", "ftpool5", "rcnn_ftfc7", "ftrcnn_fc7", "rcnn_", "fc8", "fc7_", "FC7", "", "ft"]
)
def test_rows_that_do_not_exist_are_refused(name):
    with pytest.raises(ValueError, match=r"rows: .* must be one of pool5, fc6, fc7, ftfc6 or ftfc7"):
        Row.parse(name)


def test_names_of_rows():
    assert Row.parse("ftfc7_bb") == Row("ftfc7_bb", True, "fc7", True)
    assert Row.parse("pool5") == Row("pool5", False, "pool5", False)
    assert Row.parse("rcnn_fc6_bb") == Row("rcnn_fc6_bb", False, "fc6", True, warped=True)


def test_data_json_is_whole(whole):
    folder, _ = whole
    assert set(json.loads(Path(folder / "run" / "data.json").read_text())) == {"fingerprint"}
