"""The key that was probably meant by one that does not exist."""

import pytest

from sppnet.commands.hints import closest_key

KEYS = [
    *("name", "seed", "hidden", "recipe", "recipe.learning_rate", "recipe.batch_size", "recipe.epochs"),
    *("trainer", "trainer.workers", "trainer.devices", "data", "data.root", "data.name", "sizes", "sizes.cycle"),
]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("recipe.epochz", "recipe.epochs"),
        ("epochs", "recipe.epochs"),
        ("trainer.epochs", "recipe.epochs"),
        ("name", "name"),
        ("data.name", "data.name"),
        ("trainer.nam", "name"),
        ("lr", "recipe.learning_rate"),
        ("recipe.bs", "recipe.batch_size"),
        ("rate", "recipe.learning_rate"),
        ("size", "sizes"),
        ("worker", "trainer.workers"),
        ("gpus", None),
        ("x", None),
    ],
)
def test_the_key_that_was_probably_meant(key, meant):
    assert closest_key(key, KEYS) == meant
