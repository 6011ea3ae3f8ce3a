"""A short form of `make stress`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "stress.py"


@pytest.mark.slow
def test_killed_runs_end_bit_equal_to_the_undisturbed_one():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--runs", "1", "--kills", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the same") == 1
    assert re.search(r"^1 runs, 2 kills, .* 0 differences; ", done.stdout, re.MULTILINE)
