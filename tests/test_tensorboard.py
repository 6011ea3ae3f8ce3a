"""What TensorBoard shows of a run: losses, images with labels, the configuration, the command, the result."""

import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from conftest import call_script, make_image_folder
from sppnet.classify.loading import shorter_side_for
from sppnet.classify.tensorboard import true_colors, with_texts
from sppnet.data.batches import to_network_input
from sppnet.data.images import crop, decode_image, resize_shorter_side
from sppnet.data.sources import open_data
from sppnet.network import load_network

WORDS = [
    *("data=folder", "recipe=fast", "recipe.epochs=2", "recipe.batch_size=4", "backbone.width=0.05", "hidden=8"),
    *("sizes.cycle=[64,48]", "recipe.label_smoothing=0.1", "trainer=cpu", "trainer.workers=0", "seed=3"),
    *("trainer.precision=32-true", "run=here"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images and a finished run."""
    place = tmp_path_factory.mktemp("place")
    make_image_folder(place / "images", train=4, val=3)
    assert call_script("train", *WORDS, "data.root=images", cwd=place) == 0
    return place


@pytest.fixture(scope="module")
def events(place):
    return EventAccumulator(str(place / "here" / "tensorboard"), {"images": 0}).Reload()


def test_the_validation_loss_is_that_of_the_network_without_label_smoothing(place, events):
    network = load_network(place / "here")
    images = open_data("folder", root=str(place / "images")).val
    losses = []
    for index, label in enumerate(images.labels):
        image = resize_shorter_side(decode_image(images.read(index), ""), shorter_side_for(64))
        pixels = to_network_input(crop(image, 64, "center")[None], network.input_mean, network.input_std)
        losses.append(float(F.cross_entropy(network(pixels).detach(), torch.tensor([int(label)]))))
    history = json.loads((place / "here" / "result.json").read_text())["history"]
    assert history[-1]["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    logged = [scalar.value for scalar in events.Scalars("val/loss")]
    assert logged == pytest.approx([epoch["val_loss"] for epoch in history])


def text_of(events, name):
    return events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()


def test_configuration_and_command_are_shown(place, events):
    shown = text_of(events, "configuration")
    assert all(line.startswith("    ") for line in shown.splitlines())  # a block of code in Markdown
    assert yaml.safe_load(shown) == yaml.safe_load((place / "here" / "config.yaml").read_text())
    command = text_of(events, "command").strip()
    assert command.startswith("sppnet train data=folder ")
    assert "'sizes.cycle=[64,48]'" in command
    assert json.loads((place / "here" / "result.json").read_text())["command"] == command


def test_the_result_stands_beside_the_settings(place, events):
    result = json.loads((place / "here" / "result.json").read_text())
    for name, key in (("top1_error_percent", "top1_error"), ("top5_error_percent", "top5_error")):
        (logged,) = events.Scalars(f"result/{name}")
        assert logged.value == pytest.approx(100 * result[key])
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    started = metadata.parse_session_start_info_plugin_data(content).hparams
    assert started["recipe.learning_rate"].number_value > 0
    assert (started["seed"].number_value, started["hidden"].number_value) == (3, 8)
    assert (started["backbone"].string_value, started["sizes"].string_value) == ("zf5", "[64, 48]")


def test_the_first_batch_of_each_size_is_shown_with_its_labels(events):
    for size in (64, 48):
        (logged,) = events.Images(f"batch as the network sees it/{size} x {size}")
        picture = Image.open(io.BytesIO(logged.encoded_image_string))
        assert picture.size == (4 * (size + 2) + 2, size + 18 + 4)


def test_a_line_of_text_is_below_its_image():
    images = torch.rand(2, 3, 30, 40)
    shown = with_texts(images, ["i\n", "mmm"])
    assert shown.shape == (2, 3, 48, 40)
    assert shown[:, :, :30].equal(images)
    letters = (1 - shown[:, 0, 30:]).sum(dim=(1, 2))
    assert 0 < letters[0] < letters[1]


@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), (58.0, 57.0, 56.0)])
def test_true_colors_undo_the_scaling_of_the_input(std):
    pixels = torch.arange(0, 240, dtype=torch.uint8).reshape(2, 3, 5, 8)
    mean = (120.0, 110.0, 100.0)
    shown = true_colors(to_network_input(pixels, mean, std), mean, std)
    assert (255 * shown).round().byte().equal(pixels)
