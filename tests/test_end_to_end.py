"""The command line, as a person uses it: train at two sizes, resume, finished; and what goes wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_image_folder

from sppnet.network import load_network

PROJECT = Path(__file__).parent.parent
SMALL = [
    "data=folder",
    "recipe=fast",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.workers=1",
    "backbone.width=0.05",
    "hidden=16",
    "sizes.cycle=[64,48]",
    "recipe.batch_size=4",
    "recipe.warmup_epochs=0",
]


def train(*overrides, cwd, **environment):
    """Runs scripts/train.py in the folder `cwd`, without a terminal."""
    command = [sys.executable, str(PROJECT / "scripts" / "train.py"), *overrides]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_image_folder(tmp_path_factory.mktemp("data") / "images", train=5, val=3)


@pytest.mark.slow
def test_train_resume_finished(folder, tmp_path):
    arguments = [*SMALL, f"data.root={folder}", "run=run"]
    whole = train(*SMALL, f"data.root={folder}", "run=whole", "recipe.epochs=3", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    lines = [line for line in whole.stdout.splitlines() if line.startswith("epoch")]
    assert [line.split("size ")[1].split()[0] for line in lines] == ["64", "48", "64"]

    # Stop after two of three epochs by failing to read the validation set, as a full disk or a kill would.
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert [epoch["size"] for epoch in result["history"]] == [64, 48, 64]
    assert result["n"] == 6
    assert result["top1_error"] == result["top1_wrong"] / 6

    network = load_network(tmp_path / "whole")
    assert network.classes == ("cat", "dog")
    assert network(torch.zeros(1, 3, 70, 91)).shape == (1, 2)

    again = train(*SMALL, f"data.root={folder}", "run=whole", "recipe.epochs=3", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stdout
    assert arguments
