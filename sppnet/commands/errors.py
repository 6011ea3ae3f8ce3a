"""Turns errors into one line on the terminal that names the key, the value and what is allowed."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from sppnet.commands.configs import choices, compose_here, given_overrides, suits
from sppnet.commands.hints import no_such_choice, no_such_key
from sppnet.commands.startup import closed_outputs
from sppnet.runtime.names import printable


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns an error that the user can correct into one line on stderr and exit code 2.

    HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    try:
        yield
    except Exception as error:
        if wants_traceback() or not is_user_error(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def configuration_errors() -> Iterator[None]:
    """Around code that only reads the configuration: raises ValueError in place of errors that look like bugs.

    One example is OverflowError: where only a configuration is read, a value of the user's is the cause.
    """
    try:
        yield
    except Exception as error:
        if is_user_error(error) or is_broken_pipe(error):
            raise
        words = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"the configuration cannot be used ({words}); HYDRA_FULL_ERROR=1 shows where that happens"
        ) from error


def wants_traceback() -> bool:
    """Whether the user has set HYDRA_FULL_ERROR=1. Commands set it too, together with SPPNET_ONE_LINE."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1" and "SPPNET_ONE_LINE" not in os.environ


def is_user_error(error: Exception) -> bool:
    """Whether an error is caused by the user's input, files or machine rather than by a bug."""
    if is_broken_pipe(error):
        return False
    # Lightning's and torch's, by name: importing them takes seconds.
    names = {"MisconfigurationException", "OutOfMemoryError"}
    kinds = (ValueError, OSError, MemoryError, yaml.YAMLError, OmegaConfBaseException, HydraException)
    return type(error).__name__ in names or isinstance(error, kinds) or "can't allocate memory" in str(error)


def is_broken_pipe(error: Exception) -> bool:
    """Whether nobody reads the output any more, as after `| head -1`; `startup.quiet_broken_pipe` ends the command."""
    return isinstance(error, BrokenPipeError) and bool(closed_outputs())


def is_before_job(error: Exception) -> bool:
    """Whether Hydra had not called the command's function yet, and so was reading the configuration."""
    return all(frame.f_code.co_name != "run_job" for frame, _ in traceback.walk_tb(error.__traceback__))


def before_job_error(error: Exception) -> ValueError:
    """Returns the same error in one line that names the override which caused it, if there is one."""
    words = one_line(error) if is_user_error(error) else f"{type(error).__name__}: {one_line(error)}"
    named = [word for word in given_overrides() if word in words or _key(word) in words]
    culprit = None if named else next((word for word in given_overrides() if _fails_by_itself(word, error)), None)
    if culprit is None:
        return ValueError(words)
    options = choices(_key(culprit))
    return ValueError(f"{culprit}: must be one of {', '.join(options)}" if options else f"{culprit}: {words}")


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _fails_by_itself(override: str, error: Exception) -> bool:
    """Whether composing the configuration with this override only fails in the same way."""
    try:
        compose_here([override])
    except Exception as other:
        return type(other) is type(error)
    return False


def one_line(error: Exception) -> str:
    """Returns what to say about an error, without line breaks and control characters."""
    words = " ".join(line.strip() for line in _words(error).splitlines())
    return printable(words)


def _words(error: Exception) -> str:
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        options = [option for option in error.options or choices(group) if suits(Path(sys.argv[0]).stem, group, option)]
        return no_such_choice(group, choice, options)
    if isinstance(error, HydraException) and (match := re.match(r"Could not override '([\w./@]+)'", text)):
        return no_such_key(match[1])
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _configuration_words(error)
    if isinstance(error, yaml.YAMLError):
        return f"cannot be read as YAML: {text}"
    if isinstance(error, MemoryError) and not text:
        return "out of memory"
    if text.startswith("Caught ") and "Original Traceback" in text:  # by torch, in a loader process
        return re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1].strip()
    return text or type(error).__name__


def _configuration_words(error: HydraException | OmegaConfBaseException) -> str:
    """Returns the first lines of an error of Hydra or OmegaConf, with the key that it names and its cause."""
    text = " ".join(line.strip() for line in str(getattr(error, "msg", None) or error).splitlines()[:2])
    if key := getattr(error, "full_key", None):
        return f"{key}: {text.split(' full_key: ')[0]}"
    cause = error.__cause__
    return f"{text}: {str(cause).splitlines()[0]}" if text.startswith("Error merging override") and cause else text
