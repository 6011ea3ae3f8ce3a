"""Fine-tuning on windows: what is learned, and that an interrupted run ends like another."""

import dataclasses
import os
import signal

import pytest
import torch

from sppnet.detect.finetuning import finetune, with_background
from sppnet.detect.finetuning_windows import WindowsToTuneOn
from sppnet.network import SPPNet, load_network, save_network
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.signals import Stopped
from test_finetuning_windows import FEW, TablePool, made_windows

CPU = Hardware(accelerator="cpu", precision="float32")


def made_network(seed=0):
    """Makes a network of 3 classes that pools 7 values."""
    torch.manual_seed(seed)
    return SPPNet("zf5", (1,), 3, hidden=32, initialization="fan_in")


# The network.


def test_the_new_output_counts_the_background_and_everything_else_is_kept():
    network = made_network()
    changed = with_background(network, ("cat", "dog"), dropout=0.25, seed=0)
    assert changed.classes == ("background", "cat", "dog")
    assert changed.fc8.weight.shape == (3, 32)
    assert changed.dropout.p == 0.25
    assert 0.005 < changed.fc8.weight.std() < 0.02
    before = network.state_dict()
    for name, value in changed.state_dict().items():
        assert name.startswith("fc8.") or torch.equal(value, before[name]), name


def test_the_new_output_is_a_function_of_the_seed():
    one, same, other = (with_background(made_network(), ("cat",), dropout=0.5, seed=s).fc8.weight for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# Training.


def tuned(run, *, train=None, settings=FEW, seed=0):
    network = with_background(made_network(), ("a", "b", "c"), dropout=0.5, seed=0)
    history = finetune(network, train or made_windows(), made_windows(seed=1), settings, run, hardware=CPU, seed=seed)
    return network, history


def test_windows_are_learned_and_convolutions_are_not_changed(tmp_path):
    network, history = tuned(tmp_path, settings=dataclasses.replace(FEW, steps=80, dropped_after=80))
    assert [entry["steps"] for entry in history] == [10, 20, 30, 40, 50, 60, 70, 80]
    assert history[-1]["wrong"] / history[-1]["n"] < 0.05  # always background: 0.25
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    before = made_network().backbone.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in network.backbone.state_dict().items())
    assert not network.training


def test_the_network_has_the_weights_of_the_best_validation(tmp_path):
    """The first validation's, if training windows are nonsense from then on."""
    settings = dataclasses.replace(FEW, learning_rate=0.05, dropped_after=0)
    good, _ = tuned(tmp_path / "short", settings=dataclasses.replace(settings, steps=10, dropped_after=10))
    spoiled = made_windows()
    spoiled_after = 10

    class Spoiled(TablePool):
        def __call__(self, images, windows, mirrored):
            features = super().__call__(images, windows, mirrored)
            return features if self.calls <= spoiled_after else -features

    train = WindowsToTuneOn(spoiled.windows, Spoiled(spoiled.pool.table.numpy()))
    settings = dataclasses.replace(settings, dropped_after=10)
    network, history = tuned(tmp_path / "long", train=train, settings=settings)
    assert min(range(4), key=lambda i: history[i]["wrong"]) == 0
    assert all(torch.equal(value, good.state_dict()[name]) for name, value in network.state_dict().items())


class StopsOnce(TablePool):
    """Sends this process a stop signal while it pools the windows of a step."""

    def __init__(self, table, at):
        super().__init__(table)
        self.at = at

    def __call__(self, images, windows, mirrored):
        features = super().__call__(images, windows, mirrored)
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return features


@pytest.mark.parametrize("at", [3, 14, 20])
def test_a_stopped_run_resumes_and_ends_with_equal_weights(tmp_path, at):
    whole, whole_history = tuned(tmp_path / "whole")
    split = made_windows()
    stopping = WindowsToTuneOn(split.windows, StopsOnce(split.pool.table.numpy(), at))
    with pytest.raises(Stopped):
        tuned(tmp_path / "stopped", train=stopping)
    resumed, history = tuned(tmp_path / "stopped", train=split)
    assert split.pool.calls <= 40 - at + 1  # only the steps that were left
    assert history == whole_history
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_finished_run_only_loads_its_weights(tmp_path):
    first, history = tuned(tmp_path)
    split = made_windows()
    again, same = tuned(tmp_path, train=split)
    assert same == history
    assert split.pool.calls == 0
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_tuned_network_is_saved_and_loaded_like_any_other(tmp_path):
    network, _ = tuned(tmp_path / "run")
    save_network(network, tmp_path / "tuned.ckpt")
    loaded = load_network(tmp_path / "tuned.ckpt")
    assert loaded.classes == ("background", "a", "b", "c")
    assert torch.equal(loaded.fc7.weight, network.fc7.weight)


def test_a_loss_that_is_not_finite_stops_with_the_key_to_lower(tmp_path):
    with pytest.raises(ValueError, match=r"not finite at step 10; lower finetune.learning_rate=1e\+30"):
        tuned(tmp_path, settings=dataclasses.replace(FEW, learning_rate=1e30))
