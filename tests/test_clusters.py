"""A short form of `make clusters`, where SLURM is installed."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from conftest import run_process

SCRIPT = Path(__file__).parents[1] / "scripts" / "clusters.py"
SBIN = os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin"])


def test_one_line_says_what_to_install(tmp_path):
    done = run_process([sys.executable, SCRIPT, "slurm"], env=os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stdout.startswith("error: ")
    assert "srun" in done.stdout
    assert done.stdout.endswith("apt-get install slurm-wlm munge\n")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("slurmctld", path=SBIN) is None, reason="SLURM is not installed")
def test_mistakes_are_refused_in_one_line_by_jobs_of_slurm():
    done = run_process([sys.executable, SCRIPT, "slurm", "--only", "mistakes"], limit=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mistakes: two tasks for one device, and one run in two jobs: one line each, exit code 2" in done.stdout
