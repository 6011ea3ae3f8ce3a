"""Fine-tuning on windows: what is drawn, what is learned, and that an interrupted run ends like another."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch

from sppnet.detect.finetuning import (
    FinetuneSettings,
    LabelledWindows,
    WindowBatches,
    WindowsToTuneOn,
    finetune,
    labelled_windows,
    with_background,
)
from sppnet.network import SPPNet, load_network, save_network
from sppnet.runtime.hardware import Hardware
from sppnet.runtime.signals import Stopped

CPU = Hardware(accelerator="cpu", precision="float32")
FEW = FinetuneSettings(
    steps=40, dropped_after=30, learning_rate=0.05, batch_size=16, validate_every=10, validation_batches=4
)


def made_network(seed=0):
    """Makes a network of 3 classes that pools 7 values."""
    torch.manual_seed(seed)
    return SPPNet("zf5", (1,), 3, hidden=32, initialization="fan_in")


class TablePool:
    """Looks pooled windows up in a table: (images, windows, d). Mirrored ones are twice as large."""

    def __init__(self, table):
        self.table, self.calls = torch.from_numpy(table), 0

    def __call__(self, images, windows, mirrored):
        self.calls += 1
        return self.table[images, windows] * torch.from_numpy(np.where(mirrored, 2, 1))[:, None]


def made_windows(images=5, windows=31, seed=0):
    """Makes windows whose pooled values tell their label, whether they are mirrored or not."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, (images, windows))
    directions = np.random.default_rng(7).normal(0, 0.1, (4, 256))
    table = (np.abs(random.normal(2, 0.3, (images, windows, 1))) * directions[labels]).astype(np.float32)
    image, window = np.nonzero(labels)
    background = np.stack(np.nonzero(labels == 0), axis=1)
    positives = np.stack([image, window, labels[image, window]], axis=1)
    return WindowsToTuneOn(LabelledWindows(positives, background), TablePool(table))


# Drawing windows.


def test_a_window_belongs_to_the_class_that_it_overlaps_most_or_to_the_background_or_to_nothing():
    """With the limits 0.5 and 0.1 of the paper: from 0.5 an object, from 0.1 background."""
    overlaps = [np.array([[0.5, 0.2], [0.6, 0.9], [0.49, 0.3], [0.1, 0.0], [0.09, 0.0]]), np.array([[0.0, 0.5]])]
    found = labelled_windows(overlaps, FinetuneSettings())
    assert found.positives.tolist() == [[0, 0, 1], [0, 1, 2], [1, 0, 2]]
    assert found.background.tolist() == [[0, 2], [0, 3]]


def test_images_without_windows_and_without_objects_have_nothing_to_draw():
    found = labelled_windows([np.zeros((0, 2)), np.zeros((5, 2))], FinetuneSettings())
    assert found.positives.shape == (0, 3)
    assert found.background.shape == (0, 2)
    with pytest.raises(ValueError, match="found 0 positive and 0 background windows in the training images"):
        found.check("training")


@pytest.mark.parametrize(("size", "share", "positives"), [(128, 0.25, 32), (10, 0.25, 2), (7, 0.5, 4)])
def test_a_batch_has_its_share_of_positives(size, share, positives):
    settings = FinetuneSettings(batch_size=size, positive_share=share)
    split = made_windows()
    features, labels = WindowBatches(split.windows, split.pool, settings, seed=0)[3]
    assert features.shape == (size, 256)
    assert (labels > 0).sum() == positives


def test_windows_are_drawn_with_equal_probability_and_mirrored_half_of_the_time():
    split = made_windows(images=3, windows=7)
    drawn = []

    def noted(images, windows, mirrored):
        drawn.append(np.stack([images, windows, mirrored], axis=1))
        return split.pool(images, windows, mirrored)

    batches = WindowBatches(split.windows, noted, FinetuneSettings(), seed=1)
    for step in range(200):
        batches[step]
    rows = np.concatenate(drawn)
    assert abs(rows[:, 2].mean() - 0.5) < 0.02
    is_positive = {(image, window) for image, window, _ in split.windows.positives.tolist()}
    counts = np.array([np.all(rows[:, :2] == place, axis=1).sum() for place in sorted(is_positive)])
    expected = 200 * 32 / len(is_positive)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    split = made_windows()
    one, other = (WindowBatches(split.windows, split.pool, FEW, seed=2) for _ in range(2))
    other[5]
    assert torch.equal(one[9][0], other[9][0])
    assert not torch.equal(one[9][0], one[10][0])
    assert not torch.equal(one[9][0], WindowBatches(split.windows, split.pool, FEW, seed=3)[9][0])


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "finetune.steps=0: must be at least 1"),
        ({"steps": 2001}, "finetune.steps=2001: must be a multiple of finetune.validate_every=2000"),
        ({"learning_rate": float("inf")}, "finetune.learning_rate=inf"),
        ({"positive_share": 0.0}, "finetune.positive_share=0.0: must leave room"),
        ({"positive_share": 1.0}, "finetune.positive_share=1.0: must leave room"),
        ({"background_overlap": 0.6}, "must rise from 0 to 1"),
        ({"dropout": 1}, "finetune.dropout=1: must be at least 0 and below 1"),
        ({"weight_decay": -1}, "finetune.weight_decay=-1"),
    ],
)
def test_settings_out_of_range_are_refused_with_their_key(wrong, message):
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(**wrong)
