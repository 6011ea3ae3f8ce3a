"""What README.md says can be done, can be done: its commands compose, its files exist, its code runs."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import make_image_folder
from sppnet.backbones import build_backbone
from sppnet.network import SPPNet, save_network
from test_configs import check, composed

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()


def commands():
    return re.findall(r"^(?:`)?((?:python|make) [^`#|\n]+)", README, re.MULTILINE)


def training_commands():
    return [shlex.split(command)[2:] for command in commands() if command.startswith("python scripts/train.py")]


def test_there_are_commands():
    assert len(training_commands()) >= 5
    assert {"make demo", "make test"} <= {command.strip() for command in commands()}


@pytest.mark.parametrize("arguments", training_commands(), ids=" ".join)
def test_a_training_command_composes_and_fits_the_code(arguments):
    overrides = [word for word in arguments if not word.startswith("-")]
    # A sweep's comma stands for several commands; the first choice of each is one of them.
    single = [re.sub(r"=([^\[\],]+),.*", r"=\1", word) for word in overrides]
    check(composed(*single))


def test_the_makefile_has_the_targets():
    for command in commands():
        if command.startswith("make"):
            target = command.split()[1]
            done = subprocess.run(["make", "-n", target], cwd=PROJECT, capture_output=True, text=True, check=False)
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
