"""Imports run one way, and heavy libraries are loaded only by the modules that need them."""

import ast
import os
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

from conftest import run_process
from sppnet.commands.startup import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE, SCRIPTS = ROOT / "sppnet", ROOT / "scripts"

# Every module and folder of the package imports only from rows above its own. A new one needs its place here.
ORDER = (
    {"geometry", "metrics", "runtime"},
    {"pyramid", "normalization", "timm_backbone"},
    {"backbones"},
    {"initialization"},
    {"network", "data"},
    {"windows", "results", "lightning_checkpoints", "lightning_processes"},
    {"classify", "transfer", "detect", "use"},
    {"benchmark"},
    {"commands"},
)
ROW = {part: row for row, parts in enumerate(ORDER) for part in parts}


def python_files(folder):
    return sorted(folder.rglob("*.py"))


def imports(file):
    """Returns dotted names of all modules that a file imports, inside functions and type checks too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import in line {node.lineno}"
            # In `from sppnet import network` the module is the name, in `from sppnet.network import SPPNet` it is not.
            names |= {f"{node.module}.{a.name}" for a in node.names} if node.module == "sppnet" else {node.module}
    return names


def package_imports(file):
    """Returns the modules of the package that a file imports."""
    return {name for name in imports(file) if name.split(".")[0] == "sppnet" and name != "sppnet"}


def part(file):
    """Returns the module or folder directly in the package to which a file belongs."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def loaded_by(statement):
    """Returns the top-level names of all modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(run_process([sys.executable, "-c", code], cwd=ROOT).stdout.split())


def importers(library):
    """Returns all files of the package and the scripts that import a library."""
    files = python_files(PACKAGE) + python_files(SCRIPTS)
    return [file for file in files if library in {name.split(".")[0] for name in imports(file)}]


def test_every_module_has_its_row():
    assert {part(file) for file in python_files(PACKAGE)} - {"__init__"} <= set(ROW)


@pytest.mark.parametrize("file", python_files(PACKAGE), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    if file == PACKAGE / "__init__.py":
        assert not package_imports(file)
        return
    for name in package_imports(file):
        imported = name.split(".")[1]
        assert imported == part(file) or ROW[imported] < ROW[part(file)], f"{part(file)} must not import {name}"


def test_no_import_is_circular():
    graph = {}
    for file in python_files(PACKAGE):
        name = ".".join(("sppnet", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = package_imports(file) - {name}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_package_imports_no_script():
    assert not importers("scripts")


@pytest.mark.parametrize("script", python_files(SCRIPTS), ids=lambda file: file.stem)
def test_scripts_only_start_a_command(script):
    if script.stem not in ("stress", "clusters", "one_node_slurm"):
        assert package_imports(script) == {"sppnet.commands.startup"}
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 12


@pytest.mark.parametrize("library", ["pytorch_lightning", "lightning", "lightning_fabric"])
def test_lightning_is_imported_where_networks_are_trained_only(library):
    found = {file.relative_to(PACKAGE) for file in importers(library)}
    training = {Path("lightning_checkpoints.py"), Path("lightning_processes.py"), Path("detect/finetuning.py")}
    assert {file for file in found if file.parts[0] != "classify"} <= training


@pytest.mark.parametrize("library", ["hydra", "omegaconf"])
def test_hydra_is_imported_in_commands_only(library):
    assert all(PACKAGE / "commands" in file.parents for file in importers(library))


@pytest.mark.parametrize("library", ["sklearn", "joblib"])
def test_scikit_learn_is_imported_in_transfer_detection_and_benchmarks_only(library):
    assert {file.relative_to(PACKAGE).parts[0] for file in importers(library)} <= {"transfer", "detect", "benchmark"}


def test_transfer_loads_no_lightning():
    loaded = loaded_by("import sppnet.commands.transfer, sppnet.commands.frozen_networks, sppnet.transfer.evaluator")
    assert {"torch", "sklearn", "hydra"} <= loaded
    assert not {"pytorch_lightning", "lightning", "lightning_fabric"} & loaded


def test_help_of_every_command_loads_nothing_slow():
    modules = ", ".join(f"sppnet.commands.{command}" for command in COMMANDS)
    assert not {"torch", "sklearn", "scipy", "PIL", "matplotlib"} & loaded_by(f"import {modules}")


def test_the_package_itself_loads_nothing_heavy():
    heavy = {
        "torch",
        "torchvision",
        "numpy",
        "pytorch_lightning",
        "hydra",
        "omegaconf",
        "timm",
        "torchcodec",
        "datasets",
    }
    assert not heavy & loaded_by("import sppnet")


@pytest.mark.parametrize("module", ["recipe", "schedules", "views"])
def test_settings_are_checked_without_loading_torch(module):
    assert not {"torch", "torchvision", "timm"} & loaded_by(f"import sppnet.classify.{module}")


def test_the_network_loads_no_training_configuration_or_data_libraries():
    heavy = {"pytorch_lightning", "hydra", "omegaconf", "timm", "datasets", "torchcodec", "matplotlib", "tensorboard"}
    loaded = loaded_by("import sppnet.network")
    assert "torch" in loaded
    assert not heavy & loaded


@pytest.mark.parametrize(
    ("given", "policy", "turns"),
    [
        ({}, "PASSIVE", "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE", "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "PASSIVE", "0"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", "30000000000"),
    ],
)
def test_commands_set_how_threads_wait_before_torch_is_loaded_unless_the_user_did(given, policy, turns):
    """As libgomp reports it while it is loaded; all of torch, which brings it, would take seconds."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"OMP_DISPLAY_ENV": "verbose"} | given
    code = (
        "import sys; from sppnet.commands import settings, startup; startup.prepare_process(); "
        "assert 'torch' not in sys.modules; import ctypes; ctypes.CDLL(sys.argv[1])"
    )
    (library,) = Path(torch.__file__).parent.glob("lib/libgomp*")
    errors = run_process([sys.executable, "-c", code, library], env=environment, cwd=ROOT).stderr
    assert re.findall(r"(?:OMP_WAIT_POLICY|GOMP_SPINCOUNT)\s*=\s*'(\w+)'", errors) == [policy, turns]
