"""Settings of training: defaults, notes for the user, and values out of range."""

import dataclasses

import numpy as np
import pytest

from sppnet.classify.advice import few_steps_note, imbalance_note
from sppnet.classify.recipe import Recipe, batch_for_enough_steps, default_frozen, default_warmup


def recipe(batch_size, learning_rate=0.04):
    return Recipe(
        epochs=60,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=0.9,
        weight_decay=0.0005,
        warmup_epochs=3,
    )


def test_an_epoch_of_few_steps_gets_a_note_with_better_overrides():
    assert few_steps_note(recipe(512), 3068) == (
        "an epoch has only 5 steps (3,068 images, 512 at a time), and a network may hardly learn; "
        "recipe.batch_size=128 recipe.learning_rate=0.01 would make 23 steps"
    )
    assert few_steps_note(recipe(512), 20 * 512 - 1) is not None
    assert few_steps_note(recipe(512), 20 * 512) is None
    assert few_steps_note(recipe(128), 3068) is None
    assert few_steps_note(recipe(4), 7) is None


@pytest.mark.parametrize(
    ("images", "processes", "batch"),
    [(1, 1, 1), (3, 1, 2), (7, 1, 4), (159, 1, 4), (160, 1, 8), (3068, 1, 128), (3000, 6, 96), (7, 3, 3), (7, 8, 8)],
)
def test_a_batch_has_four_images_at_least_and_makes_twenty_steps_if_it_can(images, processes, batch):
    assert batch_for_enough_steps(images, processes) == batch


def test_the_proposed_batch_can_be_shared_among_the_processes():
    note = few_steps_note(recipe(510), 3000, processes=6)
    assert "recipe.batch_size=96 recipe.learning_rate=0.0075 would make 31 steps" in note


def test_the_default_of_frozen_epochs_leaves_epochs_for_the_backbone():
    assert [default_frozen(epochs) for epochs in (1, 4, 5, 9, 10, 20, 300)] == [0, 0, 1, 1, 2, 2, 2]


def test_the_default_warmup_fits_short_runs():
    assert [default_warmup(epochs) for epochs in (1, 3, 5, 14)] == [0.2, 0.6, 1.0, 2.8]
    assert [str(default_warmup(epochs)) for epochs in (15, 20, 40, 60, 10**30)] == ["3"] * 5  # as written: hashes hold


def test_classes_of_very_different_size_get_a_note_with_what_would_help():
    labels = np.repeat([0, 1, 3], [200, 19, 2000])  # none of class 2, which does not count
    classes = ["a", "rare\n", "none", "many"]
    assert imbalance_note(recipe(8), labels, classes) == (
        "classes are imbalanced: many has 2,000 training images, rare\\n has 19; recipe.balanced=true draws as many of "
        "every class in an epoch, recipe.class_weights=true weighs the loss instead"
    )
    for option in ("balanced", "class_weights"):
        assert imbalance_note(dataclasses.replace(recipe(8), **{option: True}), labels, classes) is None
    assert imbalance_note(recipe(8), np.repeat([0, 1], [100, 10]), "ab") is None
    assert imbalance_note(recipe(8), np.repeat([0, 1], [101, 10]), "ab") is not None
    assert imbalance_note(recipe(8), np.array([0]), "a") is None
