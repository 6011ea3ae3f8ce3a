"""Worker processes: ends each with the process that started it, and explains failures of loaders in one line."""

import errno
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import re
import resource
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.data._utils import signal_handling


def exit_with_parent() -> None:
    """Makes this worker exit when its parent ends, or at once if the parent has already ended.

    Call it first in every process that `multiprocessing`, torch's `DataLoader` or `torch.multiprocessing` starts. A
    thread waits for the end of a pipe that the parent holds open. Process ids would not do: a worker that was forked
    just before its parent was killed would take the adopting process for its parent, and wait for work for ever.

    Raises RuntimeError in a process that `multiprocessing` did not start.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("not a worker: this process was not started by multiprocessing")
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True, name="exit_with_parent").start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def start_loader_worker(worker: int) -> None:
    """The `worker_init_fn` of a DataLoader: the worker exits with its parent, and if it cannot hand over a batch.

    Batches are handed over by threads of `multiprocessing`, which would print their errors and leave the parent
    waiting.
    """
    exit_with_parent()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        lambda error, _: _exit_for(error)
    )
    sys.excepthook = lambda kind, error, trace: _exit_for(error)  # called in the thread that hands over shared memory


# Error numbers of resources that have run out, which loader processes use as exit codes.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOSPC)


def _exit_for(error: BaseException) -> None:
    """Ends this process with the number of the error if it is one of _EXHAUSTED, else prints the error and exits 1."""
    match = re.search(r"\((\d+)\)\s*$", str(error))  # torch's errors end with the number
    number = getattr(error, "errno", None) or (int(match[1]) if match else None)
    if number not in _EXHAUSTED:
        traceback.print_exception(error)
    os._exit(number if number in _EXHAUSTED else 1)


@contextmanager
def explained_loader_failures(setting: str) -> Iterator[None]:
    """Turns failures of the processes of DataLoaders used in the block into an OSError of one line.

    Other errors pass unchanged.

    Args:
        setting: the key that sets the number of loader processes, such as "trainer.workers".
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        watch = _stop_watching_workers()
        reason = _loader_failure(error, setting)
        if reason is None:
            watch()
            raise
        raise OSError(reason) from error


def _stop_watching_workers() -> Callable[[], None]:
    """Makes torch report no dead worker again, until the next loader is made or the returned function is called.

    torch raises for a dead worker whenever any child of this process ends, at any point: even while its own error is
    handled, or the loader is deleted.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    handler, was_set = signal.signal(signal.SIGCHLD, signal.SIG_DFL), signal_handling._SIGCHLD_handler_set
    signal_handling._SIGCHLD_handler_set = False  # so that the next loader sets its handler again

    def watch() -> None:
        signal.signal(signal.SIGCHLD, handler)
        signal_handling._SIGCHLD_handler_set = was_set

    return watch


def _loader_failure(error: Exception, setting: str) -> str | None:
    """Explains an error of loader processes in one line; None for other errors."""
    text = _text_with_causes(error)
    if re.search(r"too many open files|items of ancdata|exit code (23|24)\b", text, re.IGNORECASE):
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"too many open files, at most {allowed} are allowed: raise the limit (ulimit -n {max(4096, 4 * allowed)}) "
            f"or use fewer {setting}"
        )

    # Creating a semaphore fails with ENOSPC, which for other files means a full disk.
    no_semaphore = isinstance(error, OSError) and error.errno == errno.ENOSPC and _shared_memory_is_full()
    if no_semaphore or re.search(
        r"shared memory.*No space|resize file </torch_|Bus error|exit code 28\b", text, re.DOTALL
    ):
        return f"/dev/shm is full: make it larger (docker run --shm-size=1g), or set {setting}=0"

    if match := re.search(r"DataLoader timed out after (\d+) seconds", text):
        return (
            f"the loader processes gave no batch for {match[1]} seconds; does a disk or server not answer? "
            f"{setting}=0 shows where it hangs"
        )

    if re.search(r"DataLoader worker.* killed by signal: Killed", text) or isinstance(
        error, (ConnectionError, EOFError)
    ):
        return f"a loader process was killed (signal 9), perhaps for lack of memory; use fewer {setting}"
    if match := re.search(r"DataLoader worker.* (killed by signal: [\w ]+|exited unexpectedly)", text):
        return f"a loader process failed ({match[1]}); {setting}=0 shows where"
    if "Pin memory thread exited" in text:  # after printing its error
        return f"the thread that receives batches failed; {setting}=0 does without it"
    return None


def _text_with_causes(error: BaseException | None) -> str:
    """The text of an error and its causes: torch raises "exited unexpectedly" from the error with the exit code."""
    return "" if error is None else f"{error}\n{_text_with_causes(error.__cause__)}"


def _shared_memory_is_full() -> bool:
    return Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free < 2**16
