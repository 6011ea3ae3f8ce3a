"""Runs a command and its jobs so that errors and Ctrl-C end in one line and an exit code."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tqdm import tqdm

from sppnet.commands.arguments import checked_arguments
from sppnet.commands.errors import before_job_error, is_before_job, is_broken_pipe, one_line_errors, wants_traceback
from sppnet.commands.startup import interrupt_by_exception, quiet_broken_pipe
from sppnet.commands.sweeps import in_sweep
from sppnet.runtime.names import printable


def run_main(main: Callable[[], Any]) -> None:
    """Calls a function made by `hydra.main`. Whatever is wrong with the command becomes one line and exit code 2."""
    if not wants_traceback():
        # Hydra prints errors over many lines unless HYDRA_FULL_ERROR makes it raise them. Child processes inherit both.
        os.environ |= {"HYDRA_FULL_ERROR": "1", "SPPNET_ONE_LINE": "1"}
    with one_line_command():
        sys.argv[1:] = checked_arguments(sys.argv[1:])
        try:
            main()
        except Exception as error:
            if wants_traceback() or not is_before_job(error) or is_broken_pipe(error):
                raise
            raise before_job_error(error) from error


@contextmanager
def one_line_command() -> Iterator[None]:
    """Around a whole command: as `one_line_errors`, and Ctrl-C becomes one line and exit code 130."""
    try:
        with one_line_errors():
            yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@contextmanager
def one_line_job(after_interrupt: str) -> Iterator[None]:
    """Around a job that Hydra runs: as `one_line_errors`, without Hydra's own words about it.

    In a sweep errors pass, so that Hydra runs the other jobs and reports which one failed.

    Args:
        after_interrupt: what the line about Ctrl-C adds.
    """
    interrupt_by_exception()
    # tqdm writes above a progress bar, if there is one.
    warnings.showwarning = lambda message, *_: tqdm.write(f"warning: {printable(str(message))}", file=sys.stderr)
    try:
        with quiet_broken_pipe(), nullcontext() if in_sweep() else one_line_errors():
            yield
    except KeyboardInterrupt:
        print(f"interrupted; {after_interrupt}", file=sys.stderr)
        sys.exit(130)
