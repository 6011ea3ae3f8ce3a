"""The built wheel, installed elsewhere: the commands run from any folder, with the configurations in the wheel."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from conftest import make_image_folder, run_process

PROJECT = Path(__file__).parents[1]
SMALL = [
    *("data=folder", "data.root=images", "recipe=fast", "trainer=cpu", "trainer.precision=32-true"),
    *("backbone.width=0.05", "hidden=16", "sizes.cycle=[48,40]", "recipe.batch_size=4"),
]


@pytest.fixture(scope="module")
def sppnet(tmp_path_factory):
    """Returns a function that runs `sppnet WORDS` of an installed wheel, in a folder away from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source, installed, place = folder / "source", folder / "installed", folder / "place"
    place.mkdir()
    built = run_process([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", source], cwd=PROJECT)
    assert built.returncode == 0, built.stderr
    (wheel,) = source.iterdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", installed, wheel]
    done = run_process(pip)
    assert done.returncode == 0, done.stderr

    def run(*words):
        environment = os.environ | {"PYTHONPATH": str(installed)}
        return run_process([sys.executable, installed / "bin" / "sppnet", *words], cwd=place, env=environment)

    run.place, run.installed = place, installed
    return run


@pytest.mark.slow
def test_a_wheel_trains_on_two_devices_and_tests_what_it_trained(sppnet):
    """Lightning starts the second process by the name of the command's file."""
    make_image_folder(sppnet.place / "images", train=8, val=3)
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.workers=0"]
    done = sppnet("train", *SMALL, *two, "recipe.epochs=2", "run=runs/two")
    assert done.returncode == 0, done.stderr
    assert "top-1 error" in done.stdout
    (config,) = (sppnet.place / "runs").rglob("config.yaml")
    assert yaml.safe_load(config.read_text())["backbone"]["width"] == 0.05

    tested = sppnet("evaluate", "run=runs/two", "views=[full]", "hardware.accelerator=cpu", "hardware.workers=0")
    assert tested.returncode == 0, tested.stderr
    assert "| full " in tested.stdout


@pytest.mark.slow
def test_the_configurations_are_those_of_the_wheel_and_of_the_user(sppnet):
    shown = sppnet("train", "experiment=table2_zf5_alternate", "data.root=images", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["sizes"]["cycle"] == [224, 180]

    (sppnet.place / "mine" / "experiment").mkdir(parents=True)
    (sppnet.place / "mine" / "experiment" / "tiny.yaml").write_text("# @package _global_\nhidden: 7\nname: tiny\n")
    shown = sppnet("train", "--config-dir", "mine", "experiment=tiny", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["hidden"] == 7


@pytest.mark.slow
def test_the_first_word_is_a_command(sppnet):
    assert "\n  prepare_data " in sppnet("--help").stdout
    done = sppnet("trian")
    assert done.returncode == 2
    assert done.stderr == (
        "error: trian: must be one of train, evaluate, transfer, detect, predict, explain, export, publish, "
        "tables, report, prepare_data, benchmark; did you mean train?\n"
    )
    assert (sppnet.installed / "sppnet" / "py.typed").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "tables"])
def test_help_shows_commands_that_can_be_typed_there(sppnet, command):
    shown = sppnet(command, "--help").stdout
    assert f"sppnet {command} " in shown
    assert "scripts/" not in shown
