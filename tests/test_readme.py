"""What README.md says can be done, can be done: its commands compose, its files exist, its code runs."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import make_image_folder, run_process
from sppnet.backbones import build_backbone
from sppnet.commands import benchmark, evaluate, prepare_data, tables
from sppnet.commands.settings import bound, bound_choice
from sppnet.commands.train import read_plan
from sppnet.data.sources import DATA_SOURCES
from sppnet.network import SPPNet, save_network
from test_configs import ROOT, check, composed

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()


def commands():
    return re.findall(r"^(?:`)?((?:python|make) [^`#|\n]+)", README, re.MULTILINE)


def commands_of(script):
    return [shlex.split(command)[2:] for command in commands() if command.startswith(f"python scripts/{script}.py")]


def one_of_the_sweep(word):
    """A comma or a function stands for several commands; the first choice of each is one of them."""
    key, _, value = word.partition("=")
    if value.startswith("glob("):
        return f"{key}={sorted((PROJECT / 'configs' / key).glob(value[5:-1] + '.yaml'))[0].stem}"
    if value.startswith("tag("):
        return f"{key}=0.01"
    depth, end = 0, len(value)
    for i, letter in enumerate(value):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            end = i
            break
    return f"{key}={value[:end]}"


def test_there_are_commands():
    assert len(commands_of("train")) >= 5
    assert len(commands_of("evaluate")) >= 4
    assert len(commands_of("tables")) >= 4
    assert {"make demo", "make test"} <= {command.strip() for command in commands()}


@pytest.mark.parametrize("arguments", commands_of("train"), ids=" ".join)
def test_a_training_command_composes_and_fits_the_code(arguments):
    # Launchers and sweepers are extras.
    overrides = [word for word in arguments if not word.startswith(("-", "hydra", "+hydra"))]
    check(composed(*(one_of_the_sweep(word) for word in overrides)))


@pytest.mark.parametrize("arguments", commands_of("evaluate"), ids=" ".join)
def test_an_evaluation_command_composes_and_fits_the_code(arguments):
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        config = compose("evaluate", [word for word in arguments if not word.startswith("-")] or ["run=x"])
    bound(config, evaluate.settings)
    protocols, _ = evaluate.read_protocols(config, 224)
    assert protocols


@pytest.mark.parametrize("arguments", commands_of("tables"), ids=" ".join)
def test_a_table_command_fits_the_code(arguments):
    what, *rest = arguments
    assert what in tables.CHOICES
    tables.settings(**bound(OmegaConf.from_dotlist(rest), tables.settings))


@pytest.mark.parametrize("arguments", commands_of("prepare_data"), ids=" ".join)
def test_a_preparation_command_composes_and_fits_the_code(arguments):
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        config = compose("prepare_data", [word for word in arguments if not word.startswith("-")] or [ROOT, "out=x"])
    bound(config, prepare_data.settings)
    assert bound_choice(config.data, "source", DATA_SOURCES, "data.")[0] == config.data.source


@pytest.mark.parametrize("arguments", commands_of("benchmark"), ids=" ".join)
def test_a_benchmark_command_composes_and_fits_the_code(arguments):
    overrides = [word for word in arguments if word not in benchmark.WORDS]
    with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        config = compose("benchmark", overrides)
    OmegaConf.resolve(config)
    assert read_plan(config).source == config.data.source


def test_the_makefile_has_the_targets():
    for command in commands():
        if command.startswith("make"):
            target = command.split()[1]
            done = run_process(["make", "-n", target], cwd=PROJECT)
            assert done.returncode == 0, done.stderr


def test_the_files_that_are_named_exist():
    for name in re.findall(r"`((?:sppnet|scripts|configs)/[\w/.]+)`", README):
        assert (PROJECT / name).exists(), name
    for name in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (PROJECT / name).exists(), name


def test_the_groups_and_choices_that_are_named_are_those_there_are():
    for group, text in re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE):
        shipped = {file.stem for file in (PROJECT / "configs" / group).glob("*.yaml")}
        assert shipped <= set(re.findall(r"`(\w+)`", text)), group


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    images = make_image_folder(tmp_path / "images", train=1, val=1)
    shutil.copy(images / "train" / "cat" / "0.jpg", "photo.jpg")
    run = Path(re.findall(r'load_network\("([^"]+)"\)', code[1])[0])
    (run / "checkpoints").mkdir(parents=True)
    network = SPPNet(build_backbone("zf5", width=0.05), num_classes=2, hidden=8, classes=("cat", "dog"))
    save_network(network, run / "checkpoints" / "last.ckpt")
    exec(code[1], {})
    assert capsys.readouterr().out.strip() in ("cat", "dog")
