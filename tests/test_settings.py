"""Configurations are resolved to plain values."""

from pathlib import Path

from omegaconf import OmegaConf

from sppnet.commands.settings import resolved


def test_a_tilde_is_the_home_folder_wherever_the_value_comes_from():
    config = OmegaConf.create({"root": "~/images", "run": "${root}", "exclude": ["~/a", "a~", "~"], "seed": 3})
    home = str(Path.home())
    assert resolved(config) == {
        "root": f"{home}/images",
        "run": f"{home}/images",
        "exclude": [f"{home}/a", "a~", home],
        "seed": 3,
    }
