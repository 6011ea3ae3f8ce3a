"""The moving average of the weights, beside its definition and timm's ModelEmaV3."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3

from sppnet.backbones import build_backbone
from sppnet.classify.averaging import WeightAverage
from sppnet.network import SPPNet, load_network


def make_network():
    torch.manual_seed(0)
    network = SPPNet(build_backbone("zf5", width=0.05, normalization="none"), (1,), num_classes=3, hidden=8)
    network.backbone.register_buffer("mean", torch.zeros(3))  # as BatchNorm has them
    network.backbone.register_buffer("batches", torch.tensor(0))
    return network


def changed(network, seed):
    """Changes the weights and buffers as a step would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(torch.randn(value.shape) if value.is_floating_point() else 1)
    return network


def test_the_average_is_that_of_the_definition_with_timms_warmup():
    network, average = make_network(), WeightAverage(make_network(), 0.6)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    timms = ModelEmaV3(network, decay=0.6, use_warmup=True)
    for step in range(1, 8):
        average.update(changed(network, step), step)
        timms.update(network, step=step)
        # The first step replaces the initial weights, and the decay rises to 0.6: 0.37, 0.52, 0.6, 0.6.
        decay = 0.0 if step == 1 else min(0.6, 1 - (1 + step - 1) ** (-2 / 3))
        for name, value in network.state_dict().items():
            mixed = decay * expected[name] + (1 - decay) * value
            expected[name] = mixed if value.is_floating_point() else value.clone()
    for name, value in average.network.state_dict().items():
        torch.testing.assert_close(value, expected[name])
        assert torch.equal(value, timms.module.state_dict()[name])
    assert int(average.network.backbone.batches) == 7


def test_the_average_is_tested_not_trained():
    average = WeightAverage(make_network().train(), 0.9)
    assert not average.network.training
    assert not any(weights.requires_grad for weights in average.network.parameters())


def test_a_checkpoint_has_the_average_as_the_network_and_gives_both_back(tmp_path):
    network = make_network()
    del network.backbone.mean, network.backbone.batches  # a file holds what its description says
    average = WeightAverage(network, 0.9)
    for step in (1, 2, 3):
        average.update(changed(network, step), step)
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    checkpoint = {"state_dict": dict(weights), "network": network.description()}
    average.save(checkpoint)
    torch.save(checkpoint, tmp_path / "file.ckpt")

    for name, value in load_network(tmp_path / "file.ckpt").state_dict().items():
        assert torch.equal(value, average.network.state_dict()[name])
    read = torch.load(tmp_path / "file.ckpt", weights_only=True)
    other = WeightAverage(make_network_like(network), 0.9)
    other.load(read)
    for name, value in other.network.state_dict().items():
        assert torch.equal(value, average.network.state_dict()[name])
    assert read["state_dict"].keys() == weights.keys()
    for name, value in read["state_dict"].items():
        assert torch.equal(value, weights[name])
    assert not torch.equal(weights["network.fc8.weight"], average.network.fc8.weight)


def make_network_like(network):
    other = copy.deepcopy(network)
    torch.nn.init.zeros_(other.fc8.weight)
    return other


@pytest.mark.parametrize("decay", [0.5, 0.99999])
def test_equal_weights_stay_as_they_are(decay):
    """So the average of a frozen backbone is that backbone, bit for bit."""
    network = make_network()
    average = WeightAverage(network, decay)
    for step in range(1, 50):
        average.update(network, step)
    for name, value in average.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_every_process_gets_the_buffers_of_the_first_one(monkeypatch):
    """Two processes would take a minute to start; the exchange itself is torch's."""
    average = WeightAverage(make_network(), 0.9)
    before = [weights.clone() for weights in average.network.parameters()]
    monkeypatch.setattr(torch.distributed, "broadcast", lambda buffer, src: buffer.fill_(7 + src))
    average.share_buffers()
    buffers = dict(average.network.named_buffers())
    assert {"backbone.mean", "backbone.batches"} <= buffers.keys()
    assert all((buffer == 7).all() for buffer in buffers.values())
    assert all(torch.equal(*pair) for pair in zip(average.network.parameters(), before, strict=True))
