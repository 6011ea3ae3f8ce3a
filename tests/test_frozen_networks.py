"""The networks that are transferred: of runs, checkpoints and timm's weights, and what is recorded of them."""

import json
from pathlib import Path

import pytest
import timm
import torch
import yaml
from omegaconf import OmegaConf

from conftest import make_image_folder
from sppnet.backbones import build_backbone
from sppnet.commands.frozen_networks import build_network, chosen_layers, load_run, untrained_twin
from sppnet.network import IMAGENET_MEAN, IMAGENET_STD, SPPNet, save_network
from sppnet.runtime.run_directory import checkpoint_digest
from test_evaluate import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    make_image_folder(place / "images", train=2, val=2)
    return make_run(place / "run", place / "images", "seed=5", "recipe.initialization=fan_in")


def config_of(**changes):
    backbone = {"architecture": "zf5", "width": 0.05}
    return OmegaConf.create({"backbone": backbone, "seed": 0, "runs": "runs", "layers": None} | changes)


def timm_config(weights, **changes):
    """A configuration of a timm body with timm's weights (True), those of a file, or none (False)."""
    chosen = {"weights": weights} if isinstance(weights, str) else {"pretrained": weights}
    options = {"architecture": "timm", "name": "test_resnet", **chosen}
    return config_of(backbone=options | changes)


def all_equal(one, other):
    """Whether two networks have the same weights."""
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def change_config(run, change, copy):
    """Makes a copy of a run directory whose config.yaml is changed."""
    (copy / "checkpoints").mkdir(parents=True)
    (copy / "checkpoints" / "last.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    config = yaml.safe_load((run / "config.yaml").read_text())
    change(config)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    return copy


def test_a_run_is_known_by_its_records(run):
    loaded = load_run(run)
    assert loaded.record | {"setting": "", "text": ""} == {
        "name": "zf5", "levels": [6, 3, 2, 1], "variant": "single", "trained_on": "folder", "on_imagenet": False,
        "seed": 5, "setting": "", "text": "",
    }  # fmt: skip
    assert "seed" not in json.loads(loaded.record["setting"])
    assert loaded.record["text"] == loaded.network.summary()
    assert loaded.checkpoint == checkpoint_digest(run)
    assert (loaded.folder, loaded.initialization) == (run, "fan_in")
    assert loaded.trained_here
    assert loaded.finished
    assert not loaded.network.training


def test_a_run_without_a_result_is_not_finished(run, tmp_path):
    assert not load_run(change_config(run, lambda config: None, tmp_path / "copy")).finished


@pytest.mark.parametrize("value", [None, "xavier", 3, ["fan_in"]])
def test_a_run_with_an_unknown_initialization_has_the_one_that_suits_its_inputs(run, tmp_path, value):
    def change(config):
        del config["recipe"]["initialization"]
        if value is not None:
            config["recipe"]["initialization"] = value

    assert load_run(change_config(run, change, tmp_path / "copy")).initialization == "paper"


def test_a_checkpoint_is_known_by_its_name_and_description(tmp_path):
    network = SPPNet(build_backbone("zf5", width=0.05), (2, 1), 2, hidden=8, input_std=(50, 50, 50))
    save_network(network, tmp_path / "mine.ckpt")
    loaded = load_run(tmp_path / "mine.ckpt")
    assert loaded.record["trained_on"] == "checkpoint mine.ckpt"
    assert (loaded.record["variant"], loaded.record["seed"]) == (None, None)
    assert json.loads(loaded.record["setting"]) == json.loads(json.dumps(network.description()))
    assert loaded.folder == tmp_path / "mine.ckpt.transferred"
    assert loaded.initialization == "fan_in"
    assert loaded.finished
    (tmp_path / "folder" / "checkpoints").mkdir(parents=True)
    save_network(network, tmp_path / "folder" / "checkpoints" / "last.ckpt")
    assert load_run(tmp_path / "folder").folder == tmp_path / "folder"


# Networks that are built.


def test_a_network_is_built_of_random_weights_by_the_seed():
    first, same, other = (build_network(config_of(seed=seed)) for seed in (1, 1, 2))
    assert all_equal(first.network, same.network)
    assert first.folder == same.folder
    assert not all_equal(first.network, other.network)
    assert first.folder != other.folder
    assert first.checkpoint is None
    assert (first.record["trained_on"], first.record["seed"]) == (None, 1)
    assert first.record["setting"] == other.record["setting"]
    assert first.network.levels == (6, 3, 2, 1)
    assert (first.network.input_mean, first.network.input_std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert not first.network.training


def test_building_a_network_leaves_the_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = build_network(config_of())
    untrained_twin(loaded, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("levels", "built"), [([4, 1], (4, 1)), (None, None)])
def test_a_network_is_built_with_the_given_pyramid(levels, built):
    network = build_network(config_of(pooling={"levels": levels})).network
    assert network.levels == built
    assert network.input_side == (224 if built is None else None)


def test_a_network_of_timm_has_the_weights_and_statistics_of_timm(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("test_resnet")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = build_network(timm_config(str(tmp_path / "weights.pth")))
    ours = loaded.network.backbone.body.state_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in ours.items())
    expected = timm.get_pretrained_cfg("test_resnet")
    assert loaded.network.input_mean == pytest.approx([255 * value for value in expected.mean])
    assert loaded.network.input_std == pytest.approx([255 * value for value in expected.std])
    assert (loaded.record["name"], loaded.record["trained_on"], loaded.record["seed"]) == ("test_resnet", "timm", None)
    assert str(loaded.folder).startswith("runs/transfer-test_resnet-pretrained-")
    other = build_network(timm_config(str(tmp_path / "weights.pth"), out_indices=[-2]))
    assert other.folder != loaded.folder


def test_names_of_models_with_slashes_stay_in_the_folder():
    loaded = build_network(config_of(runs="elsewhere"))
    assert loaded.folder.parent == Path("elsewhere")


# Untrained twins.


def test_an_untrained_twin_is_the_same_network_with_random_weights(run):
    loaded = load_run(run)
    loaded = loaded._replace(record=loaded.record | {"on_imagenet": True})
    twin, same, other = (untrained_twin(loaded, seed) for seed in (1, 1, 2))
    assert twin.network.description() == loaded.network.description()
    assert all_equal(twin.network, same.network)
    assert not all_equal(twin.network, other.network)
    assert not all_equal(twin.network, loaded.network)
    assert twin.checkpoint is None
    assert twin.record == loaded.record | {"trained_on": None, "on_imagenet": False, "seed": 1}
    assert not twin.network.training
    assert float(twin.network.fc6.weight.detach().std()) == pytest.approx(
        (2 / twin.network.fc6.in_features) ** 0.5, rel=0.05
    )


def test_the_twin_of_a_network_with_timms_weights_has_none_of_them(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    loaded = build_network(timm_config(str(tmp_path / "weights.pth")))
    (tmp_path / "weights.pth").unlink()  # nor needs the file
    twin = untrained_twin(loaded, 0)
    for name, value in loaded.network.backbone.state_dict().items():
        if value.ndim == 4:
            assert not torch.equal(value, twin.network.backbone.state_dict()[name])


# Layers.


def test_layers_are_by_default_those_that_were_trained(run):
    assert chosen_layers(load_run(run), None) == ["pool5", "fc6", "fc7"]
    assert chosen_layers(build_network(config_of()), None) == ["pool5"]
    assert chosen_layers(load_run(run), ["fc8", "pixels", "fc8"]) == ["fc8", "pixels"]


def test_an_unknown_layer_is_refused_with_those_that_are_allowed(run, tmp_path):
    with pytest.raises(ValueError, match=r"^layers='conv6': must be one of conv1, .*pool5_1x1, fc6, fc7, fc8, pixels$"):
        chosen_layers(load_run(run), ["pool5", "conv6"])
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    for config in (config_of(), timm_config(False), timm_config(str(tmp_path / "weights.pth"))):
        with pytest.raises(ValueError, match=r"^layers='conv6': must be one of .*, pool5, .*, pool5_1x1, pixels$"):
            chosen_layers(build_network(config), ["pool5", "conv6"])
    assert chosen_layers(build_network(config_of()), ["pixels", "pool5_1x1"]) == ["pixels", "pool5_1x1"]


@pytest.mark.parametrize("layer", ["fc6", "fc7", "fc8"])
def test_layers_that_were_never_trained_are_refused(layer):
    with pytest.raises(
        ValueError, match=rf"^layers=\[pool5,{layer}\]: {layer} has random weights, as this network was"
    ):
        chosen_layers(build_network(config_of()), ["pool5", layer])
