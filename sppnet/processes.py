"""Worker processes: each ends when the process that started it is gone."""

import multiprocessing
import multiprocessing.connection
import os
import threading


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
