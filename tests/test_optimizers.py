"""Optimizers by name, and groups of parameters: beside timm's own, and beside the definition."""

import copy
import re

import pytest
import timm
import timm.optim
import torch
import torch.nn.functional as F

from sppnet.backbones import build_backbone
from sppnet.classify.optimizers import build_optimizer, check_optimizer, layers_of, parameter_groups
from sppnet.classify.recipe import Recipe
from sppnet.network import SPPNet


def make_recipe(**options):
    fixed = {"epochs": 4, "batch_size": 2, "learning_rate": 0.01, "momentum": 0.8, "weight_decay": 0.1}
    return Recipe(**fixed, warmup_epochs=0, **options)


def make_network(backbone=None):
    torch.manual_seed(0)
    backbone = backbone or build_backbone("zf5", width=0.05, normalization="none")
    return SPPNet(backbone, (2, 1), num_classes=3, hidden=8, initialization="fan_in")


def two_steps(network, optimizer, seed=1):
    """Takes two steps on random images."""
    for step in range(2):
        torch.manual_seed(seed + step)
        optimizer.zero_grad()
        F.cross_entropy(network.eval()(torch.randn(2, 3, 48, 48)), torch.tensor([0, 2])).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {"betas": [0.8, 0.9], "eps": 1e-6}),
        ("lamb", {}),
        ("LION", {}),
        ("lookahead_adam", {}),
        ("muon", {}),
        ("momentum", {}),
        ("rmsproptf", {}),
    ],
)
def test_an_optimizer_of_timm_makes_the_update_that_timm_makes(name, options):
    network = make_network()
    other, start = copy.deepcopy(network), copy.deepcopy(network)
    two_steps(network, build_optimizer(network, make_recipe(optimizer=name, optimizer_options=options)))
    theirs = timm.optim.create_optimizer_v2(other, name, lr=0.01, weight_decay=0.1, momentum=0.8, **options)
    two_steps(other, theirs)
    for ours, expected, before in zip(network.parameters(), other.parameters(), start.parameters(), strict=True):
        assert torch.equal(ours, expected)
        assert not torch.equal(ours, before)


def test_sgd_is_that_of_torch_with_the_options_that_are_given():
    network = make_network()
    plain = build_optimizer(network, make_recipe())
    assert type(plain) is torch.optim.SGD
    assert [(g["momentum"], g["nesterov"], g["fused"]) for g in plain.param_groups] == [(0.8, False, True)] * 2
    options = {"nesterov": True, "fused": False}
    nesterov = build_optimizer(network, make_recipe(optimizer_options=options))
    assert [(g["momentum"], g["nesterov"], g["fused"]) for g in nesterov.param_groups] == [(0.8, True, False)] * 2


def scales(network, recipe):
    """The factor on the rate of every parameter, by name."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = parameter_groups(network, recipe)
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


def test_each_layer_learns_slower_than_the_next_one_and_the_backbone_by_its_own_factor():
    found = scales(make_network(), make_recipe(layer_decay=0.5, backbone_rate=0.1))
    layers = [f"backbone.conv{i}" for i in (1, 2, 3, 4, 5)] + ["fc6", "fc7", "fc8"]
    for depth, layer in enumerate(reversed(layers)):
        expected = 0.5**depth * (0.1 if layer.startswith("backbone") else 1)
        assert [found[f"{layer}.weight"], found[f"{layer}.bias"]] == pytest.approx([expected] * 2)
    only_backbone = scales(make_network(), make_recipe(backbone_rate=0.1))
    assert {(name.startswith("backbone"), scale) for name, scale in only_backbone.items()} == {(True, 0.1), (False, 1)}


def test_wide_layers_of_the_head_have_a_rate_in_inverse_proportion_to_their_inputs():
    network = make_network()
    inputs = {name: getattr(network, name).in_features for name in ("fc6", "fc7", "fc8")}
    found = scales(network, make_recipe(full_rate_inputs=10, backbone_rate=0.1))
    for name, scale in found.items():
        layer = name.partition(".")[0]
        assert scale == pytest.approx(0.1 if layer == "backbone" else min(1, 10 / inputs[layer])), name
    assert min(inputs.values()) < 10 < max(inputs.values())


# With norms in a stem, with norms before convolutions, with blocks that have letters, wrapped, and without groups of
# its own in timm.
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet10t", "convnext_atto", "regnetx_002", "vit_tiny_patch16_224", "pit_ti_224"]
)
def test_the_layers_of_a_timm_model_are_those_that_timm_counts(name):
    with torch.device("meta"):
        network, model = make_network(build_backbone("timm", name=name)), timm.create_model(name)
    groups = timm.optim.param_groups_layer_decay(model, layer_decay=0.5)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    theirs = {names[id(p)].replace(".", "_"): group["lr_scale"] for group in groups for p in group["params"]}
    ours = {
        re.sub(r"^backbone\.body\.(body\.|model\.)?", "", key).replace(".", "_"): scale
        for key, scale in scales(network, make_recipe(layer_decay=0.5)).items()
        if key.startswith("backbone.")
    }
    last = max(theirs[key] for key in ours)
    assert ours == pytest.approx({key: 0.5**3 * theirs[key] / last for key in ours})  # fc6, fc7 and fc8 follow
    assert len(set(ours.values())) > 4


def test_the_layers_hold_every_parameter_once_in_order():
    network = make_network(build_backbone("timm", name="resnet18"))
    layers = layers_of(network)
    assert [name for layer in layers for name in layer] == [name for name, _ in network.named_parameters()]
    assert layers[0] == [f"backbone.body.{name}" for name in ("conv1.weight", "bn1.weight", "bn1.bias")]
    assert layers[-1] == ["fc8.weight", "fc8.bias"]
    assert len(layers) == 1 + 8 + 3


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "lookahead_adam", "muon", "rmsprop", "adafactor"])
def test_weights_without_gradients_neither_move_nor_decay(name):
    network = make_network()
    optimizer = build_optimizer(network, make_recipe(optimizer=name))
    network.backbone.requires_grad_(False)
    before = copy.deepcopy(network)
    two_steps(network, optimizer)
    for key, parameter in network.named_parameters():
        assert torch.equal(parameter, before.get_parameter(key)) == key.startswith("backbone.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adanw2"}, r"^recipe\.optimizer=adanw2: timm has no such optimizer \(close: .*adanw"),
        ({"optimizer": "?"}, r"timm\.optim\.list_optimizers\(\) shows all"),
        ({"optimizer": "adahessian"}, r"^recipe\.optimizer=adahessian: needs second derivatives"),
        ({"optimizer": "bnbadam"}, r"^recipe\.optimizer=bnbadam: "),
        ({"optimizer": "adamw", "optimizer_options": {"beta": 1}}, r"recipe\.optimizer=adamw, .*'beta': 1}: .*'beta'"),
        ({"optimizer": "adamw", "optimizer_options": {"betas": [2.0, 0.9]}}, "Invalid beta parameter"),
        ({"optimizer": "adamw", "optimizer_options": {"betas": [0.9]}}, r"^recipe\.optimizer=adamw, .*\[0\.9\]}: "),
        ({"optimizer": "adamw", "optimizer_options": {"eps": "small"}}, r"^recipe\.optimizer=adamw, "),
        ({"optimizer": "adamw", "optimizer_options": {"lr": 1}}, r"optimizer_options=.*: set recipe\.learning_rate"),
        ({"optimizer_options": {"weight_decay": 1}}, r"optimizer_options=.*: set recipe\.weight_decay instead"),
        ({"optimizer_options": {"nesterovs": True}}, r"^recipe\.optimizer=sgd, .*'nesterovs'"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as refused:
        check_optimizer(make_recipe(**options))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("recipe.")


def test_what_can_be_made_is_accepted_and_leaves_the_random_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for name, options in (("sgd", {}), ("sgd", {"nesterov": True}), ("AdamW", {"betas": [0.9, 0.95]}), ("muon", {})):
        check_optimizer(make_recipe(optimizer=name, optimizer_options=options))
    assert torch.equal(torch.get_rng_state(), before)
