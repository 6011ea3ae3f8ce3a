"""A linear classifier directly on the pyramid (hidden=null), beside plain torch, and where fc6 and fc7 are missing."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir

import test_scorer
from conftest import make_image_folder
from sppnet.backbones import build_backbone
from sppnet.benchmark.detection import measure_detection
from sppnet.commands.frozen_networks import chosen_layers, load_run
from sppnet.commands.naming import run_directory
from sppnet.commands.settings import resolved
from sppnet.commands.transfer import check as check_transfer
from sppnet.detect.detector import layer_length
from sppnet.detect.pipeline import Row, train_and_test
from sppnet.network import SPPNet, load_network, save_network, take_weights
from sppnet.results.runs import Run
from sppnet.transfer.features import FeatureExtractor
from sppnet.use.evidence import class_evidence
from sppnet.use.export import trace
from sppnet.use.network_views import network_input
from test_configs import CONFIGS, composed
from test_evidence import random_image
from test_network import images
from test_pipeline import PLAN


def linear(levels=(3, 2, 1), num_classes=3, *, width=0.05, **options):
    torch.manual_seed(0)
    options = {"classes": [f"c{i}" for i in range(num_classes)], "input_std": (58.0, 57.0, 57.0)} | options
    network = SPPNet(
        build_backbone("zf5", width=width), levels, num_classes, hidden=None, initialization="fan_in", **options
    )
    torch.nn.init.normal_(network.fc8.weight)  # scores that differ clearly from image to image
    torch.nn.init.normal_(network.fc8.bias)
    return network.eval()


def plain_logits(network, batch, levels):
    maps = network.backbone(batch)
    pooled = torch.cat([F.adaptive_max_pool2d(maps, n).flatten(1) for n in levels], dim=1)
    return pooled @ network.fc8.weight.T + network.fc8.bias


# The network


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (1, 7, 2), (1,)])
@pytest.mark.parametrize("size", [(31, 31), (64, 97), (131, 50)])
def test_it_is_one_matrix_on_the_maxima_of_all_levels(levels, size):
    network, batch = linear(levels), images(*size)
    expected = plain_logits(network, batch, levels)
    torch.testing.assert_close(network(batch), expected)
    torch.testing.assert_close(network.features(batch, "fc8"), expected)
    assert network.fc8.weight.shape == (3, network.backbone.channels * sum(n * n for n in levels))
    assert {name.split(".")[0] for name in network.state_dict()} == {"backbone", "fc8"}


def test_without_a_pyramid_it_is_on_the_grid_of_six_by_six():
    network, batch = linear(None, input_side=64), images(64, 64)
    torch.testing.assert_close(network(batch), plain_logits(network, batch, (6,)))


def test_dropout_acts_on_the_pooled_values_while_training_only():
    network = linear(width=0.3, dropout=0.25)
    pooled = torch.ones(1, network.pooled_length)
    seen = []
    network.fc8.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.classify(pooled)
    network.train().classify(pooled)
    assert torch.equal(seen[0], pooled)
    assert (seen[1] == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert seen[1].max().item() == pytest.approx(1 / 0.75)


def test_logits_are_float32_in_bfloat16_as_well():
    network = linear()
    pooled = 1 + torch.rand(1, network.pooled_length) / 1000  # equal in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        logits = network.classify(pooled)
        half = network.classify(pooled.bfloat16())
    assert torch.equal(logits, network.fc8(pooled))
    assert torch.equal(half, network.fc8(pooled.bfloat16().float()))


@pytest.mark.parametrize(
    ("backbone", "initialization", "scale"),
    [
        ({"architecture": "zf5"}, "paper", 63.0),
        ({"architecture": "zf5"}, "fan_in", 1.0),
        ({"architecture": "timm", "name": "test_resnet"}, "paper", 1.0),
        ({"architecture": "timm", "name": "test_resnet"}, "fan_in", 1.0),
    ],
)
def test_training_starts_at_a_loss_of_the_logarithm_of_the_classes(backbone, initialization, scale):
    torch.manual_seed(0)
    network = SPPNet(build_backbone(**backbone), num_classes=100, hidden=None, initialization=initialization)
    pictures = F.interpolate(torch.randn(2, 3, 12, 12), size=(96, 96), mode="bicubic")
    logits = network(scale * pictures / pictures.std())
    assert F.cross_entropy(logits, torch.full((2, 100), 1 / 100)).item() == pytest.approx(math.log(100), abs=0.1)
    assert logits.std() > 0
    assert not network.fc8.bias.any()


@pytest.mark.parametrize(("levels", "deviation"), [((1,), 0.02), ((6, 3, 2, 1), 10 / 12_800)])
def test_one_value_per_channel_is_classified_by_weights_as_large_as_timms(levels, deviation):
    """Smaller ones slow down the training of the whole network."""
    torch.manual_seed(0)
    network = SPPNet("zf5", levels, 100, hidden=None, initialization="fan_in")
    assert network.fc8.weight.std().item() == pytest.approx(deviation, rel=0.02)


def test_a_saved_network_comes_back_bit_for_bit(tmp_path):
    network = linear(dropout=0.3)
    save_network(network, tmp_path / "network.ckpt")
    loaded = load_network(tmp_path / "network.ckpt")
    assert loaded.description() == network.description()
    assert torch.equal(loaded(images(70, 50)), network(images(70, 50)))
    assert ", linear classifier, " in loaded.summary()


def test_fc8_is_taken_from_a_linear_classifier_of_the_same_pyramid_and_classes():
    source = linear()
    for levels, classes, hidden, is_taken in (
        ((3, 2, 1), ["c0", "c1", "c2"], None, True),
        ((3, 2, 1), ["c2", "c1", "c0"], None, False),
        ((3, 1), ["c0", "c1", "c2"], None, False),
        ((3, 2, 1), ["c0", "c1", "c2"], 8, False),
    ):
        network = SPPNet(build_backbone("zf5", width=0.05), levels, 3, hidden=hidden, classes=classes)
        take_weights(network, source)
        assert torch.equal(network.backbone.conv1.weight, source.backbone.conv1.weight)
        assert torch.equal(network.fc8.weight, source.fc8.weight) == is_taken


def test_too_many_parameters_are_counted():
    with torch.device("meta"):
        SPPNet("zf5", (1,), 3_891_050, hidden=None, initialization="none")  # 257 each
        with pytest.raises(
            ValueError, match=r"^hidden=null, levels=\[1\], num_classes=3891051: fc8 would have 1,000,000,"
        ):
            SPPNet("zf5", (1,), 3_891_051, hidden=None, initialization="none")


# Uses


@pytest.mark.parametrize(
    "comparison",
    [
        test_scorer.test_full_is_the_network_itself_on_the_whole_image,
        test_scorer.test_ten_crop_is_a_loop_over_ten_crops,
        lambda network: test_scorer.test_views_on_maps_are_a_loop_over_windows(network, aligned=True),
    ],
    ids=["full", "ten_crop", "maps"],
)
def test_scores_of_views_are_those_of_plain_loops(comparison):
    comparison(linear())


def test_what_speaks_for_a_class_sums_to_its_logit_without_the_bias():
    network, image = linear(), random_image(70, 93)
    with torch.no_grad():
        without_bias = network(network_input(network, image[None]))[0] - network.fc8.bias
    evidence = class_evidence(network, image, 2, against=0)
    expected = float(without_bias[2] - without_bias[0])
    assert evidence.total == pytest.approx(expected, rel=1e-4)
    assert evidence.by_cell.sum() == pytest.approx(expected, rel=1e-4)


def test_the_exported_program_computes_the_same():
    network = linear((2, 1))
    classifier = trace(network).module()
    for size in ((31, 31), (64, 97)):
        pixels = random_image(*size)[None]
        expected = plain_logits(network, network_input(network, pixels), (2, 1)).softmax(dim=1)
        torch.testing.assert_close(classifier(pixels), expected)


MISSING = (
    r"fc[67]: this network was built with hidden=null, a linear classifier on the pyramid, and has no fc6 and fc7$"
)


@pytest.mark.parametrize("layer", ["fc6", "fc7"])
def test_features_of_hidden_layers_are_refused_by_their_reason(layer):
    network = linear()
    assert network.layers[-5:] == ("pool5", "pool5_3x3", "pool5_2x2", "pool5_1x1", "fc8")
    with pytest.raises(ValueError, match=f"^layer={MISSING}"):
        network.features(images(64, 64), layer)
    with pytest.raises(ValueError, match=f"^layers={MISSING}"):
        FeatureExtractor(network, layers=["pool5", layer], view="full", scale=64)
    with pytest.raises(ValueError, match=f"^layer={MISSING}"):
        layer_length(network, layer)
    with pytest.raises(ValueError, match=r"^layer='fc9': must be one of conv1, "):
        network.features(images(64, 64), "fc9")


def test_transfer_tests_the_pyramid_by_default(tmp_path):
    save_network(linear(), tmp_path / "network.ckpt")
    loaded = load_run(tmp_path / "network.ckpt")
    assert chosen_layers(loaded, None) == ["pool5"]
    assert chosen_layers(loaded, ["fc8", "pool5_2x2"]) == ["fc8", "pool5_2x2"]
    with pytest.raises(ValueError, match=f"^layers={MISSING}"):
        chosen_layers(loaded, ["pool5", "fc7"])


@pytest.mark.parametrize("row", ["fc6", "ftfc7_bb", "rcnn_fc7"])
def test_detectors_on_hidden_layers_are_refused_before_anything_is_written(row, tmp_path):
    plan = PLAN.__class__(**(vars(PLAN) | {"rows": (Row.parse("pool5_bb"), Row.parse(row))}))
    with pytest.raises(ValueError, match=rf"^rows: {row} needs fc6 and fc7, .*; use rows=\[pool5,pool5_bb\]$"):
        train_and_test(linear(), None, plan, tmp_path / "run", tmp_path / "cache", about={})
    assert not list(tmp_path.iterdir())
    assert layer_length(linear(), "pool5") == linear().pooled_length
    with pytest.raises(ValueError, match=r"^hidden=null: detection is measured up to fc7"):
        measure_detection(linear(), None, None, None, rounds=1, seconds=1)


# Settings


def test_it_is_the_default_of_timm_bodies_and_of_no_other():
    assert composed("backbone=timm").hidden is None
    assert composed("backbone=timm", "hidden=512").hidden == 512
    assert composed("backbone=zf5").hidden == composed().hidden == 4096
    assert composed("backbone=zf5", "hidden=null").hidden is None
    assert composed("experiment=demo", "backbone=timm", "~backbone.width", "~backbone.normalization").hidden == 256


def test_names_of_runs_follow_it_and_older_ones_stay():
    """The last name is what `backbone=timm` alone meant before linear classifiers were its default."""
    new, old = (run_directory(composed("backbone=timm", "recipe=fast", *words)) for words in ([], ["hidden=4096"]))
    assert new.config["hidden"] is None
    assert old.path.name == "resnet18-spp50-224-shapes-seed0-9a6b2a6a"
    assert new.path != old.path


def test_transfer_takes_timm_bodies_without_hidden_layers_only():
    def checked(*words):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return check_transfer(resolved(compose("transfer", ["backbone=timm", "data=shapes", *words])))

    assert checked().runs == []
    with pytest.raises(ValueError, match=r"^hidden=64: is for training; fc6 and fc7 of this network would be random$"):
        checked("hidden=64")


@pytest.mark.parametrize("value", ["0", "-1"])
def test_wrong_numbers_are_refused_with_what_is_allowed(value):
    with pytest.raises(ValueError, match=f"^hidden={value}: must be at least 1, or null for a linear classifier$"):
        SPPNet("zf5", hidden=int(value))


@pytest.mark.slow
def test_a_run_by_the_command_is_trained_and_known_by_its_records(tmp_path, run_here):
    folder = make_image_folder(tmp_path / "images")
    words = ("backbone=timm", "backbone.name=test_resnet", "data=folder", f"data.root={folder}", "sizes.cycle=[64,50]")
    recipe = ("recipe=small", "recipe.epochs=2", "recipe.batch_size=4", "trainer=cpu", "run=run")
    done = run_here("train", *words, *recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ", linear classifier, " in done.stdout
    assert load_network(tmp_path / "run").hidden is None
    loaded = load_run(tmp_path / "run")
    assert json.loads(loaded.record["setting"])["hidden"] is None
    assert "linear classifier" in Run(tmp_path / "run", json.loads(loaded.record["setting"]), None).setting_text()
    shown = run_here("tables", "sweep", "runs=run", cwd=tmp_path)
    assert "linear classifier" in shown.stdout, shown.stderr
