"""Dead and hanging loader processes are found in seconds, even where torch's own report of them was lost."""

import errno
import gc
import os
import signal
import tempfile
import time
from multiprocessing import connection
from threading import Timer

import numpy as np
import pytest
from torch.utils.data import Dataset
from torch.utils.data import _utils as data_utils
from torch.utils.data._utils import signal_handling

from sppnet.data.inputs import load_inputs
from sppnet.detect.proposal_files import compute_proposals
from sppnet.detect.proposals import Dense
from sppnet.runtime import loaders
from sppnet.runtime.loaders import WatchedLoader
from sppnet.runtime.processes import explained_loader_failures
from test_datamodule import data_module
from test_loading import Files

KILLED = "a loader process was killed (signal 9), perhaps for lack of memory; use fewer hardware.workers"


@pytest.fixture(autouse=True)
def lost_reports(monkeypatch):
    """Loses torch's report of a dead worker: an error in a signal handler, which can come where errors are ignored."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", True)  # so that torch sets no handler
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(loaders, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr(loaders, "LOADER_TIMEOUT", 20)
    monkeypatch.setattr(data_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    yield
    gc.collect()  # ends the workers of the loaders that failed here, each of which a later test would wait 5 s for
    signal.signal(signal.SIGCHLD, handler)


def kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)


class Numbers(Dataset):
    """Items are their index. The first calls a function in its loader process."""

    def __init__(self, act):
        self.act = act

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 0:
            self.act()
        return index


def failure(batches):
    """Returns the line of the error that loading ends with, and after how many seconds."""
    started = time.monotonic()
    with pytest.raises(OSError, match=r"^.+$") as raised, explained_loader_failures("hardware.workers"):
        list(batches())
    return str(raised.value), time.monotonic() - started


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (kill_this_process, KILLED),
        (
            lambda: os._exit(28),
            "/dev/shm is full: make it larger (docker run --shm-size=1g), or set hardware.workers=0",
        ),
        (lambda: os._exit(1), "a loader process failed (exited unexpectedly); hardware.workers=0 shows where"),
    ],
    ids=["killed", "no shared memory", "crashed"],
)
def test_a_dead_worker_is_found_in_seconds_and_how_it_ended_is_said(act, message):
    text, seconds = failure(lambda: WatchedLoader(Numbers(act), batch_size=1, num_workers=2))
    assert text == message
    assert seconds < 10


def test_a_connection_that_breaks_before_its_worker_is_dead_is_explained_without_opening_files(monkeypatch):
    """torch's report of the dead worker, an error at any point, would leave files open: a ResourceWarning."""
    batches = iter(WatchedLoader(Numbers(lambda: time.sleep(60)), batch_size=1, num_workers=1))
    (worker,) = batches._workers

    def break_connection(timeout):
        Timer(0.2, os.kill, [worker.pid, signal.SIGKILL]).start()
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(batches._data_queue, "get", break_connection)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda: pytest.fail("opened a file"))
    text, seconds = failure(lambda: batches)
    assert text == KILLED
    assert seconds < 10


def close_files_and_exit():
    """Ends this process as the system ends one: its files are closed some time before its exit code is known."""
    os.closerange(3, 256)
    time.sleep(0.3)
    os._exit(errno.EMFILE)


def test_the_exit_code_of_a_worker_whose_files_are_closed_is_waited_for(monkeypatch):
    batches = iter(WatchedLoader(Numbers(close_files_and_exit), batch_size=1, num_workers=1))
    (worker,) = batches._workers

    def break_connection(timeout):
        connection.wait([worker.sentinel], timeout=10)
        raise EOFError

    monkeypatch.setattr(batches._data_queue, "get", break_connection)
    text, _ = failure(lambda: batches)
    assert text.startswith("too many open files")


class KillingImages(Files):
    """Images that kill the process that reads them."""

    def read(self, index):
        kill_this_process()


IMAGES, DIGESTS = KillingImages([b""] * 8), np.zeros((8, 16), np.uint8)


@pytest.mark.parametrize(
    "batches",
    [
        lambda folder: data_module(IMAGES, workers=1).train_dataloader(),
        lambda folder: data_module(IMAGES, workers=1).val_dataloader(),
        lambda folder: load_inputs(IMAGES, lambda image: [image], range(8), pixels=10**6, workers=1),
        lambda folder: compute_proposals(IMAGES, Dense(), folder, digests=DIGESTS, workers=1),
    ],
    ids=["training", "validation", "inputs", "proposals"],
)
def test_every_loader_finds_a_dead_worker(batches, tmp_path):
    text, seconds = failure(lambda: batches(tmp_path))
    assert text == KILLED
    assert seconds < 10


def test_a_worker_that_hangs_is_given_up_after_the_limit(monkeypatch):
    monkeypatch.setattr(loaders, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(loaders, "LOADER_TIMEOUT", 1)
    text, seconds = failure(lambda: WatchedLoader(Numbers(lambda: time.sleep(2)), batch_size=1, num_workers=1))
    assert text.startswith("the loader processes gave no batch for 1 seconds; does a disk or server not answer?")
    assert 1 < seconds < 10


def test_the_limit_is_for_each_batch_and_slow_ones_arrive(monkeypatch):
    monkeypatch.setattr(loaders, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(loaders, "LOADER_TIMEOUT", 1)

    class Slow(Numbers):
        def __getitem__(self, index):
            time.sleep(0.2)
            return index

    slow = WatchedLoader(Slow(None), batch_size=1, num_workers=1)
    assert [int(batch) for batch in slow] == [0, 1, 2, 3, 4, 5, 6, 7]


def test_without_workers_it_loads_in_this_process():
    read = []
    assert len(list(WatchedLoader(Numbers(lambda: read.append(os.getpid())), batch_size=None))) == 8
    assert read == [os.getpid()]
