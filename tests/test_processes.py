"""Workers end with the process that started them, and failures of loaders are explained in one line."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import run_process, started_process
from sppnet.runtime.processes import exit_with_parent, explained_loader_failures
from test_datamodule import data_module, noise

# A worker whose parent dies, and which is adopted, before it looks for its parent: it would wait for ever.
ORPHAN = """
import multiprocessing, os, sys, time
from sppnet.classify.loading import start_training_worker
from sppnet.runtime.processes import exit_with_parent

def work(parent, first):
    while os.getppid() == parent:
        time.sleep(0.01)
    first()
    print("running", flush=True)
    time.sleep(3600)

if __name__ == "__main__":
    first = {"any": exit_with_parent, "loader": lambda: start_training_worker(0)}[sys.argv[2]]
    multiprocessing.get_context(sys.argv[1]).Process(target=work, args=(os.getpid(), first)).start()
    print("started", flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize(("method", "worker"), [("fork", "any"), ("spawn", "any"), ("fork", "loader")])
def test_a_worker_whose_parent_died_before_it_started_ends(method, worker, tmp_path):
    """Reading the output returns once the last process that could write to it has ended."""
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with started_process([sys.executable, script, method, worker], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "started\n"
        process.stdout.read()


TRAINER = """
import os, signal, sys
from test_datamodule import data_module, noise

batches = iter(data_module(noise(40), workers=2).train_dataloader())
next(batches)
print("training", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_loader_workers_end_with_a_trainer_that_is_killed(tmp_path):
    command = [sys.executable, "-c", TRAINER]
    with started_process(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE) as process:
        assert process.stdout.read() == "training\n"


def test_a_process_that_is_no_worker_is_refused():
    with pytest.raises(RuntimeError, match="not a worker"):
        exit_with_parent()


# Failures.


def test_a_killed_loader_process_is_explained():
    batches = iter(data_module(noise(40), workers=1).train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()

    def kill_and_continue():  # in one step: torch raises wherever this process is when the worker dies
        os.kill(worker.pid, signal.SIGKILL)
        list(batches)

    message = r"^a loader process was killed \(signal 9\), .*; use fewer trainer\.workers$"
    with pytest.raises(OSError, match=message), explained_loader_failures("trainer.workers"):
        kill_and_continue()


def test_a_dead_worker_is_reported_once():
    """A batch of a dying worker may fail to arrive before the worker is dead and the signal of its death comes."""
    batches = iter(data_module(noise(40), workers=1).train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    with pytest.raises(OSError, match=r"^a loader process was killed"), explained_loader_failures("trainer.workers"):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
    del batches
    test_a_killed_loader_process_is_explained()  # the next loader is watched again


FEW_FILES = """
import os, resource
from sppnet.runtime.processes import explained_loader_failures
from test_datamodule import data_module, noise

def in_child(limit, use):
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            with explained_loader_failures("trainer.workers"):
                print(use(data_module(noise(40), workers=2, batch_size=1).train_dataloader()), "batches", flush=True)
        except OSError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()

for limit in (10, 14, 20, 24):
    in_child(limit, lambda batches: len(list(batches)))
in_child(20, lambda batches: sum(1 for _ in batches))
"""


def test_too_few_open_files_are_explained_instead_of_waiting_for_ever():
    """They run out while the processes start, and where more batches are kept than there are slots for.

    Batches that are used one after the other need none.
    """
    done = run_process([sys.executable, "-c", FEW_FILES], cwd=Path(__file__).parent)
    *explained, one_by_one = done.stdout.splitlines()
    assert explained == [
        f"too many open files, at most {limit} are allowed: raise the limit (ulimit -n 4096) or use fewer "
        "trainer.workers"
        for limit in (10, 14, 20, 24)
    ]
    assert one_by_one == "40 batches"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        # As torch raised them with a /dev/shm of 100 kB and of 400 kB, and a decoder that crashed.
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                "RuntimeError: unable to allocate shared memory(shm) for file </torch_10_14_0>: No space left on "
                "device (28)\n"
            ),
            "/dev/shm is full: make it larger (docker run --shm-size=1g), or set hardware.workers=0",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory. Please try to raise your shared memory limit."
            ),
            "/dev/shm is full",
        ),
        (RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 28. Details"), "/dev/shm is full"),
        (RuntimeError("DataLoader timed out after 1800 seconds"), "gave no batch for 1800 seconds"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Segmentation fault. "),
            "a loader process failed (killed by signal: Segmentation fault); hardware.workers=0 shows where",
        ),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "a loader process was killed (signal 9)"),
        (RuntimeError("Pin memory thread exited unexpectedly"), "the thread that receives batches failed"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_failures_of_loaders_say_what_to_change(error, words):
    with pytest.raises(OSError) as raised, explained_loader_failures("hardware.workers"):  # noqa: PT011
        raise error
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.ENOSPC, "No space left on device", "x.ckpt")])
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as raised, explained_loader_failures("trainer.workers"):
        raise error
    assert raised.value is error
