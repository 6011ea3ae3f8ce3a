"""Windows to fine-tune on: which are used, how batches are drawn, and settings out of range."""

import numpy as np
import pytest
import torch

from sppnet.detect.finetuning_windows import (
    FinetuneSettings,
    LabelledWindows,
    WindowBatches,
    WindowsToTuneOn,
    labelled_windows,
)

FEW = FinetuneSettings(
    steps=40, dropped_after=30, learning_rate=0.05, batch_size=16, validate_every=10, validation_batches=4
)


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
