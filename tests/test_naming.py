"""Names of run directories: a function of what is trained, and never a path out of their folder."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from sppnet.commands.naming import run_directory
from test_configs import CONFIGS, ROOT, check, composed


def test_the_run_directory_is_a_function_of_what_changes_the_outcome():
    def directory(*overrides):
        return run_directory(composed(*overrides)).path

    base = directory("data=folder", "data.root=/disk1/flowers")
    assert base == directory("data=folder", "data.root=/disk2/flowers", "trainer=cpu", "trainer.workers=3")
    for other in (
        "data.root=/disk1/birds",
        "seed=1",
        "recipe.epochs=3",
        "pooling=none",
        "hidden=64",
        "sizes=alternate",
    ):
        assert directory("data=folder", "data.root=/disk1/flowers", other) != base
    assert base.parent == Path("runs")
    assert base.name.startswith("zf5-spp50-224-folder-seed0-")
    assert directory("run=/tmp/mine") == Path("/tmp/mine")


def test_the_warm_up_shortens_itself_and_long_runs_keep_their_directories():
    short = composed("recipe=fast", "recipe.epochs=3")
    check(short)
    assert short.recipe.warmup_epochs == 0.6
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        typed = compose("train", ["recipe=fast", "recipe.warmup_epochs=3"])
    for run in ("recipe=fast", "experiment=demo", "experiment=caltech101_zf5_alternate"):
        config = composed(run, ROOT if "caltech" in run else "seed=0")
        outcome = run_directory(config).config
        assert json.dumps(outcome["recipe"]["warmup_epochs"]) == json.dumps(typed.recipe.warmup_epochs) == "3"
    assert run_directory(composed("experiment=demo")).path.name == "demo-seed0-d015733d"


def test_settings_that_are_off_leave_the_names_of_runs_from_before_they_existed():
    neutral = {"sizes.every": "batch", "sizes.multiple": "4", "recipe.mixup": "0.2", "recipe.crop_area": "[0.2,1]"}
    neutral |= {"recipe.mirror": "false", "backbone.aligned": "true"}
    for key, value in neutral.items():
        run = run_directory(composed("experiment=demo", f"{key}={value}"))
        assert run.path.name != "demo-seed0-d015733d"
        assert key.partition(".")[2] in run.config[key.partition(".")[0]]
    assert {*run_directory(composed("experiment=demo")).config["sizes"]} == {"cycle"}


def test_names_say_what_is_trained():
    names = {
        "sizes=random": "zf5-spp50-random-180-224-shapes",
        "sizes=alternate": "zf5-spp50-224-180-shapes",
        "sizes.cycle=[64,48] sizes.every=batch": "zf5-spp50-64-48-per-batch-shapes",
        "sizes=random sizes.uniform=[64,96] sizes.multiple=32": "zf5-spp50-random-64-96-multiples-of-32-shapes",
        "pooling=none": "zf5-none-224-shapes",
        "backbone=timm": "resnet18-spp50-224-shapes",
        "pooling=spp30": "zf5-spp30-224-shapes",
        "experiment=demo": "demo",
    }
    for overrides, name in names.items():
        assert run_directory(composed(*overrides.split())).path.name.startswith(f"{name}-seed0-")


def test_classes_are_part_of_the_name_whatever_their_order_and_null_is_not():
    def name(*overrides):
        return run_directory(composed("experiment=demo", *overrides)).path.name

    assert name("data.classes=null") == "demo-seed0-d015733d"
    assert name("data.classes=[dots_row,dots_column]") == name("data.classes=[dots_column,dots_row]")
    different = [[], ["data.classes=[dots_row]"], ["data.classes=[dots_row,dots_column]"]]
    assert len({name(*overrides) for overrides in different}) == 3


@pytest.mark.parametrize("name", ["../x", "a/b", "/tmp/x", "..\\x", "a b", "a\nb", "$HOME"])
def test_the_name_of_a_run_cannot_lead_out_of_its_folder(name):
    config = composed()
    config.name = name
    with pytest.raises(ValueError, match="may hold letters, digits, dots, dashes and underscores only"):
        run_directory(config)


def test_the_name_of_a_model_cannot_lead_out_of_its_folder():
    directory = run_directory(composed("backbone=timm", "backbone.name='hf_hub:../../x'")).path
    assert directory.parent == Path("runs")
    assert directory.name.startswith("hf_hub-..-..-x-spp50-")
