"""An evaluation whose loader processes are killed or run out of resources fails with one line, and never hangs."""

import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from conftest import make_image_folder, run_process
from sppnet.backbones import build_backbone
from sppnet.classify import evaluator
from sppnet.classify.evaluator import evaluate_to_file
from sppnet.classify.views import ViewProtocol
from sppnet.data import inputs
from sppnet.data.sources import content_digests, open_data
from sppnet.network import SPPNet
from sppnet.runtime.hardware import Hardware

PROJECT = Path(__file__).parents[1]


def limited(which, limit):
    resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))


def score_eight_images(before=lambda: None, saved=lambda: None):
    """A test of 8 images with one loader process; `saved` is called after every image."""
    with tempfile.TemporaryDirectory() as place:
        data = open_data("folder", root=str(make_image_folder(Path(place) / "images", train=1, val=4)))
        digests = content_digests(data.val, "reading")
        network = SPPNet(build_backbone("zf5", width=0.05), (2, 1), 2, hidden=8, initialization="fan_in").eval()
        evaluator.SECONDS_BETWEEN_PARTS = 0
        inputs.MAX_WAITING_BYTES = inputs.MAX_LOADER_BATCH = 1
        save = evaluator._save_part
        evaluator._save_part = lambda *arguments: (save(*arguments), saved())
        before()
        try:
            evaluate_to_file(
                Path(place) / "full.npz",
                network,
                data.val,
                digests,
                ViewProtocol(full_scales=[300]),
                Hardware(accelerator="cpu", workers=1, precision="float32"),
                title="full",
                checkpoint="abc",
                about={},
            )
        finally:  # removing the folder takes open files, too
            resource.setrlimit(resource.RLIMIT_NOFILE, 2 * resource.getrlimit(resource.RLIMIT_NOFILE)[1:])


def kill_workers():
    for worker in torch.multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)


# name -> (what fails, how its line begins)
CASES = {
    "killed": (lambda: score_eight_images(saved=kill_workers), "a loader process was killed (signal 9), perhaps for"),
    # The limit also holds for files in /dev/shm.
    "memory": (
        lambda: score_eight_images(lambda: limited(resource.RLIMIT_FSIZE, 100_000)),
        "/dev/shm is full",
    ),
    "files": (
        lambda: score_eight_images(lambda: limited(resource.RLIMIT_NOFILE, 14)),
        "too many open files",
    ),
}


def run_cases():
    """Prints the type and text of every error, each from its own process: torch raises again for dead workers."""
    torch.set_num_threads(1)
    for name, (fails, _) in CASES.items():
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            outcome = (name, "nothing failed", "")
            try:
                fails()
            except Exception as error:
                outcome = (name, type(error).__name__, str(error))
            print(json.dumps(outcome), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


@pytest.fixture(scope="module")
def outcomes():
    """name -> (type, text) of the error of every case."""
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    command = [sys.executable, "-c", "import test_evaluator_failures; test_evaluator_failures.run_cases()"]
    done = run_process(command, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    outcomes = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    return {name: (kind, text) for name, kind, text in outcomes}


@pytest.mark.parametrize("name", CASES)
def test_every_failure_is_explained_in_one_line(outcomes, name):
    kind, text = outcomes[name]
    assert kind == "OSError", text
    assert text.startswith(CASES[name][1])
    assert "hardware.workers" in text
    assert "\n" not in text
