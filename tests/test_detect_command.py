"""The command `detect` from a network to boxes in photos: training and testing, the page, the detector in use."""

import json

import pytest
import torch

from sppnet.backbones import build_backbone
from sppnet.commands.detect import _data_text
from sppnet.network import SPPNet, save_network

CPU = ("hardware.accelerator=cpu", "hardware.precision=float32", "hardware.workers=0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the checkpoint of a small network, untrained."""
    place = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    backbone = build_backbone("zf5", width=0.05, normalization="none")
    save_network(SPPNet(backbone, (2, 1), 2, hidden=8, initialization="fan_in"), place / "network.ckpt")
    return place


def succeeds(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_detector_is_trained_and_shown_on_a_page_and_used_on_photos(place, run_here):
    words = ("network=network.ckpt", "data=scenes", "data.train=10", "data.test=3", "rows=[pool5_bb]", "scales=[112]")
    out = succeeds(run_here("detect", *words, "run=run", "proposals.windows=200", *CPU, cwd=place))
    assert "scenes: 10 training and 3 test images of 10 classes\n" in out
    assert "proposals: of " in out
    assert "| pool5_bb " in out

    page = succeeds(run_here("tables", "detection", "runs=run", cwd=place))
    assert "## scenes: 10 classes, 10 training and 3 test images, " in page
    recall = out.partition("proposals: ")[2].partition("\n")[0]
    assert f"dense, windows 200, smallest 0.05, ratio 1.8, aspect 4.0, most 2000: {recall}." in page

    photos = "images=data/scenes/JPEGImages/test_*.jpg"
    out = succeeds(run_here("detect", "run=run", photos, "score=-1.5", "out=boxes.jsonl", *CPU, cwd=place))
    assert "pool5_bb.ckpt: 10 classes, zf5 " in out
    _, *tested = map(json.loads, (place / "run" / "detections" / "pool5_bb.jsonl").read_text().splitlines())
    found = [json.loads(line) for line in (place / "boxes.jsonl").read_text().splitlines()]
    assert len(found) == len(tested) == 3
    for photo, image in zip(found, tested, strict=True):
        assert [box["score"] for box in photo["boxes"]] == [round(score, 4) for score in image["scores"]]
        assert len(photo["boxes"]) > 0


def test_data_is_named_by_its_last_folder():
    assert _data_text({"source": "scenes", "root": "/data/scenes"}) == "scenes"
    assert _data_text({"source": "voc", "root": "/data/VOC2007"}) == "voc VOC2007"
    assert _data_text({"source": "voc", "root": None}) == "voc"
