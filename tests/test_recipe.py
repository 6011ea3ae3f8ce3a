"""Settings of training: defaults, notes for the user, and values out of range."""

from sppnet.classify.advice import few_steps_note
from sppnet.classify.recipe import Recipe, default_warmup


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
        "recipe.batch_size=128 recipe.learning_rate=0.01 would make it 23"
    )
    assert few_steps_note(recipe(512), 20 * 512 - 1) is not None
    assert few_steps_note(recipe(512), 20 * 512) is None
    assert few_steps_note(recipe(128), 3068) is None
    assert few_steps_note(recipe(1), 7) is None  # smaller is not possible


def test_the_proposed_batch_can_be_shared_among_the_processes():
    note = few_steps_note(recipe(510), 3000, processes=6)
    assert "recipe.batch_size=96 recipe.learning_rate=0.0075 would make it 31" in note


def test_the_default_warmup_fits_short_runs():
    assert [default_warmup(epochs) for epochs in (1, 3, 5, 14)] == [0.2, 0.6, 1.0, 2.8]
    assert [str(default_warmup(epochs)) for epochs in (15, 20, 40, 60, 10**30)] == ["3"] * 5  # as written: hashes hold
