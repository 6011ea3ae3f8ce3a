"""Every shipped config composes and fits the signatures it is given to; wrong ones stop with a line that helps."""

import copy
import inspect
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppnet.backbones import BACKBONES
from sppnet.classify.loggers import LOGGERS
from sppnet.classify.machine import Machine
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes
from sppnet.commands import detect as detect_script
from sppnet.commands import evaluate as evaluate_script
from sppnet.commands import train as train_script
from sppnet.commands import transfer as transfer_script
from sppnet.commands.configs import choices as choices_of
from sppnet.commands.configs import groups_of, suits
from sppnet.commands.evaluated_runs import read_protocols
from sppnet.commands.recipes import with_recipe
from sppnet.commands.settings import bound, bound_choice, bound_source, resolved
from sppnet.data.sources import DATA_SOURCES, DETECTION_SOURCES, MULTI_LABEL_SOURCES
from sppnet.results.paper import PAPER, PAPER_EPOCHS, PAPER_SIZES, experiment_of
from sppnet.results.runs import Run
from sppnet.runtime.hardware import Hardware
from sppnet.transfer.probe import Svm

CONFIGS = Path(__file__).parent.parent / "configs"
GROUPS = ("backbone", "pooling", "sizes", "data", "recipe", "trainer", "logger", "experiment", "proposals")
ROOT = "data.root=/some/where"
DETECTION_PATHS = {"voc": ["root"], "coco": ["root"], "scenes": []}
WITHOUT_ROOT = {"shapes", "hub", "scenes"}  # data whose configs need no root
TABLES = {"table", "multilabel"}  # data in a table


def place_of(source):
    """Returns the overrides that a data source needs."""
    return [] if source in WITHOUT_ROOT else ["data.file=photos.csv"] if source in TABLES else [ROOT]


def composed(*overrides, resolve=True):
    """Composes the configuration of a training."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", list(overrides))
    if resolve:
        OmegaConf.resolve(config)
    return config


def check(config):
    bound(config, train_script.settings)
    bound_choice(config.backbone, "architecture", BACKBONES, "backbone.")
    bound(config.pooling, train_script.pooling, "pooling.")
    bound(config.sizes, Sizes, "sizes.")
    bound_choice(config.data, "source", DATA_SOURCES | MULTI_LABEL_SOURCES | DETECTION_SOURCES, "data.")
    Recipe(**bound(with_recipe(config).recipe, Recipe, "recipe."))
    Machine(**bound(config.trainer, Machine, "trainer."))
    bound_choice(config.logger, "kind", LOGGERS, "logger.")


def choices():
    return [(group, file.stem) for group in GROUPS for file in sorted((CONFIGS / group).glob("*.yaml"))]


def test_there_is_a_choice_in_every_group():
    assert (
        {group for group, _ in choices()}
        == set(GROUPS)
        == {folder.name for folder in CONFIGS.iterdir() if folder.is_dir()} - {"views"}
    )


COMMAND_LINE = re.compile(r"^# Command: python scripts/(train|transfer|detect)\.py experiment=(\w+)( |$)", re.MULTILINE)
EXPERIMENTS = {file.stem: file.read_text() for file in sorted((CONFIGS / "experiment").glob("*.yaml"))}
OF_TRANSFER = [name for name, text in EXPERIMENTS.items() if "scripts/transfer.py" in text]
OF_DETECTION = [name for name, text in EXPERIMENTS.items() if "scripts/detect.py" in text]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_header_of_an_experiment_names_its_command(name):
    found = COMMAND_LINE.search(EXPERIMENTS[name])
    assert found, "needs a line '# Command: python scripts/train.py experiment=NAME ...', or transfer.py"
    command, experiment, _ = found.groups()
    assert experiment == name
    assert suits(command, "experiment", name)
    assert not suits({"train": "transfer", "transfer": "detect", "detect": "train"}[command], "experiment", name)
    assert suits("benchmark", "experiment", name) == (command == "train")


@pytest.mark.parametrize("name", OF_DETECTION)
def test_every_experiment_of_detection_fits_the_code(name):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        detect_script.check(resolved(compose("detect", [f"experiment={name}", "network=run", ROOT])))


@pytest.mark.parametrize("name", OF_TRANSFER)
def test_every_experiment_of_transfer_fits_the_code(name, tmp_path):
    (tmp_path / "run").mkdir()
    check_transfer(f"experiment={name}", f"run={tmp_path / 'run'}", ROOT)


def check_transfer(*overrides):
    """Composes and checks a configuration of transfer, and returns it."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("transfer", list(overrides))
    transfer_script.check(resolved(config))
    return config


@pytest.mark.parametrize("source", sorted(DATA_SOURCES | MULTI_LABEL_SOURCES))
def test_transfer_takes_every_data_source(source):
    check_transfer(f"data={source}", "backbone=zf5", *place_of(source))


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("pooling", [[], ["pooling=spp30"], ["pooling=none"]])
def test_transfer_takes_every_backbone_and_pyramid(backbone, pooling):
    check_transfer("data=shapes", f"backbone={backbone}", *pooling)


def test_every_key_of_transfer_is_one_that_its_code_takes():
    config = check_transfer("data=shapes", "backbone=zf5")
    assert set(config.svm) == set(inspect.signature(Svm).parameters)
    assert set(config.hardware) == set(inspect.signature(Hardware).parameters)
    assert set(config) - {"hydra"} <= set(inspect.signature(transfer_script.settings).parameters)


def training_choices():
    of_training = [(group, choice) for group, choice in choices() if group != "proposals"]
    return [(group, choice) for group, choice in of_training if choice not in (*OF_TRANSFER, *OF_DETECTION)]


@pytest.mark.parametrize("choice", [choice for group, choice in choices() if group == "proposals"])
@pytest.mark.parametrize("data", sorted(DETECTION_SOURCES))
def test_detection_takes_every_proposer_and_data_source(choice, data, tmp_path):
    windows = tmp_path / "windows.jsonl"
    windows.write_text('{"image": "a.jpg", "boxes": []}\n')
    overrides = [f"data={data}", f"proposals={choice}", "network=run"]
    overrides += [f"proposals.path={windows}"] if choice == "file" else []
    overrides += [f"data.{key}=/some/where" for key in DETECTION_PATHS[data]]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        detect_script.check(resolved(compose("detect", overrides)))


@pytest.mark.parametrize(("group", "choice"), training_choices())
def test_every_shipped_choice_fits_the_code(group, choice):
    places = {"experiment": [ROOT], "data": place_of(choice)}
    check(composed(f"{group}={choice}", *places.get(group, [])))


@pytest.mark.parametrize("file", sorted((CONFIGS / "views").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_protocol_fits_the_code(file):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("evaluate", ["run=x", f"views=[{file.stem}]"])
    bound(config, evaluate_script.settings)
    bound(config.hardware, Hardware, "hardware.")
    assert list(config.views) == [file.stem]
    for crop_side in (64, 224):
        protocols, shipped = read_protocols(config, crop_side)
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
    sources = DATA_SOURCES | MULTI_LABEL_SOURCES | DETECTION_SOURCES
    assert {choice for group, choice in choices() if group == "data"} == set(sources)
    assert len(sources) == len(DATA_SOURCES) + len(MULTI_LABEL_SOURCES) + len(DETECTION_SOURCES)


@pytest.mark.parametrize("source", DETECTION_SOURCES)
def test_a_config_of_detection_data_has_every_key_of_its_source(source):
    config = composed(f"data={source}", *place_of(source))
    _, options = bound_choice(config.data, "source", DETECTION_SOURCES, "data.")
    signature = inspect.signature(DETECTION_SOURCES[source])
    assert set(options) == set(signature.parameters)
    for key, parameter in signature.parameters.items():
        assert parameter.default in (inspect.Parameter.empty, options[key])


@pytest.mark.parametrize("source", DETECTION_SOURCES)
def test_data_for_detection_is_refused_by_commands_for_labels(source):
    config = composed(f"data={source}", *place_of(source))
    with pytest.raises(ValueError, match=rf"^data\.source={source}: must be one of shapes, folder"):
        bound_source(config.data)


def test_only_data_of_one_label_per_image_is_bound_to_a_command_that_needs_it():
    for source in DATA_SOURCES:
        assert bound_source(composed(f"data={source}", *place_of(source)).data)
    for source in MULTI_LABEL_SOURCES:
        with pytest.raises(ValueError, match=rf"^data\.source={source}: has several labels per image.*transfer"):
            bound_source(composed(f"data={source}", *place_of(source)).data)


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("train", "backbone pooling sizes data recipe trainer logger experiment"),
        ("benchmark", "backbone pooling sizes data recipe trainer logger experiment views proposals"),
        ("evaluate", "views data"),
        ("prepare_data", "data"),
        ("transfer", "data backbone pooling experiment"),
        ("detect", "data proposals experiment"),
    ],
)
def test_help_lists_the_groups_of_the_command_and_no_others(command, groups):
    assert list(groups_of(command)) == groups.split()
    for group, listed in groups_of(command).items():
        assert listed == [choice for choice in choices_of(group) if suits(command, group, choice)]
        assert group in ("experiment", "data") or listed == sorted(
            file.stem for file in (CONFIGS / group).glob("*.yaml")
        )


@pytest.mark.parametrize(("backbone", "epochs"), [("zf5", 70), ("convnet5", 90), ("overfeat5", 90), ("overfeat7", 90)])
def test_the_papers_recipe_takes_the_papers_epochs(backbone, epochs):
    assert composed(f"backbone={backbone}", "recipe=paper").recipe.epochs == epochs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+recipe.epochz=3"], r"recipe\.epochz: no such key; did you mean epochs\?"),
        (["+recpie.epochs=3"], r"recpie: no such key; did you mean recipe\?"),
        (["recipe.epochs=many"], r"recipe\.epochs=many: must be a whole number"),
        (["recipe.epochs=0"], r"recipe\.epochs=0: must be at least 1"),
        (["recipe.learning_rate=-1"], r"recipe\.learning_rate=-1\.0: must be above 0"),
        (["recipe.momentum=1"], r"recipe\.momentum=1\.0: must be below 1"),
        (["recipe=paper", "recipe.plateau_patience=null"], r"recipe\.plateau_patience=None.*make the other null"),
        (["recipe=fast", "recipe.warmup_epochs=60"], r"recipe\.warmup_epochs=60.*below recipe\.epochs=60"),
        (["recipe=fast", "recipe.warmup_epochs=3", "recipe.epochs=3"], r"recipe\.warmup_epochs=3\.0.*recipe\.epochs=3"),
        (["recipe=fast", "recipe.epochs=some"], r"recipe\.epochs=some: must be a whole number"),
        (["recipe.input_mean=128"], r"recipe\.input_mean"),
        (["pooling.levels=63"], r"pooling\.levels"),
        (["pooling.levels=[6,three]"], r"pooling\.levels.*three"),
        (["sizes.cycle=[big]"], r"sizes\.cycle.*big"),
        (["+sizes.step=3"], r"sizes\.step: no such key"),
        (["backbone.architecture=vgg"], r"backbone\.architecture=vgg: must be one of zf5"),
        (["backbone.width=wide"], r"backbone\.width=wide: must be a number"),
        (["+backbone.kernel=3"], r"backbone\.kernel: no such key; allowed: width, normalization"),
        (["data.source=disk"], r"data\.source=disk: must be one of shapes"),
        (["data=folder"], r"data\.root: missing; give it as data\.root=VALUE"),
        (["trainer.workers=some"], r"trainer\.workers=some: must be a whole number"),
        (["seed=x"], r"seed=x: must be a whole number"),
        (["hidden=4.5"], r"hidden=4\.5: must be a whole number"),
    ],
)
def test_a_wrong_value_stops_with_its_key(overrides, message):
    with pytest.raises(ValueError, match=message):
        check(composed(*overrides))


def test_a_folder_may_have_a_number_as_its_name():
    train_script.check(composed("data=folder", "data.root=2012"))


VALUES = [
    *("null", "true", "-1", "0", "1", "7", "1e309", "nan", "-0.5", "abc"),
    *("''", "[]", "[0]", "[6,3]", "[224]", "{a: 1}"),
]
NARROW = composed("backbone.width=0.05", resolve=False)
KEYS = sorted(
    f"{section}.{key}"
    for section in ("backbone", "pooling", "sizes", "data", "recipe", "trainer")
    for key in NARROW[section]
    if key != "width"  # wide networks take long to build
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=3))
def test_any_value_of_any_key_is_taken_or_refused_in_words(values):
    """Hydra parses the values; composing everything again for each example would take most of the time."""
    config = copy.deepcopy(NARROW)
    try:
        for key, value in values.items():
            OmegaConf.update(config, key, OverridesParser.create().parse_override(f"{key}={value}").value())
        OmegaConf.resolve(config)
        train_script.check(config)
    except (ValueError, OmegaConfBaseException, HydraException) as error:
        words = str(error)
    else:
        words = "taken"
    assert words.strip()
