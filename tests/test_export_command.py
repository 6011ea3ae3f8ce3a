"""The export command, and the client of docs/export.md on what it writes."""

import io
import json
import re
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from conftest import call_script, run_process
from sppnet.backbones import build_backbone
from sppnet.commands.naming import run_directory
from sppnet.data.batches import to_network_input
from sppnet.data.images import crop, decode_image, resize_shorter_side
from sppnet.network import SPPNet, save_network, weights_digest
from sppnet.runtime.run_directory import RunDirectory, checkpoint_digest
from test_configs import composed

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
CLIENT, CENTER = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CLASSES = ("cat", "dog", "Bär")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    backbone = build_backbone("zf5", width=0.05, normalization="none")
    scale = {"initialization": "fan_in", "input_std": (60, 57, 55)}
    return SPPNet(backbone, (1,), len(CLASSES), hidden=8, classes=CLASSES, **scale).eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """(folder, stdout, stderr) of the command on a run that was trained on crops of 84 pixels, resized to 96."""
    place = tmp_path_factory.mktemp("place")
    config = composed("recipe=paper", "data=shapes", "backbone.width=0.05", "hidden=8", "sizes.cycle=[84,70]")
    RunDirectory(place / "run", run_directory(config).config).claim()
    (place / "run" / "checkpoints").mkdir()
    save_network(network, place / "run" / "checkpoints" / "last.ckpt")
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        assert call_script("export", "run=run", "out=new/folder/model.onnx", cwd=place) == 0
    return place, output.getvalue(), errors.getvalue()


def test_a_run_is_exported_with_its_sizes_in_a_few_lines(network, exported):
    place, output, errors = exported
    assert errors == ""
    first, second, agreement, written = output.splitlines()
    assert first == f"run: 3 classes, {network.summary()}"
    assert second.startswith("exporting to onnx")
    assert re.fullmatch(
        r"as PyTorch computes it for images of 31 x 31 to \d+ x \d+ pixels: probabilities within \S+, log .*", agreement
    )
    file = place / "new" / "folder" / "model.onnx"
    assert written == f"written: new/folder/model.onnx, {file.stat().st_size / 1e6:.1f} MB"
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]

    texts = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert (json.loads(texts["crop_side"]), json.loads(texts["shorter_side"])) == (84, 96)
    assert texts["checkpoint"] == checkpoint_digest(place / "run")
    assert texts["weights"] == weights_digest(network)


def shown_by(client, folder):
    """Runs a client in a fresh interpreter that may not import torch or sppnet: {class: probability}."""
    check = "\nimport sys\nassert not {'torch', 'sppnet'} & set(sys.modules)\n"
    done = run_process([sys.executable, "-c", client + check], cwd=folder)
    assert done.returncode == 0, done.stderr
    return {name: float(value) for value, name in (line.split(" ", 1) for line in done.stdout.splitlines())}


def predicted(network, pixels):
    images = to_network_input(pixels[None], network.input_mean, network.input_std)
    with torch.no_grad():
        return dict(zip(CLASSES, network(images)[0].softmax(0).tolist(), strict=True))


def photo(folder):
    """Draws a smooth image of 203 x 151 pixels, photo.jpg in the folder, and returns its decoded pixels."""
    rows, columns = np.mgrid[0:151, 0:203]
    waves = [np.sin(rows / a + columns / b) for a, b in ((9, 31), (23, 11), (40, 7))]
    Image.fromarray((128 + 100 * np.stack(waves, axis=2)).astype(np.uint8)).save(folder / "photo.jpg", quality=95)
    return decode_image((folder / "photo.jpg").read_bytes(), "photo.jpg")


def test_the_client_of_the_docs_predicts_what_the_network_predicts(network, exported, tmp_path):
    """Within the difference of two resizings, which round pixels to integers."""
    shutil.copy(exported[0] / "new" / "folder" / "model.onnx", tmp_path / "model.onnx")
    pixels = resize_shorter_side(photo(tmp_path), 96)
    assert shown_by(CLIENT, tmp_path) == pytest.approx(predicted(network, pixels), abs=2e-3)

    lines = CLIENT.splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if "session.run" in line)
    cropping = "".join([*lines[:place], CENTER, *lines[place:]])
    assert shown_by(cropping, tmp_path) == pytest.approx(predicted(network, crop(pixels, 84, "center")), abs=2e-3)


def test_a_checkpoint_without_a_run_recommends_the_sides_of_the_paper_or_those_given(tmp_path, run_here):
    flat = SPPNet(build_backbone("zf5", width=0.05, normalization="none"), None, 2, hidden=8, input_side=64)
    save_network(flat, tmp_path / "flat.ckpt")
    done = run_here("export", "run=flat.ckpt", "out=flat.PT2", "format=pt2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    texts = {"crop_side": "", "classes": ""}
    torch.export.load(tmp_path / "flat.PT2", extra_files=texts)
    assert (texts["crop_side"], texts["classes"]) == ("64", "null")
    done = run_here("export", "run=flat.ckpt", "out=flat.onnx", "crop_side=65", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: crop_side=65: this network takes images of 64 pixels only\n"


def test_missing_packages_are_named_with_the_extra(exported, monkeypatch, run_here):
    monkeypatch.setattr("sppnet.commands.export._PACKAGES", ("onnx", "no_such_package"))
    done = run_here("export", "run=run", "out=other.onnx", cwd=exported[0])
    assert done.returncode == 2
    assert done.stderr == "error: format=onnx needs the packages no_such_package: pip install 'sppnet[export]'\n"
