"""Loader processes that fail in one line: which resource of the machine is short, and what to do about it."""

import errno
import multiprocessing.queues
import os
import re
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

# For one batch. A worker that is killed, or that cannot send what it loaded, is noticed at once; this is for the rest,
# such as a network drive that no longer answers.
SECONDS_FOR_A_BATCH = 600

LARGEST_WORKER_COUNT = 256

# Exit codes of workers, which tell the process that waits for them what was short.
_OUT_OF_FILES, _OUT_OF_SHARED_MEMORY = 70, 71

# As this process has them before it starts workers; a worker needs four files and its batches one each.
_FILES, _FILES_PER_WORKER = 64, 8


def stop_on_unsent_batches() -> None:
    """Makes this worker exit if a batch cannot be sent.

    The thread that sends only prints its errors, and the process that waits for the batch would wait for ever.
    """
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_exit)  # type: ignore[attr-defined]


def _exit(error: Exception, _: object) -> None:
    code = _shortage(error)
    if code is None:
        traceback.print_exception(error)
    os._exit(code or 1)


def _shortage(error: BaseException | None) -> int | None:
    """Which of the exit codes an error stands for, in the words of several versions of torch; else None."""
    text = str(error)
    if getattr(error, "errno", None) == errno.EMFILE or re.search(r"[Tt]oo many open files|ancdata", text):
        return _OUT_OF_FILES
    return _OUT_OF_SHARED_MEMORY if re.search(r"\(shm\)|</torch_|Bus error", text) else None


def batches(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    """The batches of a loader, whose workers end when the generator is closed.

    As long as torch looks after a dead worker, it interrupts this process again for every child that exits.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        if loader.num_workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


@contextmanager
def loader_failures(key: str, workers: int) -> Iterator[None]:
    """Around the use of `batches`: failures of loader processes become a ChildProcessError of one line.

    Whatever this process does at that moment is interrupted. Errors of the data set pass unchanged.

    Args:
        key: what sets the number of workers, such as "hardware.workers".
        workers: that number.
    """
    _check_open_files(key, workers)
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        reason = _reason(error, key)
        if reason is None:
            raise
        raise ChildProcessError(reason) from error


def _check_open_files(key: str, workers: int) -> None:
    import resource  # not on Windows

    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], _FILES + _FILES_PER_WORKER * workers
    if workers and limit < needed:
        raise ChildProcessError(
            f"{workers} loader processes need {needed} open files, and the limit is {limit}: raise it (ulimit -n "
            f"4096), or give {key}=0"
        )


def _reason(error: Exception, key: str) -> str | None:
    """What is short, or None if the error is not one of loader processes."""
    # torch notices a dead worker twice; the first time, which becomes the cause, it knows the exit code.
    text = f"{error} {error.__cause__ or ''}"
    exited = re.search(r"DataLoader worker .* exited unexpectedly with exit code (\d+)", text)
    shortage = int(exited[1]) if exited else _shortage(error) or _shortage(error.__cause__)
    if shortage == _OUT_OF_FILES:
        return f"too many open files: raise the limit (ulimit -n 4096), or give {key}=0"
    if shortage == _OUT_OF_SHARED_MEMORY:
        return f"/dev/shm is full: give the container more (docker run --shm-size=8g), or give {key}=0"
    if late := re.match(r"DataLoader timed out after (\d+) seconds", text):
        return f"the loader processes gave no image for {late[1]} seconds: does the disk answer? if so, give {key}=0"
    # Of a worker that died while this process received a batch from it. Errors of the data set start with "Caught",
    # and those of files name the file.
    broken = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and not text.startswith("Caught ")
    if re.match(r"DataLoader worker ", text) or (broken and getattr(error, "filename", None) is None):
        return (
            f"a loader process was killed, perhaps for lack of memory (give fewer {key}) or of room in /dev/shm "
            f"(docker run --shm-size=8g); {key}=0 needs neither"
        )
    return None
