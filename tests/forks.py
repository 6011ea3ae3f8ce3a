"""Runs functions in forked processes, which may be killed."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sppnet.transfer.feature_files import folder_lock


def start_process(work: Callable[[], object]) -> int:
    """Calls `work` in a forked process, which is killed after two minutes, and returns its number."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # from 3.12 on, if there are threads
        child = os.fork()
    if child:
        return child

    code = 1
    try:
        signal.alarm(120)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def exit_code(process: int) -> int:
    """Waits for a process, and returns its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def in_a_process(work: Callable[[], object]) -> int:
    """Calls `work` in a forked process, and returns its `exit_code`."""
    return exit_code(start_process(work))


def kill_this_process() -> None:
    """Ends this process at once, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def locked_by_another_process(folder: Path) -> Iterator[tuple[int, Callable[[], object]]]:
    """Another process holds the lock of a folder during the block, or until this calls the function that it gets."""
    ready, taken = os.pipe()
    release, may_release = os.pipe()

    def hold() -> None:
        with folder_lock(folder):
            os.write(taken, b"x")
            os.read(release, 1)

    child = start_process(hold)
    os.read(ready, 1)
    try:
        yield child, lambda: os.write(may_release, b"x")
    finally:
        os.write(may_release, b"x")
        assert exit_code(child) == 0
        for descriptor in (ready, taken, release, may_release):
            os.close(descriptor)
