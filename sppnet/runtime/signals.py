"""Stop signals: a run ends the step under way, saves, and exits with a code that says whether to try again."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# With these SLURM says that a job has to end soon: SIGUSR1 if `--signal` asks for it, SIGUSR2 in submitit's jobs.
REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, *REQUEUE_SIGNALS)


class Stopped(SystemExit):
    """A signal stopped the training. Ends the process with `code`, unless it is caught."""


class StopSignals:
    """Records stop signals instead of dying from them.

    A second SIGINT (Ctrl-C) ends the process at once, with exit code 130.

    `received` is the first signal, None until there is one.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interrupts = 0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handles the signals within the block, and restores their handlers after it."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self.install()
        try:
            yield
        finally:
            if _in_main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def install(self) -> None:
        """Installs the handlers, in the main thread only: Python allows it nowhere else."""
        if _in_main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            os._exit(130)

        if self.received is None:
            self.received = signal.Signals(number)
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        write_to_stderr(f"\n{signal.Signals(number).name}: stopping after this step{again}")


def exit_code(number: signal.Signals) -> int:
    """Returns the exit code of a run that this signal stopped: 130 for SIGINT, otherwise 75 ("try again later")."""
    return 130 if number == signal.SIGINT else os.EX_TEMPFAIL


def write_to_stderr(line: str) -> None:
    """Writes a line to stderr directly: `print` is not safe in a signal handler, and stderr may be closed."""
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{line}\n".encode())


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
