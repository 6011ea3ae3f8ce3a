"""Starts a command: sets what must be set before anything slow is imported. Imports no other package."""

import difflib
import gc
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from sppnet.runtime.checkout import ROOT, is_checkout

# Modules of this package, whose function `command` reads sys.argv.
COMMANDS = {
    "train": "train a classifier, resume it, or show its result",
    "evaluate": "test trained networks by the paper's protocols",
    "transfer": "test frozen features on other data by linear SVMs",
    "detect": "train detectors on the feature maps of a classifier, and test them",
    "predict": "label photos by a trained classifier, or find objects in them by a detector",
    "explain": "show what a trained network looks at, in a data set or in photos",
    "export": "export a trained network to a file that runs without this package",
    "publish": "publish a classifier in a folder or on the Hugging Face Hub, with a model card",
    "tables": "tables and plots from finished runs",
    "report": "pages about finished runs: learning curves, mistakes with images, calibration",
    "prepare_data": "make a store to train from at full speed",
    "benchmark": "measure training and testing on this machine",
}
_LINES = "\n".join(f"  {name:<14}{summary}" for name, summary in COMMANDS.items())
_HELP = f"usage: sppnet COMMAND ...\n\n{_LINES}\n\nsppnet COMMAND --help shows the settings and examples of a command."


def main() -> None:
    """Runs the console command `sppnet`: its first word is the command to run."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        with quiet_broken_pipe():
            print(_HELP)
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
    with quiet_broken_pipe():
        import_module(f"sppnet.commands.{command}").command()


@contextmanager
def quiet_broken_pipe() -> Iterator[None]:
    """Ends the process quietly with exit code 141 if nobody reads its output any more, as after `| head -1`.

    That is the code of programs which SIGPIPE ends. Python ignores SIGPIPE, so training
    can still save a checkpoint.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # at the exit of the interpreter an error would be a traceback
    except BrokenPipeError:
        closed = closed_outputs()
        if not closed:  # another pipe, such as that to a loader process
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in closed:
            os.dup2(nowhere, stream.fileno())  # for what is still in its buffer
        sys.exit(128 + signal.SIGPIPE)


def closed_outputs() -> list[TextIO]:
    """Returns those of stdout and stderr that are pipes without a reader."""
    closed = []
    for stream in filter(None, (sys.stdout, sys.stderr)):
        poll = select.poll()
        with suppress(OSError):  # a stream that is no file
            poll.register(stream.fileno(), 0)  # 0: errors only
            if poll.poll(0):
                closed.append(stream)
    return closed


def prepare_process() -> None:
    """Sets how threads wait, how often garbage is collected, what Ctrl-C does, and what child processes import.

    Ctrl-C ends the command with one line. Child processes import this checkout and wait in the same way.
    """
    if is_checkout():
        # Children are started from other folders: by launchers such as submitit, by Lightning, as loader workers.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

    # Threads that spin long while they wait for each other take the cores from loader processes and other programs:
    # on two busy cores, training fell from 540 to 16 images/s with spinning, to 390 without. Threads that sleep at once
    # have to be woken for every operation, which on virtual machines takes longer than most operations: ZF-5 then
    # trains 1.6 times as slowly. A thousand turns bridge the time between two operations. Read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")

    # Python's default, a collection every 700 new objects, takes more than a tenth of the start of training, in which
    # most objects are what libraries define.
    gc.set_threshold(5000)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell lets background jobs ignore it
        signal.signal(signal.SIGINT, _interrupted)


def interrupt_by_exception() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt from here on, so that what is open can be saved and closed."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(number: int, frame: Any) -> None:
    # Nothing is open yet, and an exception in the middle of an import shows a traceback whoever catches it.
    os.write(2, b"interrupted; nothing was started\n")
    os._exit(130)
