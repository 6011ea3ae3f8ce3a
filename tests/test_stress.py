"""A short form of `make stress`."""

import re
import sys
from pathlib import Path

import pytest

from conftest import run_process

SCRIPT = Path(__file__).parents[1] / "scripts" / "stress.py"


@pytest.mark.slow
def test_killed_runs_end_bit_equal_to_the_undisturbed_one():
    done = run_process([sys.executable, SCRIPT, "--runs", "1", "--kills", "1"], limit=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same") == 1
    assert re.search(r"^1 runs, 1 kills, .* 0 differences; ", done.stdout, re.MULTILINE)
