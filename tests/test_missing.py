"""The commands that tables show for missing trainings and tests: a shell and Hydra read them as intended."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from made_runs import make_run
from sppnet.commands.configs import CONFIGS
from sppnet.commands.evaluated_runs import find_runs
from sppnet.commands.naming import run_directory
from sppnet.results.runs import read_runs
from sppnet.results.tables import table_page
from sppnet.runtime.overrides import hydra_value


def composed(name, words):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(name, words)
    OmegaConf.resolve(config)
    return config


def start_run(folder, *words):
    """Makes a run directory as train.py does, without training."""
    run = run_directory(composed("train", [f"runs={folder}", *words]))
    run.claim()
    return run.path


def commands(page):
    """Returns the words of every command of a page, as a shell splits them, from the command's name on.

    Inside a checkout a page shows `python scripts/train.py ...`, elsewhere `sppnet train ...`.
    """
    shown = re.findall(r"`(?:python scripts/(\w+)\.py|sppnet (\w+)) ([^`]*)`", page.markdown())
    return [[script or command, *shlex.split(words)] for script, command, words in shown]


STRANGE = 'it\'s $5, a="b" [x] {y} \\ & more'
SETTINGS = [
    ["experiment=demo"],
    ["experiment=demo", "data.classes=[dots_row,'null','a b,c']"],
    ["experiment=caltech101_zf5_single", "data.root=data"],
    ["recipe=paper", "data=folder", f"data.root='/a b/{STRANGE}'".replace("it's", "its")],
    ["backbone=timm", "backbone.name=resnet18", "recipe=fast", "data=hub", "data.name=parquet",
     "data.data_files={train: 'x*.parquet'}", "sizes=random", "hidden=64"],
    ["experiment=table2_overfeat7_single", "data.root=/imagenet", "recipe.epochs=30"],
    ["recipe=small", "data=folder", "data.root=photos", "sizes.every=batch", "sizes.cycle=[96,64]", "recipe.mixup=0.2"],
    ["recipe=finetune", "backbone=timm", "backbone.name=resnet18", "backbone.weights=w.pth", "data=table",
     "data.file=photos.csv", "recipe.optimizer_options={betas:[0.9,0.95]}"],
]  # fmt: skip


@settings(deadline=None)
@given(st.text(alphabet="ab1 .$={}[],:'\"\\~/é", max_size=8))
@example("${oc.env:HOME}")
@example("null")
@example("1e3")
@example('\\"')
@example("\\${")
@example("ends in \\")
def test_hydra_reads_every_value_back(text):
    for value in (text, [text, None, 0.5], {"key": text}):
        override = OverridesParser.create().parse_override(f"key={hydra_value(value)}")
        assert OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True) == {"key": value}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda words: words[0])
def test_the_command_for_an_unfinished_run_is_that_run(tmp_path, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    run = start_run("runs", *setting, "seed=3")
    command, *words = commands(table_page("table2", read_runs(["runs"])))[0]
    assert command == "train"
    again = run_directory(composed("train", words))
    assert again.path == run
    again.claim()  # refuses another setting
    assert again.config["seed"] == 3


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda words: words[0])
def test_commands_for_missing_networks_differ_in_pyramid_and_sizes_only(tmp_path, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        start_run("runs", *setting, f"seed={seed}")
    found = read_runs(["runs"])
    trainings = [words for words in commands(table_page("table2", found)) if "-m" in words]
    variants = []
    for words in trainings:
        assert words[-1] == "seed=0,1"
        new = start_run("new", *words[2:-1], "seed=0")
        (run,) = [run for run in read_runs(["new"]) if run.path == new]
        assert run.setting("pooling", "sizes") == found[0].setting("pooling", "sizes")
        assert run.config["data"] == found[0].config["data"]  # the root, too
        variants.append(run.variant)
    assert {*variants, found[0].variant} >= {"none", "single", "alternate"}
    assert len(set(variants)) == len(variants)


def test_missing_networks_get_the_name_and_the_sizes_of_their_siblings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_run("runs", "experiment=caltech101_zf5_alternate", "data.root=data", "sizes.cycle=[112,96]")
    trainings = commands(table_page("table2", read_runs(["runs"])))[1:]
    assert len(trainings) == 2
    for words in trainings:
        name, variant = re.fullmatch(r"name=(caltech101_zf5_(\w+))", words[1]).groups()
        assert start_run("new", *words[1:]).name.startswith(f"{name}-seed0-")
        (sizes,) = [word for word in words if word.startswith("sizes.cycle")]
        assert (variant, sizes) in {("none", "sizes.cycle=[112]"), ("single", "sizes.cycle=[112]")}


def test_commands_for_missing_tests_name_the_runs(tmp_path):
    folder = tmp_path / STRANGE
    made = [make_run(folder, "single", seed, wrong={"center": 3}) for seed in (0, 1)]
    one, two = commands(table_page("table3", read_runs([str(tmp_path / "*")])))[:2]
    assert two[0] == "train"
    assert one[0] == "evaluate"
    config = composed("evaluate", one[1:])
    assert find_runs(config.run) == [Path(path) for path in made]
    assert list(config.views) == ["full"]
