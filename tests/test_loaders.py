"""Loader processes whose machine runs short end in one line, never in a wait without end."""

import gc
import mmap
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sppnet.classify.loaders import loader_failures, stop_on_unsent_batches

PROJECT = Path(__file__).parents[1]


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


def start_worker(_):
    stop_on_unsent_batches()


def failure_of(dataset, **options):
    """What the use of a loader with one process raises."""
    options = {"num_workers": 1, "worker_init_fn": start_worker, "timeout": 60} | options
    try:
        with loader_failures("hardware.workers", 1):
            list(DataLoader(dataset, **options))
    except Exception as error:
        return type(error), str(error)
    finally:
        gc.collect()  # the loader's iterator, which looks after its workers as long as it lives
    raise AssertionError("nothing failed")


class Unsendable:
    """Fails in the thread that sends it, as tensors do where open files or shared memory run short."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


FILES = "too many open files: raise the limit (ulimit -n 4096), or give hardware.workers=0"
MEMORY = "/dev/shm is full: give the container more (docker run --shm-size=8g), or give hardware.workers=0"
KILLED = (
    "a loader process was killed, perhaps for lack of memory (give fewer hardware.workers) or of room in /dev/shm "
    "(docker run --shm-size=8g); hardware.workers=0 needs neither"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(24, "Too many open files"), FILES),
        (
            RuntimeError("unable to open shared memory object </torch_1_2> in read-write mode: Too many open files"),
            FILES,
        ),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device"), MEMORY),
        (TypeError("cannot pickle this"), KILLED),
    ],
)
def test_a_batch_that_cannot_be_sent_is_not_waited_for(error, line):
    assert failure_of(Numbers(), collate_fn=lambda _: Unsendable(error)) == (ChildProcessError, line)


def test_a_loader_process_that_is_killed_is_said():
    assert failure_of(Numbers(lambda: os.kill(os.getpid(), 9))) == (ChildProcessError, KILLED)


def test_a_bus_error_of_a_loader_process_names_the_shared_memory():
    def touches_what_is_not_there():
        with tempfile.TemporaryFile() as file:
            file.truncate(8192)
            memory = mmap.mmap(file.fileno(), 8192)
            file.truncate(0)
            memory[0]

    kind, line = failure_of(Numbers(touches_what_is_not_there))
    assert kind is ChildProcessError
    assert line in (MEMORY, KILLED)  # torch notices the signal, or only that the process is gone


def test_a_loader_process_that_gives_nothing_is_not_waited_for_forever():
    line = "the loader processes gave no image for 1 seconds: does the disk answer? if so, give hardware.workers=0"
    assert failure_of(Numbers(lambda: time.sleep(3)), timeout=1) == (ChildProcessError, line)


@pytest.mark.parametrize("error", [ValueError("a.jpg: no image"), FileNotFoundError(2, "No such file", "a.jpg")])
def test_errors_of_the_data_pass(error):
    def fails():
        raise error

    kind, text = failure_of(Numbers(fails))
    assert kind is type(error)
    assert "a.jpg" in text


def test_errors_of_the_code_pass():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), loader_failures("hardware.workers", 0):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(FileNotFoundError), loader_failures("hardware.workers", 0), open("nowhere"):
        pass


SCORING = """
import resource
import torch
from test_scorer import random_pictures
from sppnet.backbones import build_backbone
from sppnet.classify.loaders import loader_failures
from sppnet.classify.scorer import Scorer, score_images
from sppnet.classify.views import ViewProtocol
from sppnet.network import SPPNet

network = SPPNet(build_backbone("zf5", width=0.05), (2, 1), 3, hidden=8, initialization="fan_in").eval()
scorer = Scorer(network, ViewProtocol(full_scales=[300]), pixels=10**6)
pictures = random_pictures([(300, 300)] * 6)
resource.setrlimit(LIMIT)
try:
    with loader_failures("hardware.workers", 2):
        list(score_images(scorer, pictures, range(6), workers=2))
except ChildProcessError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("limit", "line"),
    [
        ("resource.RLIMIT_FSIZE, (100_000, 100_000)", MEMORY),  # of a file in /dev/shm, too
        (
            "resource.RLIMIT_NOFILE, (24, 24)",
            "2 loader processes need 80 open files, and the limit is 24: raise it (ulimit -n 4096), or give "
            "hardware.workers=0",
        ),
    ],
)
def test_scoring_where_the_machine_runs_short_ends_in_one_line(limit, line):
    code = textwrap.dedent(SCORING).replace("LIMIT", limit)
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == (line, "", 0)
