"""SPPNet: sizes, named features, parameter counts, initialization, and files that can be trusted."""

import math
import os
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import sppnet.network
from sppnet.backbones import Convolution, build_backbone
from sppnet.network import IMAGENET_MEAN, SPPNet, backbone_digest, load_network, save_network


def small(backbone="zf5", levels=(6, 3, 2, 1), num_classes=5, *, hidden=16, normalization="none", **options):
    """A network of a few thousand parameters whose logits differ between images, in eval mode."""
    torch.manual_seed(0)
    body = build_backbone(backbone, width=0.03, normalization=normalization)
    return SPPNet(body, levels, num_classes, hidden=hidden, initialization="fan_in", **options).eval()


def images(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("backbone", "levels", "parameters"),
    [
        ("zf5", None, 62_357_608),
        ("zf5", (6, 3, 2, 1), 77_037_672),
        ("zf5", (4, 3, 2, 1), 56_066_152),
        ("convnet5", None, 62_378_344),
        ("convnet5", (6, 3, 2, 1), 77_058_408),
        ("convnet5", (4, 3, 2, 1), 56_086_888),
        ("overfeat5", None, 102_908_520),
        ("overfeat5", (6, 3, 2, 1), 132_268_648),
        ("overfeat5", (4, 3, 2, 1), 90_325_608),
        ("overfeat7", None, 107_628_136),
        ("overfeat7", (6, 3, 2, 1), 136_988_264),
        ("overfeat7", (4, 3, 2, 1), 95_045_224),
    ],
)
def test_parameter_counts_of_the_papers_networks(backbone, levels, parameters):
    with torch.device("meta"):
        network = SPPNet(backbone, levels, initialization="none")
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert not list(network.buffers())


@pytest.mark.parametrize("backbone", ["zf5", "convnet5", "overfeat5", "overfeat7"])
def test_images_of_any_size_give_logits(backbone):
    network = small(backbone)
    smallest = network.backbone.smallest_input
    for size in [(224, 224), (180, 180), (256, 341), (97, 133), (smallest, smallest), (smallest, 300)]:
        logits = network(images(*size))
        assert logits.shape == (2, 5)
        assert logits.isfinite().all()
        assert not torch.equal(logits[0], logits[1])


def test_images_that_are_too_small_are_named():
    network = small()
    with pytest.raises(ValueError, match="images of 30 x 50 pixels: the backbone needs at least 31"):
        network(images(30, 50))
    assert network.aligned()(images(1, 1)).shape == (2, 5)


def test_logits_of_an_image_do_not_depend_on_the_rest_of_the_batch():
    network = small(normalization="across_channels").double()
    batch = images(90, 120, batch=3).double()
    torch.testing.assert_close(network(batch)[1:2], network(batch[1:2]))


@pytest.mark.parametrize(("side", "cells"), [(180, 10), (96, 5), (31, 1), (300, 17)])
def test_without_a_pyramid_the_side_of_the_images_can_be_chosen(side, cells, tmp_path):
    network = small(levels=None, input_side=side)
    assert network(images(side, side)).shape == (2, 5)
    assert torch.equal(
        network.pool(network.maps(images(side, side))),
        F.adaptive_max_pool2d(network.backbone(images(side, side)), 6).flatten(1),
    )
    for size in [(224, 224), (side, side + 1), (side + 1, side)]:
        with pytest.raises(ValueError, match=rf"images of {size[0]} x {size[1]} pixels.* {side} x {side} images only"):
            network(images(*size))
    with pytest.raises(ValueError, match=rf"maps of 7 x 7 cells.* {side} x {side} images \({cells} x {cells} cells\)"):
        network.pool(torch.zeros(1, network.backbone.channels, 7, 7))
    assert f"no pyramid, {side} pixels only" in network.summary()
    aligned = network.aligned()
    assert aligned(images(side, side)).shape == (2, 5)
    with pytest.raises(ValueError, match=f"{side} x {side} images only"):
        aligned(images(224, 224))
    save_network(network, tmp_path / "network.ckpt")
    loaded = load_network(tmp_path / "network.ckpt")
    assert loaded.input_side == side
    assert torch.equal(loaded(images(side, side)), network(images(side, side)))


def test_a_checkpoint_of_before_the_side_could_be_chosen_means_224(tmp_path):
    file = tmp_path / "network.ckpt"
    save_network(small(levels=None), file)
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["network"].pop("input_side") == 224
    torch.save(checkpoint, file)
    assert load_network(file).input_side == 224


def test_with_a_pyramid_there_is_no_side_to_choose():
    assert small().input_side is None
    assert "pixels" not in small().summary()
    with pytest.raises(ValueError, match=r"input_side=180, levels=\[6, 3, 2, 1\]: a pyramid takes images of any side"):
        small(input_side=180)
    with pytest.raises(ValueError, match="input_side=30: the backbone needs at least 31"):
        small(levels=None, input_side=30)


def test_without_a_pyramid_only_224_pixels_are_taken():
    network = small(levels=None)
    assert network(images(224, 224)).shape == (2, 5)
    for size in [(180, 180), (223, 223), (215, 215), (224, 256), (448, 448)]:
        with pytest.raises(ValueError, match=f"images of {size[0]} x {size[1]} pixels.* 224 x 224 images only"):
            network(images(*size))
    with pytest.raises(ValueError, match=r"maps of 10 x 10 cells.* 224 x 224 images \(13 x 13 cells\) only"):
        network.pool(torch.zeros(1, network.backbone.channels, 10, 10))


def test_without_a_pyramid_the_network_is_the_single_level_of_6_x_6_bins():
    network, single = small(levels=None), small(levels=(6,))
    single.load_state_dict(network.state_dict())
    assert network.pyramid.bins == 36
    assert torch.equal(network(images(224, 224)), single(images(224, 224)))
    maps = network.maps(images(224, 224))
    assert torch.equal(network.pool(maps), F.max_pool2d(maps, 3, 2).flatten(1))  # the paper's last pooling: 13 -> 6


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 3, 2, 1), (1, 2)])
def test_forward_is_maps_pool_classify(levels):
    network, batch = small(levels=levels), images(100, 140)
    maps = network.maps(batch)
    assert torch.equal(maps, network.backbone(batch))
    pooled = network.pool(maps)
    assert torch.equal(pooled, torch.cat([F.adaptive_max_pool2d(maps, n).flatten(1) for n in levels], 1))
    fc6 = F.relu(F.linear(pooled, network.fc6.weight, network.fc6.bias))
    fc7 = F.relu(F.linear(fc6, network.fc7.weight, network.fc7.bias))
    logits = F.linear(fc7, network.fc8.weight, network.fc8.bias)
    assert torch.equal(network.classify(pooled), logits)
    assert torch.equal(network(batch), logits)
    assert torch.equal(network.features(batch, "fc6"), fc6)
    assert torch.equal(network.features(batch, "fc7"), fc7)
    assert torch.equal(network.features(batch, "fc8"), logits)


@pytest.mark.parametrize("backbone", ["zf5", "convnet5", "overfeat5", "overfeat7"])
def test_every_layer_has_features(backbone):
    network, batch = small(backbone, normalization="across_channels"), images(64, 50)
    assert network.layers[-8:] == ("pool5", "pool5_6x6", "pool5_3x3", "pool5_2x2", "pool5_1x1", "fc6", "fc7", "fc8")
    assert network.layers[:-8] == network.backbone.layers
    for layer in network.backbone.layers:
        assert torch.equal(network.features(batch, layer), network.backbone.layer_outputs(batch, [layer])[layer])
    assert torch.equal(network.features(batch, network.backbone.layers[-1]), network.maps(batch))
    assert torch.equal(network.features(batch, "fc8"), network(batch))
    for layer in ("fc6", "fc7"):
        assert network.features(batch, layer).shape == (2, 16)
        assert network.features(batch, layer).min() >= 0


@pytest.mark.parametrize(
    "layers", [["conv1"], ["norm2", "conv2"], ["fc7"], ["pool5_2x2", "conv4", "fc8"], ["fc7", "pool5", "conv5"], []]
)
def test_several_layers_at_once_are_each_layer_by_itself(layers):
    network, batch = small(), images(64, 50)
    outputs = network.layer_outputs(batch, layers)
    assert list(outputs) == layers
    assert all(torch.equal(outputs[layer], network.features(batch, layer)) for layer in layers)


def test_several_layers_take_one_forward_pass_that_ends_at_the_last_of_them():
    network, batch, calls = small(), images(64, 50), []
    for name, module in network.backbone.named_children():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    network.layer_outputs(batch, ["conv2", "conv1"])
    assert calls == list(network.backbone.layers[: network.backbone.layers.index("conv2") + 1])
    calls.clear()
    network.layer_outputs(batch, list(network.layers))
    assert calls == list(network.backbone.layers)


def test_pool5_is_its_levels_side_by_side():
    network, batch = small(levels=(2, 6, 1)), images(100, 75)
    pooled = network.features(batch, "pool5")
    levels = [network.features(batch, f"pool5_{n}x{n}") for n in (2, 6, 1)]
    assert torch.equal(torch.cat(levels, 1), pooled)
    assert torch.equal(levels[1], F.adaptive_max_pool2d(network.maps(batch), 6).flatten(1))


@pytest.mark.parametrize("layer", ["fc9", "pool5_4x4", "pool6", "", "conv6"])
def test_unknown_layers_are_named_with_the_known_ones(layer):
    with pytest.raises(ValueError, match=f"layer='{layer}'.*conv1, .*pool5_6x6, .*fc8"):
        small().features(images(64, 64), layer)


def test_dropout_acts_on_fc6_and_fc7_while_training_only():
    network, batch = small(hidden=400, dropout=0.5), images(64, 64)
    assert torch.equal(network(batch), network(batch))
    network.train()
    assert not torch.equal(network(batch), network(batch))
    pooled = network.pool(network.maps(batch))
    network.fc7.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.fc8.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    seen = []
    network.classify(pooled)
    full = F.relu(network.fc6(pooled))
    kept = seen[0] != 0
    assert 0.4 < kept[full > 0].float().mean() < 0.6
    torch.testing.assert_close(seen[0][kept], 2 * full[kept])
    assert 0.4 < (seen[1] == 0)[F.relu(network.fc7(seen[0])) > 0].float().mean() < 0.6


def test_aligned_shares_every_parameter_and_changes_only_paddings():
    network = small("overfeat5", normalization="across_channels", classes=list("abcde"))
    batch = images(120, 90)
    before = network(batch)
    aligned = network.aligned()
    pairs = zip(aligned.named_parameters(), network.named_parameters(), strict=True)
    assert all(a_name == b_name and a is b for (a_name, a), (b_name, b) in pairs)
    assert aligned.backbone.offset == -3
    assert torch.equal(network(batch), before)
    expected = network.classify(network.pyramid(network.backbone.aligned()(batch)))
    assert torch.equal(aligned(batch), expected)
    assert backbone_digest(aligned) == backbone_digest(network)
    aligned.train()
    assert not any(module.training for module in network.modules())


def test_an_aligned_network_without_a_pyramid_still_takes_224_pixels_only():
    aligned = small(levels=None).aligned()
    assert aligned.maps(images(224, 224)).shape[2:] == (14, 14)
    assert aligned(images(224, 224)).shape == (2, 5)
    with pytest.raises(ValueError, match="224 x 224 images only"):
        aligned(images(256, 256))


def test_a_network_can_read_a_timm_model():
    network = SPPNet(build_backbone("timm", name="test_resnet"), (2, 1), 4, hidden=8).eval()
    assert network.fc6.in_features == 96 * 5
    with torch.no_grad():
        assert network(images(70, 100)).shape == (2, 4)
        assert network.features(images(70, 100), "conv5").shape == (2, 96, 3, 4)
    aligned = network.aligned()
    assert all(a is b for a, b in zip(aligned.parameters(), network.parameters(), strict=True))
    aligned.train()
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"hidden": 0}, "hidden=0"),
        ({"hidden": -4}, "hidden=-4"),
        ({"dropout": -0.1}, r"dropout=-0\.1"),
        ({"dropout": 1}, "dropout=1"),
        ({"initialization": "xavier"}, "'xavier'.*paper, fan_in, none"),
        ({"input_mean": (1, 2)}, r"input_mean=\(1, 2\)"),
        ({"input_std": (1, 0, 1)}, r"input_std=\(1, 0, 1\)"),
        ({"input_std": (1, 1, 1, 1)}, r"input_std=\(1, 1, 1, 1\)"),
        ({"classes": ["cat"], "num_classes": 2}, "1 names for num_classes=2"),
        ({"backbone": "zf7"}, "'zf7'.*zf5, convnet5"),
        ({"levels": []}, r"levels=\[\]"),
        ({"levels": [6, 0]}, "0"),
        ({"levels": [1.5]}, r"1\.5"),
        ({"levels": "63"}, "'63'"),
        ({"levels": 6}, "levels=6"),
        ({"levels": [100_000]}, r"levels=\[100000\].* 10,485,[\d,]+ parameters.* at most 1,000,000,000"),
        ({"hidden": 10**9}, "hidden=1000000000.*at most 1,000,000,000"),
        ({"num_classes": 10**9}, "num_classes=1000000000.*at most 1,000,000,000"),
    ],
)
def test_wrong_arguments_are_named(arguments, named):
    with torch.device("meta"), pytest.raises(ValueError, match=named):
        SPPNet(**arguments)


def weights_of(network):
    return {
        name: module for name, module in network.named_modules() if isinstance(module, (Convolution, torch.nn.Linear))
    }


def test_paper_initialization_draws_gaussians_of_one_hundredth():
    torch.manual_seed(0)
    network = SPPNet(build_backbone("overfeat7", width=0.25), num_classes=200, hidden=256, initialization="paper")
    raised = {"backbone.conv2", "backbone.conv4", "backbone.conv5", "fc6", "fc7"}
    assert raised < set(weights_of(network))
    for name, layer in weights_of(network).items():
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05), name
        assert abs(layer.weight.mean().item()) < 0.0005, name
        expected = 0.1 if name in raised else 0.0
        assert torch.equal(layer.bias, torch.full_like(layer.bias, expected)), name


def test_fan_in_initialization_keeps_the_variance():
    torch.manual_seed(0)
    network = SPPNet(build_backbone("zf5", width=0.25), num_classes=200, hidden=256, initialization="fan_in")
    for name, layer in weights_of(network).items():
        fan_in = layer.weight[0].numel()
        expected = 0.01 if name == "fc8" else math.sqrt(2 / fan_in)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05), name
        assert not layer.bias.any(), name


@pytest.mark.parametrize(
    ("initialization", "normalization", "scale"),
    [("paper", "across_channels", 63.0), ("paper", "within_channel", 63.0), ("fan_in", "across_channels", 1.0)],
)
def test_training_starts_at_a_loss_of_the_logarithm_of_the_classes(initialization, normalization, scale):
    """Full width, on smooth pictures of the spread that each initialization is made for, averaged over all labels."""
    torch.manual_seed(0)
    backbone = build_backbone("zf5", normalization=normalization)
    network = SPPNet(backbone, num_classes=100, hidden=512, initialization=initialization)
    pictures = F.interpolate(torch.randn(2, 3, 12, 12), size=(96, 96), mode="bicubic")
    loss = F.cross_entropy(network(scale * pictures / pictures.std()), torch.full((2, 100), 1 / 100))
    assert loss.item() == pytest.approx(math.log(100), abs=0.15)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())


def test_a_pretrained_body_keeps_its_weights():
    torch.manual_seed(0)
    body = build_backbone("timm", name="test_resnet")
    before = {name: value.clone() for name, value in body.state_dict().items()}
    for initialization in ("paper", "fan_in", "none"):
        network = SPPNet(body, (1,), 3, hidden=4, initialization=initialization)
        assert all(torch.equal(value, before[name]) for name, value in network.backbone.state_dict().items())


@pytest.mark.parametrize("backbone", ["zf5", "convnet5", "overfeat5", "overfeat7"])
@pytest.mark.parametrize("levels", [(4, 3, 2, 1), None])
def test_a_saved_network_comes_back_bit_for_bit(backbone, levels, tmp_path):
    network = small(
        backbone,
        levels,
        normalization="within_channel",
        dropout=0.3,
        input_mean=(1.5, 2, 3),
        input_std=(58.0, 57, 56.25),
        classes=["a", "b", "ç", "d d", ""],
    )
    save_network(network, tmp_path / "network.ckpt")
    loaded = load_network(tmp_path / "network.ckpt")
    assert loaded.description() == network.description()
    assert (loaded.levels, loaded.input_mean, loaded.input_std) == (levels, (1.5, 2.0, 3.0), (58.0, 57.0, 56.25))
    assert loaded.classes == ("a", "b", "ç", "d d", "")
    assert loaded.dropout.p == 0.3
    assert not loaded.training
    state = loaded.state_dict()
    assert list(state) == list(network.state_dict())
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert torch.equal(loaded(images(224, 224)), network(images(224, 224)))


def test_a_network_of_a_timm_model_is_saved_with_its_running_statistics(tmp_path):
    network = SPPNet(build_backbone("timm", name="test_resnet"), (1,), 3, hidden=4)
    with torch.no_grad():
        network(images(64, 64))  # in training mode: moves the running statistics
    network.eval()
    save_network(network, tmp_path / "network.ckpt")
    with torch.no_grad():
        assert torch.equal(load_network(str(tmp_path / "network.ckpt"))(images(64, 64)), network(images(64, 64)))


def test_defaults_survive_the_file(tmp_path):
    save_network(small(), tmp_path / "network.ckpt")
    loaded = load_network(tmp_path / "network.ckpt")
    assert loaded.classes is None
    assert loaded.input_mean == IMAGENET_MEAN
    assert loaded.input_std == (1.0, 1.0, 1.0)


def test_numbers_and_names_from_numpy_survive_the_file(tmp_path):
    network = small(
        levels=(1,),
        num_classes=np.int64(2),
        hidden=np.int64(8),
        dropout=np.float32(0.5),
        input_mean=np.array([1.0, 2.0, 3.0]),
        input_std=np.array([1.0, 2.0, 3.0], dtype=np.float32),
        classes=np.array(["cat", "dog"]),
    )
    save_network(network, tmp_path / "network.ckpt")
    loaded = load_network(tmp_path / "network.ckpt")
    assert (loaded.input_mean, loaded.classes) == ((1.0, 2.0, 3.0), ("cat", "dog"))


def test_a_file_is_plain_values(tmp_path):
    save_network(small(classes=list("abcde")), tmp_path / "network.ckpt")
    checkpoint = torch.load(tmp_path / "network.ckpt", weights_only=True)
    assert set(checkpoint) == {"network", "state_dict"}
    assert checkpoint["network"]["backbone"] == {"architecture": "zf5", "width": 0.03, "normalization": "none"}
    assert all(name.startswith("network.") for name in checkpoint["state_dict"])


def test_a_run_directory_means_its_last_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"checkpoints.last\.ckpt: no such checkpoint"):
        load_network(tmp_path)
    network = small()
    save_network(network, tmp_path / "checkpoints" / "last.ckpt")
    assert torch.equal(load_network(tmp_path)(images(64, 64)), network(images(64, 64)))


def test_other_weights_in_the_file_are_left_alone(tmp_path):
    """A training checkpoint holds more than the network: an optimizer, a loss with weights of its own."""
    network, file = small(), tmp_path / "last.ckpt"
    save_network(network, file)
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["loss.weight"] = torch.ones(3)
    torch.save({**checkpoint, "optimizer_states": [{"lr": 0.1}], "epoch": 7}, file)
    assert torch.equal(load_network(file)(images(64, 64)), network(images(64, 64)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt: no such checkpoint"):
        load_network(tmp_path / "nothing.ckpt")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n" * 100, b"PK\x03\x04" + bytes(50), b"\x80\x02]q\x00.", bytes(range(256)), b"\xff\xd8\xff\xe0" * 9],
)
def test_a_file_of_something_else_is_named(content, tmp_path):
    (tmp_path / "other.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.ckpt: not a checkpoint of sppnet"):
        load_network(tmp_path / "other.ckpt")


def test_a_file_cut_off_anywhere_is_named(tmp_path):
    save_network(small(levels=(1,), hidden=2), tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    for length in range(0, len(content), len(content) // 50):
        (tmp_path / "cut.ckpt").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.ckpt: not a checkpoint of sppnet"):
            load_network(tmp_path / "cut.ckpt")


@pytest.mark.parametrize(
    "change",
    [
        lambda checkpoint: {"state_dict": checkpoint["state_dict"]},
        lambda checkpoint: {"network": checkpoint["network"]},
        lambda checkpoint: checkpoint["state_dict"],
        lambda checkpoint: {**checkpoint, "network": 3},
        lambda checkpoint: {**checkpoint, "network": {}},
        lambda checkpoint: {**checkpoint, "network": {**checkpoint["network"], "levels": [0]}},
        lambda checkpoint: {**checkpoint, "network": {**checkpoint["network"], "hidden": 17}},
        lambda checkpoint: {**checkpoint, "network": {**checkpoint["network"], "colour": "red"}},
        lambda checkpoint: {**checkpoint, "network": {**checkpoint["network"], "backbone": {"architecture": "vgg"}}},
        lambda checkpoint: {**checkpoint, "state_dict": {}},
        lambda checkpoint: {**checkpoint, "state_dict": [1, 2]},
        lambda checkpoint: [1, 2],
        lambda checkpoint: torch.zeros(3),
    ],
)
def test_a_checkpoint_of_something_else_is_named(change, tmp_path):
    file = tmp_path / "other.ckpt"
    save_network(small(), file)
    torch.save(change(torch.load(file, weights_only=True)), file)
    with pytest.raises(ValueError, match=r"other\.ckpt: not a checkpoint of sppnet"):
        load_network(file)


def test_the_most_parameters_are_those_of_the_fully_connected_layers():
    with torch.device("meta"):
        backbone = build_backbone("zf5", width=0.01)  # 3 filters
        layers = SPPNet(backbone, (1,), 17, hidden=31_611, initialization="none")
        assert sum(p.numel() for name, p in layers.named_parameters() if name.startswith("fc")) == 999_950_780
        with pytest.raises(ValueError, match="would have 1,000,"):
            SPPNet(backbone, (1,), 17, hidden=31_612, initialization="none")


def described_otherwise(file, **description):
    """Changes the description of a saved network, and leaves its weights."""
    save_network(small(), file)
    checkpoint = torch.load(file, weights_only=True)
    torch.save({**checkpoint, "network": {**checkpoint["network"], **description}}, file)


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ({"hidden": 10**9}, "hidden=1000000000"),
        ({"hidden": 20_000}, r"fc6.weight has shape \[16, 400\], and \[20000, 400\] in its description"),
        ({"num_classes": 10_000_000}, r"fc8.bias has shape|fc8.weight has shape"),
        ({"levels": [100_000]}, r"levels=\[100000\]"),
        ({"backbone": {"architecture": "overfeat7", "width": 8}}, "backbone.conv6.bias is missing"),
        ({"backbone": {"architecture": "zf5", "width": 1e9}}, "width=1000000000"),
        ({"backbone": {"architecture": "timm", "name": "vit_base_patch16_224"}}, "is missing"),
    ],
)
def test_a_description_of_more_than_the_file_holds_takes_no_memory(description, reason, tmp_path):
    file = tmp_path / "other.ckpt"
    described_otherwise(file, **description)
    if description.get("backbone", {}).get("architecture") == "timm":
        build_backbone("timm", name="test_vit")  # the import of timm takes memory
    limit = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 200 * 2**20, limit[1]))
    try:
        with pytest.raises(ValueError, match=rf"other\.ckpt: not a checkpoint of sppnet \(.*{reason}"):
            load_network(file)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def changed_weights(file, change):
    save_network(small(), file)
    checkpoint = torch.load(file, weights_only=True)
    change(checkpoint["state_dict"])
    torch.save(checkpoint, file)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("network.fc7.bias"), "fc7.bias is missing"),
        (lambda state: state.update({"network.fc9.bias": torch.zeros(2)}), "fc9.bias is not a weight of the network"),
        (
            lambda state: state.update({"network.fc7.bias": torch.zeros(17)}),
            r"fc7.bias has shape \[17\], and \[16\] in its description",
        ),
        (
            lambda state: state.update({"network.fc7.bias": torch.zeros(16, dtype=torch.int64)}),
            "fc7.bias is of torch.int64",
        ),
        (lambda state: state.update({"network.fc7.weight": torch.zeros(16, 16).to_sparse()}), "sparse"),
    ],
)
def test_weights_that_are_not_those_described_are_named(change, reason, tmp_path):
    changed_weights(tmp_path / "other.ckpt", change)
    with pytest.raises(ValueError, match=rf"other\.ckpt: not a checkpoint of sppnet \(.*{reason}"):
        load_network(tmp_path / "other.ckpt")


def test_weights_that_the_file_does_not_hold_are_refused(tmp_path):
    """One number, 400 million times by a stride of 0."""
    file = tmp_path / "small.ckpt"
    described_otherwise(file, hidden=20_000)
    checkpoint = torch.load(file, weights_only=True)
    with torch.device("meta"):
        shapes = {
            f"network.{k}": v.shape for k, v in SPPNet.from_description(checkpoint["network"]).state_dict().items()
        }
    checkpoint["state_dict"] = {
        name: torch.zeros(1).as_strided(shape, [0] * len(shape)) for name, shape in shapes.items()
    }
    torch.save(checkpoint, file)
    assert file.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"1,632,576,452 bytes of weights in a file of \d,\d\d\d\)"):
        load_network(file)


def test_a_compressed_file_does_not_unfold(tmp_path):
    """40 MB of zeros beside the weights, and enough noise that the file is larger than the weights."""
    whole, packed = tmp_path / "whole.ckpt", tmp_path / "packed.ckpt"
    changed_weights(whole, lambda state: state.update(zeros=torch.zeros(10_000_000), noise=torch.randn(100_000)))
    load_network(whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert packed.stat().st_size < whole.stat().st_size / 2
    with pytest.raises(ValueError, match=r"packed\.ckpt: not a checkpoint of sppnet"):
        load_network(packed)


def test_weights_of_half_precision_become_float32(tmp_path):
    network = small()
    save_network(network.half(), tmp_path / "half.ckpt")
    loaded = load_network(tmp_path / "half.ckpt")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.fc6.weight, network.fc6.weight.float())


def test_a_loaded_network_does_not_depend_on_its_file(tmp_path):
    file = tmp_path / "network.ckpt"
    network = small()
    save_network(network, file)
    loaded = load_network(file)
    file.write_bytes(bytes(file.stat().st_size))
    file.unlink()
    assert torch.equal(loaded(images(64, 64)), network(images(64, 64)))


def test_a_description_never_downloads(tmp_path, monkeypatch):
    network = SPPNet(build_backbone("timm", name="test_resnet"), (1,), 3, hidden=4).eval()
    save_network(network, tmp_path / "network.ckpt")
    checkpoint = torch.load(tmp_path / "network.ckpt", weights_only=True)
    checkpoint["network"]["backbone"]["pretrained"] = True
    torch.save(checkpoint, tmp_path / "network.ckpt")

    def no_network(*arguments, **options):
        raise OSError("the network was tried")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    loaded = load_network(tmp_path / "network.ckpt")
    assert torch.equal(loaded(images(64, 64)), network(images(64, 64)))
    assert loaded.description()["backbone"]["pretrained"] is False


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    marker, file = tmp_path / "it_ran", tmp_path / "evil.ckpt"
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.is_dir()  # this is what it would do
    marker.rmdir()

    save_network(small(), file)
    checkpoint = torch.load(file, weights_only=True)
    torch.save({**checkpoint, "extra": Malicious(marker)}, file)
    with pytest.raises(ValueError, match=r"evil\.ckpt: not a checkpoint of sppnet"):
        load_network(file)
    file.write_bytes(pickle.dumps(Malicious(marker), protocol=2))
    with pytest.raises(ValueError, match=r"evil\.ckpt: not a checkpoint of sppnet"):
        load_network(file)
    assert not marker.exists()


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "network.ckpt"
    save_network(small(), file)
    before = file.read_bytes()

    def fail_half_way(checkpoint, path):
        path.write(before[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(sppnet.network.torch, "save", fail_half_way)
    with pytest.raises(KeyboardInterrupt):
        save_network(small(hidden=9), file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_saving_again_replaces_the_file(tmp_path):
    file = tmp_path / "network.ckpt"
    save_network(small(hidden=9), file)
    save_network(small(hidden=10), file)
    assert load_network(file).hidden == 10
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
def test_torch_compile_sees_the_network_as_one_graph_at_every_size():
    torch._dynamo.reset()
    network = small(normalization="across_channels")
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for size in [(180, 180), (224, 224)]:
        torch.testing.assert_close(compiled(images(*size)), network(images(*size)))
