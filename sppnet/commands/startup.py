"""Starts a command: what must be set before anything slow is imported. Imports the standard library only."""

import difflib
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

# Each is a module of this package, whose `command()` reads sys.argv.
COMMANDS = {
    "train": "train a classifier, resume it, or show its result",
    "evaluate": "test trained networks by the paper's protocols",
    "tables": "tables and plots from finished runs",
    "prepare_data": "make a store to train from at full speed",
    "benchmark": "measure training and testing on this machine",
}
_LINES = "\n".join(f"  {name:<14}{words}" for name, words in COMMANDS.items())
HELP = f"usage: sppnet COMMAND ...\n\n{_LINES}\n\nsppnet COMMAND --help shows the settings and examples of a command."
ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """The console command `sppnet`: its first word is the command to run."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(HELP)
        return
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: {command}: must be one of {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        sys.exit(2)
    # Lightning starts further processes by this file name, and Hydra takes the name of the job from it.
    sys.argv = [str(Path(__file__).with_name(f"{command}.py")), *rest]
    run(command)


def run(command: str) -> None:
    """Runs one of COMMANDS with the words in sys.argv[1:]."""
    prepare_process()
    import_module(f"sppnet.commands.{command}").command()


def prepare_process() -> None:
    """Sets how threads wait, makes Ctrl-C end with one line, and gives child processes the same checkout.

    All but Ctrl-C holds for child processes too.
    """
    if (ROOT / "scripts" / "train.py").is_file():
        # Children are started from other folders: by launchers such as submitit, by Lightning, as loader workers.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

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
