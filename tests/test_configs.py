"""Every shipped config composes and fits the signatures it is given to; wrong ones stop with a line that helps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conftest import started_process
from sppnet.backbones import BACKBONES
from sppnet.classify.hardware import Hardware
from sppnet.classify.recipe import Machine, Recipe
from sppnet.classify.schedules import Sizes
from sppnet.commands import evaluate as evaluate_script
from sppnet.commands import train as train_script
from sppnet.commands.settings import bound, bound_choice, run_directory
from sppnet.data.sources import DATA_SOURCES
from sppnet.results.paper import PAPER, PAPER_EPOCHS, PAPER_SIZES, experiment_of
from sppnet.results.runs import Run
from sppnet.runtime.run_directory import RunDirectory

CONFIGS = Path(__file__).parent.parent / "configs"
GROUPS = ("backbone", "pooling", "sizes", "data", "recipe", "trainer", "experiment")
ROOT = "data.root=/some/where"


def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", list(overrides))
    OmegaConf.resolve(config)
    return config


def check(config):
    bound(config, train_script.settings)
    bound_choice(config.backbone, "architecture", BACKBONES, "backbone.")
    bound(config.pooling, train_script.pooling, "pooling.")
    bound(config.sizes, Sizes, "sizes.")
    bound_choice(config.data, "source", DATA_SOURCES, "data.")
    Recipe(**bound(config.recipe, Recipe, "recipe."))
    Machine(**bound(config.trainer, Machine, "trainer."))


def choices():
    return [(group, file.stem) for group in GROUPS for file in sorted((CONFIGS / group).glob("*.yaml"))]


def test_there_is_a_choice_in_every_group():
    assert (
        {group for group, _ in choices()}
        == set(GROUPS)
        == {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()} - {"views"}
    )


@pytest.mark.parametrize(("group", "choice"), choices())
def test_every_shipped_choice_fits_the_code(group, choice):
    needs_root = group == "experiment" or choice in {"folder", "imagenet", "caltech101", "prepared"}
    check(composed(f"{group}={choice}", *([ROOT] if needs_root else [])))


@pytest.mark.parametrize("file", sorted((CONFIGS / "views").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_protocol_fits_the_code(file):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("evaluate", ["run=x", f"views=[{file.stem}]"])
    bound(config, evaluate_script.settings)
    bound(config.hardware, Hardware, "hardware.")
    assert list(config.views) == [file.stem]
    for crop_side in (64, 224):
        protocols, shipped = evaluate_script.read_protocols(config, crop_side)
        assert set(protocols) == shipped == {file.stem}


@pytest.mark.parametrize(("architecture", "variant"), PAPER)
def test_the_experiments_train_the_networks_of_the_paper(architecture, variant):
    name = experiment_of(architecture, variant)
    config = composed(f"experiment={name}", ROOT)
    assert config.name == name
    run = Run(Path("."), OmegaConf.to_container(config), None)
    assert (run.architecture, run.variant, run.on_imagenet) == (architecture, variant, True)
    assert config.recipe.epochs == PAPER_EPOCHS[architecture]
    assert run.sizes[-2:] == PAPER_SIZES.get(variant, [224])
    text = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    assert f"experiment={name} data.root=PATH" in text
    for top1, top5 in PAPER[architecture, variant].values():
        assert top1 is None or f"{top1:.2f}" in text
        assert top5 is None or f"/{top5:.2f}" in text


def test_every_backbone_and_data_source_has_a_config():
    assert {choice for group, choice in choices() if group == "backbone"} == set(BACKBONES)
    assert {choice for group, choice in choices() if group == "data"} == set(DATA_SOURCES)


@pytest.mark.parametrize(("backbone", "epochs"), [("zf5", 70), ("convnet5", 90), ("overfeat5", 90), ("overfeat7", 90)])
def test_the_papers_recipe_takes_the_papers_epochs(backbone, epochs):
    assert composed(f"backbone={backbone}", "recipe=paper").recipe.epochs == epochs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+recipe.epochz=3"], r"recipe\.epochz: no such key; did you mean epochs\?"),
        (["+recpie.epochs=3"], r"recpie: no such key; did you mean recipe\?"),
        (["recipe.epochs=many"], r"recipe\.epochs: Value 'many' of type 'str' could not be converted to Integer"),
        (["recipe.epochs=0"], r"recipe\.epochs=0: must be at least 1"),
        (["recipe.learning_rate=-1"], r"recipe\.learning_rate=-1\.0: must be above 0"),
        (["recipe.momentum=1"], r"recipe\.momentum=1\.0: must be below 1"),
        (["recipe.plateau_patience=null"], r"recipe\.plateau_patience=None.*make the other null"),
        (["recipe=fast", "recipe.warmup_epochs=60"], r"recipe\.warmup_epochs=60.*below recipe\.epochs=60"),
        (["recipe=fast", "recipe.warmup_epochs=3", "recipe.epochs=3"], r"recipe\.warmup_epochs=3\.0.*recipe\.epochs=3"),
        (["recipe=fast", "recipe.epochs=some"], r"recipe\.epochs: Value 'some'"),
        (["recipe.input_mean=128"], r"recipe\.input_mean"),
        (["pooling.levels=63"], r"pooling\.levels"),
        (["pooling.levels=[6,three]"], r"pooling\.levels.*three"),
        (["sizes.cycle=[big]"], r"sizes\.cycle.*big"),
        (["+sizes.step=3"], r"sizes\.step: no such key"),
        (["backbone.architecture=vgg"], r"backbone\.architecture=vgg: must be one of zf5"),
        (["backbone.width=wide"], r"backbone\.width.*'wide'"),
        (["+backbone.kernel=3"], r"backbone\.kernel: no such key; allowed: width, normalization"),
        (["data.source=disk"], r"data\.source=disk: must be one of shapes"),
        (["data=folder"], r"data\.root: missing; give it as data\.root=VALUE"),
        (["trainer.workers=some"], r"trainer\.workers.*'some'"),
        (["seed=x"], r"seed: Value 'x'"),
        (["hidden=4.5"], r"hidden: Value '4.5'"),
    ],
)
def test_a_wrong_value_stops_with_its_key(overrides, message):
    with pytest.raises(ValueError, match=message):
        check(composed(*overrides))


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


def test_names_say_what_is_trained():
    names = {
        "sizes=random": "zf5-spp50-random-180-224-shapes",
        "sizes=alternate": "zf5-spp50-224-180-shapes",
        "pooling=none": "zf5-none-224-shapes",
        "backbone=timm": "resnet18-spp50-224-shapes",
        "pooling=spp30": "zf5-spp30-224-shapes",
        "experiment=demo": "demo",
    }
    for override, name in names.items():
        assert run_directory(composed(override)).path.name.startswith(f"{name}-seed0-")


def test_a_run_directory_of_another_network_is_refused(tmp_path):
    RunDirectory(tmp_path / "run", run_directory(composed()).config).claim()
    RunDirectory(tmp_path / "run", run_directory(composed()).config).claim()
    other = run_directory(composed("backbone.width=0.5")).config
    with pytest.raises(ValueError, match=r"backbone\.width is 1\.0 there and 0\.5 here"):
        RunDirectory(tmp_path / "run", other).claim()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_folder_with_other_things_is_no_run_directory(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "letter.txt").touch()
    with pytest.raises(ValueError, match=r"found letter\.txt, photos, expected a new folder or a run directory"):
        RunDirectory(tmp_path, run_directory(composed()).config).claim()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letter.txt", "photos"]
    with pytest.raises(ValueError, match=r"letter\.txt: found a file, expected a new folder"):
        RunDirectory(tmp_path / "letter.txt", run_directory(composed()).config).claim()


def test_a_kill_while_a_run_directory_is_made_leaves_nothing(tmp_path):
    stale = tmp_path / f"config.yaml.partial{2**22 + 1}"  # of a process that no longer runs
    stale.touch()
    RunDirectory(tmp_path, run_directory(composed()).config).claim()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_next_training_removes_the_temporary_files_of_a_killed_one(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    stale = [tmp_path / f"result.json.partial{2**22 + 1}", tmp_path / f"checkpoints/last.ckpt.partial{2**22 + 1}"]
    for path in stale:
        path.touch()
    with RunDirectory(tmp_path, {}).training():
        assert not any(path.exists() for path in stale)


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


def test_a_run_directory_is_for_one_process_at_a_time(tmp_path):
    code = """
import sys
from pathlib import Path
from sppnet.runtime.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1]), {}).training():
    print("holds it", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(CONFIGS.parent)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started_process(command, env=environment, **pipes) as holder:
        assert holder.stdout.readline() == "holds it\n"
        held = rf": process {holder.pid} on \S+, since \S+ \S+, trains here"
        with pytest.raises(ValueError, match=held), RunDirectory(tmp_path, {}).training():
            pass
        holder.kill()
        holder.wait()
    with RunDirectory(tmp_path, {}).training():  # the lock of a dead process is none
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()
    assert (tmp_path / "lock").read_text() == ""


VALUES = [
    "null",
    "true",
    "-1",
    "0",
    "1",
    "7",
    "1e309",
    "nan",
    "-0.5",
    "abc",
    "''",
    "[]",
    "[0]",
    "[6,3]",
    "[224]",
    "{a: 1}",
]
KEYS = sorted(
    f"{section}.{key}"
    for section in ("backbone", "pooling", "sizes", "data", "recipe", "trainer")
    for key in OmegaConf.to_container(composed()[section])
    if key != "width"  # wide networks take long to build
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=3))
def test_any_value_of_any_key_is_taken_or_refused_in_words(values):
    overrides = [f"{key}={value}" for key, value in values.items()]
    try:
        config = composed("backbone.width=0.05", *overrides)
        check(config)
        train_script.read_plan(config)
    except (ValueError, OmegaConfBaseException, HydraException) as error:
        words = str(error)
    else:
        words = "taken"
    assert words.strip()


def test_the_configuration_of_a_run_directory_runs_nothing(tmp_path):
    owned = tmp_path / "owned"
    for line in (f"!!python/object/apply:os.mkdir ['{owned}']", f"{{_target_: os.mkdir, path: {owned}}}"):
        (tmp_path / "config.yaml").write_text(f"seed: {line}\n")
        with pytest.raises(ValueError, match=r"config\.yaml"):
            RunDirectory(tmp_path, run_directory(composed()).config).claim()
        assert not owned.exists()
