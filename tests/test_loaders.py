"""Loader processes whose machine runs short end in one line, never in a wait without end."""

import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from conftest import make_image_folder
from sppnet.backbones import build_backbone
from sppnet.classify import evaluator, scorer
from sppnet.classify.evaluator import Hardware, evaluate_to_file
from sppnet.classify.loaders import batches, loader_failures, stop_on_unsent_batches
from sppnet.classify.views import ViewProtocol
from sppnet.datasets import content_digests, open_data
from sppnet.network import SPPNet

PROJECT = Path(__file__).parents[1]

FILES = "too many open files: raise the limit (ulimit -n 4096), or give hardware.workers=0"
FEW_FILES = (
    "1 loader processes need 72 open files, and the limit is 24: raise it (ulimit -n 4096), or give hardware.workers=0"
)
MEMORY = "/dev/shm is full: give the container more (docker run --shm-size=8g), or give hardware.workers=0"
KILLED = (
    "a loader process was killed, perhaps for lack of memory (give fewer hardware.workers) or of room in /dev/shm "
    "(docker run --shm-size=8g); hardware.workers=0 needs neither"
)
LATE = "the loader processes gave no image for 1 seconds: does the disk answer? if so, give hardware.workers=0"


class Numbers(Dataset):
    """0, 1, 2 ...; what `does` does happens in the loader process, before the third one."""

    def __init__(self, does=lambda: None):
        self.does = does

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 2:
            self.does()
        return index


class Unsendable:
    """Fails in the thread that sends it, as tensors do where open files or shared memory run short."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


def start_worker(_):
    stop_on_unsent_batches()


def load(dataset, **options):
    options = {"num_workers": 1, "worker_init_fn": start_worker, "timeout": 60} | options
    with loader_failures("hardware.workers", 1), closing(batches(DataLoader(dataset, **options))) as loaded:
        list(loaded)


def send(error):
    load(Numbers(), collate_fn=lambda _: Unsendable(error))


def touch_what_is_not_there():
    with tempfile.TemporaryFile() as file:
        file.truncate(8192)
        memory = mmap.mmap(file.fileno(), 8192)
        file.truncate(0)
        memory[0]


def fail_with(error):
    raise error


def limited(which, limit):
    resource.setrlimit(which, (limit, limit))


def score_eight_images(before=lambda: None, saved=lambda: None):
    """A test of 8 images with one loader process; `saved` is called after every image."""
    with tempfile.TemporaryDirectory() as place:
        data = open_data("folder", root=str(make_image_folder(Path(place) / "images", train=1, val=4)))
        digests = content_digests(data.val, "reading")
        network = SPPNet(build_backbone("zf5", width=0.05), (2, 1), 2, hidden=8, initialization="fan_in").eval()
        evaluator.SECONDS_BETWEEN_PARTS = 0
        scorer.MAX_WAITING_BYTES = scorer.LARGEST_MESSAGE = 1
        save = evaluator._save_part
        evaluator._save_part = lambda *arguments: (save(*arguments), saved())
        before()
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


def kill_workers():
    for worker in torch.multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)


# name -> (what fails, the lines that may be said)
CASES = {
    "unsent, files": (lambda: send(OSError(24, "Too many open files")), [FILES]),
    "unsent, files, torch": (
        lambda: send(RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)")),
        [FILES],
    ),
    "unsent, memory": (
        lambda: send(RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left")),
        [MEMORY],
    ),
    "unsent, other": (lambda: send(TypeError("cannot pickle this")), [KILLED]),
    "killed": (lambda: load(Numbers(lambda: os.kill(os.getpid(), signal.SIGKILL))), [KILLED]),
    # torch notices the signal, or only that the process is gone.
    "bus error": (lambda: load(Numbers(touch_what_is_not_there)), [MEMORY, KILLED]),
    "late": (lambda: load(Numbers(lambda: time.sleep(3)), timeout=1), [LATE]),
    "test, killed": (lambda: score_eight_images(saved=kill_workers), [KILLED]),
    # Files in /dev/shm can be no longer, either.
    "test, memory": (lambda: score_eight_images(lambda: limited(resource.RLIMIT_FSIZE, 100_000)), [MEMORY]),
    "test, files": (lambda: score_eight_images(lambda: limited(resource.RLIMIT_NOFILE, 24)), [FEW_FILES]),
}


def run_cases():
    """Prints for every case the type and the text of its error. Each has a process: torch raises dead workers again."""
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
    done = subprocess.run(
        [sys.executable, "-c", "import test_loaders; test_loaders.run_cases()"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    return {name: (kind, text) for name, kind, text in found}


@pytest.mark.parametrize("name", CASES)
def test_what_is_short_is_said_in_one_line(outcomes, name):
    kind, text = outcomes[name]
    assert kind == "ChildProcessError", text
    assert text in CASES[name][1]


@pytest.mark.parametrize("error", [ValueError("a.jpg: no image"), FileNotFoundError(2, "No such file", "a.jpg")])
def test_errors_of_the_data_pass(error):
    with pytest.raises(type(error), match=r"a\.jpg"):
        load(Numbers(lambda: fail_with(error)))


def test_errors_of_the_code_pass():
    with pytest.raises(RuntimeError, match="cannot be multiplied"), loader_failures("hardware.workers", 0):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(FileNotFoundError), loader_failures("hardware.workers", 0), open("nowhere"):
        pass
