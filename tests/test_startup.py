"""The start of a command: which checkout runs, what Ctrl-C does, and what a reader that leaves early does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import make_image_folder, run_process, started_process
from sppnet.commands.errors import one_line_errors
from sppnet.commands.startup import COMMANDS, quiet_broken_pipe

PROJECT = Path(__file__).parents[1]
SCRIPTS = PROJECT / "scripts"
SECONDS = 120  # a limit for what takes a few, on a machine that does other things as well


def python(*arguments, cwd, **environment):
    """Runs the interpreter of the tests in the folder `cwd`, away from a terminal."""
    return run_process([sys.executable, *arguments], cwd=cwd, env=os.environ | environment, limit=SECONDS)


def test_what_libraries_leave_is_not_searched_for_garbage(tmp_path):
    code = (
        "import gc; from sppnet.commands import startup; startup.prepare_process(); "
        "before = gc.get_stats(); kept = [[] for _ in range(500_000)]; "
        "print([after['collections'] - old['collections'] for after, old in zip(gc.get_stats(), before)])"
    )
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(PROJECT))
    young, _, all_of_them = json.loads(done.stdout)
    assert 10 < young < 200
    assert all_of_them == 0


# Ctrl-C


def opened_by_reader(fifo, process):
    """Returns the writing end of a FIFO, once the process reads it."""
    for _ in range(SECONDS * 20):
        with suppress(OSError):  # nobody reads it yet
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise TimeoutError(f"{process.args} does not read {fifo}")


def interrupted(script, fifo, packages):
    """Starts a script, sends SIGINT when it reads the FIFO, and returns (exit code, stderr).

    Args:
        packages: a folder of packages that are imported before the installed ones.
    """
    environment = os.environ | {"PYTHONPATH": str(packages)}
    command = [sys.executable, SCRIPTS / f"{script}.py"]
    with started_process(command, cwd=packages, env=environment, stderr=subprocess.PIPE, limit=SECONDS) as process:
        end = opened_by_reader(fifo, process)
        process.send_signal(signal.SIGINT)
        try:
            errors = process.communicate(timeout=10)[1]
        except subprocess.TimeoutExpired:  # Python misses a signal that comes just before it waits for a file
            process.send_signal(signal.SIGINT)
            errors = process.communicate()[1]
        os.close(end)
    return process.returncode, errors


@pytest.mark.parametrize("script", COMMANDS)
def test_ctrl_c_during_imports_is_one_line(script, tmp_path):
    """A package of this name replaces the one that takes long to import."""
    (tmp_path / "hydra").mkdir()
    fifo = tmp_path / "hydra" / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "hydra" / "__init__.py").write_text("open(__path__[0] + '/fifo').read()")
    assert interrupted(script, fifo, tmp_path) == (130, "interrupted; nothing was started\n")


def test_ctrl_c_while_hydra_works_is_one_line(tmp_path):
    """Hydra imports the plugins that it finds before it composes the configuration."""
    (tmp_path / "hydra_plugins").mkdir()
    fifo = tmp_path / "hydra_plugins" / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "hydra_plugins" / "plugin.py").write_text(f"open({str(fifo)!r}).read()")
    assert interrupted("train", fifo, tmp_path) == (130, "interrupted; nothing was started\n")


# A reader that leaves early


@pytest.fixture
def broken_pipe():
    """The writing end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("arguments", [["train.py", "--help"], ["transfer.py", "--help"], ["tables.py", "--help"]])
def test_help_that_nobody_reads_ends_quietly(arguments, broken_pipe, tmp_path):
    """As in `python scripts/train.py --help | head -1`, where the rest is written when the interpreter exits."""
    script, *options = arguments
    done = run_process([sys.executable, SCRIPTS / script, *options], cwd=tmp_path, stdout=broken_pipe)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_job_that_nobody_reads_ends_quietly(broken_pipe, tmp_path):
    """It writes before it ends, so the error comes through Hydra."""
    make_image_folder(tmp_path / "images", train=1, val=1)
    command = [sys.executable, SCRIPTS / "prepare_data.py", "data=folder", "data.root=images", "out=store"]
    done = run_process(command, cwd=tmp_path, stdout=broken_pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_the_exit_code_is_that_of_a_broken_pipe(name, broken_pipe, monkeypatch):
    with open(os.dup(broken_pipe), "w") as stream:
        monkeypatch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as stopped, quiet_broken_pipe(), one_line_errors():
            print("words", file=stream, flush=True)
    assert stopped.value.code == 141


def test_another_pipe_that_breaks_is_an_error(broken_pipe, capsys):
    """Such as that to a loader process, while the output is read."""
    with pytest.raises(SystemExit) as stopped, quiet_broken_pipe(), one_line_errors():
        os.write(broken_pipe, b"a batch")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: [Errno 32] Broken pipe\n"


# The checkout


@pytest.fixture(scope="module")
def second_clone(tmp_path_factory):
    """A copy of this checkout in which sppnet prints that it is imported."""
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


# Help


def test_help_lists_the_groups_of_the_command_and_shows_commands_of_the_checkout():
    help_text = python(SCRIPTS / "prepare_data.py", "--help", cwd=PROJECT).stdout
    groups = help_text.partition("== Groups (group=choice) ==\n")[2].partition("\n== ")[0]
    assert groups == "data: caltech101, folder, hub, imagenet, multilabel, prepared, shapes, table, voc2007\n"
    assert "\n  python scripts/train.py data=prepared" in help_text


def test_help_lists_the_experiments_of_the_command_only():
    for script, name, other in (("transfer", "transfer_caltech51", "demo"), ("train", "demo", "transfer_caltech51")):
        help_text = python(SCRIPTS / f"{script}.py", "--help", cwd=PROJECT).stdout
        listed = help_text.partition("experiment: ")[2].partition("\n")[0].split(", ")
        assert name in listed
        assert other not in listed
