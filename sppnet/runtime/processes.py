"""Worker processes: each ends with the process that started it, and failures of loaders become one line."""

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

from torch.utils.data._utils import signal_handling

# Seconds without a batch after which a loader is given up. Only for hangs: a process that is stopped for so long (by
# Ctrl-Z, say) is taken for one.
LOADER_TIMEOUT = 1800


def exit_with_parent() -> None:
    """Ends this worker as soon as its parent is gone, at once where that happened before the call.

    Call it first in every process that `multiprocessing`, torch's `DataLoader` or `torch.multiprocessing` starts. It
    waits, in a thread, for the end of a pipe that the parent holds open, so it needs no process ids: a worker that was
    forked just before its parent was killed would take the adopting process for its parent, and wait for work for ever.

    Raises RuntimeError in a process that has no such parent.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("not a worker: this process was not started by multiprocessing")
    threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True, name="exit_with_parent").start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def start_loader_worker(worker: int) -> None:
    """For `worker_init_fn` of a DataLoader: its process ends with its parent, and when it cannot hand over a batch.

    Batches are handed over by threads of `multiprocessing`, which print their errors and leave the parent waiting.
    """
    exit_with_parent()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        lambda error, _: _exit_for(error)
    )
    sys.excepthook = lambda kind, error, trace: _exit_for(error)  # called where shared memory is handed over


# What may run out, by the number that the operating system gives it: also the exit code of a loader process.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOSPC)


def _exit_for(error: BaseException) -> None:
    match = re.search(r"\((\d+)\)\s*$", str(error))  # torch's errors end with the number
    number = getattr(error, "errno", None) or (int(match[1]) if match else None)
    if number not in _EXHAUSTED:
        traceback.print_exception(error)
    os._exit(number if number in _EXHAUSTED else 1)


@contextmanager
def explained_loader_failures(setting: str) -> Iterator[None]:
    """Around the use of DataLoaders: what goes wrong with their processes becomes an OSError of one line.

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

    torch raises for a dead worker whenever any child of this process ends, wherever this process is at that moment: in
    the handling of its own error, or while the loader is deleted.
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
    """What to say of an error, None where it is not one of loader processes."""
    text = _text_with_causes(error)
    if re.search(r"too many open files|items of ancdata|exit code (23|24)\b", text, re.IGNORECASE):
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"too many open files, at most {allowed} are allowed: raise the limit (ulimit -n {max(4096, 4 * allowed)}) "
            f"or use fewer {setting}"
        )
    # A semaphore needs hardly any memory; other files that do not fit on a disk are not meant here.
    no_semaphore = isinstance(error, OSError) and error.errno == errno.ENOSPC and _shared_memory_is_full()
    if no_semaphore or re.search(
        r"shared memory.*No space|resize file </torch_|Bus error|exit code 28\b", text, re.DOTALL
    ):
        return f"/dev/shm is full: make it larger (docker run --shm-size=1g), or set {setting}=0"
    if "DataLoader timed out" in text:
        return (
            f"the loader processes gave no batch for {LOADER_TIMEOUT} seconds; does a disk or server not answer? "
            f"{setting}=0 shows where it hangs"
        )
    if re.search(r"DataLoader worker.* killed by signal: Killed", text) or isinstance(
        error, (ConnectionError, EOFError)
    ):
        return f"a loader process was killed (signal 9), perhaps for lack of memory; use fewer {setting}"
    if match := re.search(r"DataLoader worker.* (killed by signal: [\w ]+|exited unexpectedly)", text):
        return f"a loader process failed ({match[1]}); {setting}=0 shows where"
    return None


def _text_with_causes(error: BaseException | None) -> str:
    """torch raises "exited unexpectedly" from the error that has the exit code."""
    return "" if error is None else f"{error}\n{_text_with_causes(error.__cause__)}"


def _shared_memory_is_full() -> bool:
    return os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free < 2**16
