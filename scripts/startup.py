"""What every command sets before it imports anything that takes long. Imports the standard library only."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent


def prepare_process() -> None:
    """Puts this checkout before an installed one, sets how threads wait, and makes Ctrl-C end with one line.

    All but the last holds for child processes too.
    """
    places = [str(SCRIPTS.parent), str(SCRIPTS)]
    sys.path[:0] = places
    # Children are started from other folders: by launchers such as submitit, by Lightning, as loader workers.
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])

    # Threads that spin while they wait for each other take the cores from loader processes and other programs: on two
    # busy cores, training fell from 540 to 16 images/s with spinning, to 390 without. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell lets background jobs ignore it
        signal.signal(signal.SIGINT, _interrupted)


def interrupt_by_exception() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, so that what is open can be saved and closed."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(number: int, frame: Any) -> None:
    # Nothing is open yet, and an exception in the middle of an import shows a traceback whoever catches it.
    os.write(2, b"interrupted; nothing was started\n")
    os._exit(130)
