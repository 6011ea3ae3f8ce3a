"""The command line around a job: which checkout runs, what Ctrl-C does, what --help lists, hints, an absent Hub."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sppnet.commands.errors import closest_key, configuration_errors, one_line, one_line_errors
from sppnet.commands.settings import groups_of, resolved

PROJECT = Path(__file__).parents[1]
SECONDS = 120  # a limit for what takes a few, on a machine that does other things as well


def python(*arguments, cwd, **environment):
    """Runs the interpreter of the tests in the folder `cwd`, away from a terminal."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
    )


def opened_by_reader(fifo, process):
    """The writing end of a FIFO, once the process reads it."""
    for _ in range(SECONDS * 20):
        with suppress(OSError):  # nobody reads it yet
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise TimeoutError(f"{process.args} does not read {fifo}")


@pytest.fixture
def interrupted(tmp_path):
    """Starts a script, waits until it reads the given FIFO, sends SIGINT and returns (exit code, stderr)."""
    processes = []

    def interrupt(fifo, *arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        end = opened_by_reader(fifo, process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=SECONDS)[1]
        os.close(end)
        return process.returncode, said

    yield interrupt
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("script", ["train", "evaluate", "prepare_data", "benchmark", "tables"])
def test_ctrl_c_during_imports_is_one_line(script, interrupted, tmp_path):
    """A package of this name stands in for the one that takes long to import."""
    (tmp_path / "slow" / "hydra").mkdir(parents=True)
    fifo = tmp_path / "slow" / "hydra" / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "slow" / "hydra" / "__init__.py").write_text("open(__path__[0] + '/fifo').read()")
    code, said = interrupted(fifo, PROJECT / "scripts" / f"{script}.py", PYTHONPATH=str(tmp_path / "slow"))
    assert (code, said) == (130, "interrupted; nothing was started\n")


def test_ctrl_c_while_hydra_works_is_one_line(interrupted, tmp_path):
    """Hydra imports the plugins that it finds before it composes the configuration."""
    (tmp_path / "slow" / "hydra_plugins").mkdir(parents=True)
    fifo = tmp_path / "slow" / "hydra_plugins" / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "slow" / "hydra_plugins" / "plugin.py").write_text(f"open({str(fifo)!r}).read()")
    code, said = interrupted(fifo, PROJECT / "scripts" / "train.py", PYTHONPATH=str(tmp_path / "slow"))
    assert (code, said) == (130, "interrupted; nothing was started\n")


@pytest.fixture(scope="module")
def second_clone(tmp_path_factory):
    """A copy of this checkout in which sppnet says that it is imported."""
    clone = tmp_path_factory.mktemp("clones") / "second"
    for folder in ("configs", "scripts", "sppnet"):
        shutil.copytree(PROJECT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (clone / "sppnet" / "__init__.py").open("a") as file:
        file.write("print(f'sppnet is imported from {__file__}')\n")
    return clone


def test_the_checkout_beside_the_script_runs_and_not_the_installed_one(second_clone, tmp_path):
    done = python(second_clone / "scripts" / "tables.py", "table2", cwd=tmp_path, PYTHONPATH=str(PROJECT))
    assert done.stdout == f"sppnet is imported from {second_clone}/sppnet/__init__.py\n"
    assert done.stderr == "error: runs=runs: no run directories there\n"


def test_processes_that_a_command_starts_run_the_same_checkout(second_clone, tmp_path):
    """By a new interpreter, as launchers and Lightning do, and by spawn."""
    (tmp_path / "children.py").write_text(
        f"""
import multiprocessing, runpy, subprocess, sys

def import_it():
    import sppnet

if __name__ == "__main__":
    sys.path[0] = {str(second_clone)!r}
    from sppnet.commands.startup import prepare_process
    prepare_process()
    subprocess.run([sys.executable, "-c", "import sppnet"], cwd="/", check=True)
    child = multiprocessing.get_context("spawn").Process(target=import_it)
    child.start()
    child.join()
"""
    )
    done = python("children.py", cwd=tmp_path, PYTHONPATH=str(PROJECT))
    assert done.stderr == ""
    assert done.stdout == 3 * f"sppnet is imported from {second_clone}/sppnet/__init__.py\n"


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("train", "backbone pooling sizes data recipe trainer experiment"),
        ("benchmark", "backbone pooling sizes data recipe trainer experiment views"),
        ("evaluate", "views data"),
        ("prepare_data", "data"),
    ],
)
def test_help_lists_the_groups_of_the_command_and_no_others(command, groups):
    assert list(groups_of(command)) == groups.split()
    for group, listed in groups_of(command).items():
        assert listed == sorted(file.stem for file in (PROJECT / "configs" / group).glob("*.yaml"))


def test_help_shows_them(tmp_path):
    said = python(PROJECT / "scripts" / "prepare_data.py", "--help", cwd=tmp_path).stdout
    listed = said.partition("== Groups (group=choice) ==\n")[2].partition("\n== ")[0]
    assert listed == "data: caltech101, folder, hub, imagenet, prepared, shapes\n"


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


def test_a_tilde_is_the_home_folder_wherever_the_value_comes_from():
    config = OmegaConf.create({"root": "~/images", "run": "${root}", "exclude": ["~/a", "a~", "~"], "seed": 3})
    home = str(Path.home())
    assert resolved(config) == {
        "root": f"{home}/images",
        "run": f"{home}/images",
        "exclude": [f"{home}/a", "a~", home],
        "seed": 3,
    }


@pytest.mark.parametrize("error", [OverflowError("too large"), TypeError("no int"), RecursionError("too deep")])
def test_what_reading_a_configuration_raises_is_said_in_one_line_with_its_kind(error, capsys):
    with pytest.raises(SystemExit) as stopped, one_line_errors(), configuration_errors():
        raise error
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: the configuration cannot be used ({type(error).__name__}: {error}); "
        "HYDRA_FULL_ERROR=1 shows where that happens\n"
    )


def test_a_bug_outside_of_it_shows_its_traceback():
    with pytest.raises(TypeError), one_line_errors():
        raise TypeError("a bug")


def test_memory_that_is_short_is_one_line(capsys):
    with pytest.raises(SystemExit), one_line_errors():
        bytearray(2**62)
    assert capsys.readouterr().err == "error: out of memory\n"


def test_an_error_is_one_line_without_control_characters():
    assert one_line(ValueError("a\x1b[31m.jpg:\n  not an\timage")) == r"a\x1b[31m.jpg: not an\timage"


def test_an_absent_hub_is_asked_once_and_named_in_one_line(tmp_path):
    code = (
        "from sppnet.commands.errors import one_line_errors\nfrom sppnet.data.sources import open_data\n"
        "with one_line_errors(): open_data('hub', name='nobody/nothing')"
    )
    done = python(
        "-c",
        code,
        cwd=tmp_path,
        PYTHONPATH=str(PROJECT),
        HF_HOME=str(tmp_path / "cache"),
        HF_ENDPOINT="http://127.0.0.1:9",  # where nobody listens
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: nobody/nothing: Couldn't reach 'nobody/nothing' on the Hub")
    assert done.stderr.count("\n") == 1
