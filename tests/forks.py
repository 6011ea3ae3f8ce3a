"""Runs functions in forked processes, which may be killed."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable


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
