"""Writing files atomically, and removing the temporary files of writes that were interrupted."""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

# The one rule for temporary names: NAME.partialPID, in the folder of NAME, for process PID.
_TEMPORARY = re.compile(r"(.+)\.partial([1-9][0-9]*)")


@contextmanager
def atomic_file(path: Path, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` when the block ends; after an error `path` is as it was.

    The content is flushed to the disk before it gets its name, so that after a power failure `path` is the old file or
    the new one, never half of either. Folders that are missing are made. Temporary files that killed processes left of
    the same `path` are removed.

    Args:
        previous: the name under which the file that was at `path`, if any, is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_files(path.parent, path.name)
    temporary = path.with_name(f"{path.name}.partial{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None:
            with suppress(FileNotFoundError):
                path.replace(previous)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _flush_names(path.parent)


def is_temporary(name: str) -> bool:
    """Whether `atomic_file` gives this name to an unfinished file."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_stale_files(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files in `folder`, or those of the file `name` only, whose processes no longer run.

    Files of running processes, here or on another machine that locks them, are left alone. Call it before this process
    writes.
    """
    with suppress(OSError), os.scandir(folder) as entries:  # not there, or not ours to read
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match and name in (None, match[1]) and _is_stale(Path(entry.path), int(match[2])):
                with suppress(OSError):  # removed by another process, or not ours to remove
                    os.unlink(entry.path)


def _is_stale(temporary: Path, process: int) -> bool:
    # In containers a restarted process often has the number of the one before it.
    if process != os.getpid() and _is_running(process):
        return False
    try:
        # The process may run in another container or on another machine, where its number says nothing.
        with temporary.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError, FileNotFoundError):
        return False
    except OSError:  # no locks on this file system
        return True
    return True


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _lock(file: BinaryIO) -> None:
    """Marks the file as being written. The lock ends with the process, however that dies."""
    with suppress(OSError):  # no locks on this file system
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flush_names(folder: Path) -> None:
    """Without it, a power failure could undo the renaming. Some network file systems cannot."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    with atomic_file(path) as file:
        file.write(f"{json.dumps(content, indent=2)}\n".encode())
