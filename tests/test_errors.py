"""Errors of the user's become one line; bugs keep their traceback."""

import os
import sys
from pathlib import Path

import pytest

from conftest import run_process
from sppnet.commands.errors import configuration_errors, one_line, one_line_errors

PROJECT = Path(__file__).parents[1]


@pytest.mark.parametrize("error", [OverflowError("too large"), TypeError("no int"), RecursionError("too deep")])
def test_an_error_of_reading_a_configuration_is_one_line_with_its_kind(error, capsys):
    with pytest.raises(SystemExit) as stopped, one_line_errors(), configuration_errors():
        raise error
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"error: the configuration cannot be used ({type(error).__name__}: {error}); "
        "HYDRA_FULL_ERROR=1 shows where that happens\n"
    )


def test_a_bug_elsewhere_shows_its_traceback():
    with pytest.raises(TypeError), one_line_errors():
        raise TypeError("a bug")


def test_too_little_memory_is_one_line(capsys):
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
    environment = os.environ | {
        "PYTHONPATH": str(PROJECT),
        "HF_HOME": str(tmp_path / "cache"),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # where nobody listens
    }
    done = run_process([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: nobody/nothing: Couldn't reach 'nobody/nothing' on the Hub")
    assert done.stderr.count("\n") == 1
