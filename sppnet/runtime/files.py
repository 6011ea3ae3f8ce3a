"""Writes files atomically, and removes the temporary files of interrupted writes."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

# The one rule for temporary names: process PID writes NAME.partialPID, in the folder of NAME.
_TEMPORARY = re.compile(r"(.+)\.partial([1-9][0-9]*)")


@contextmanager
def atomic_file(path: Path, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Opens a file that replaces `path` when the block ends; after an error `path` is unchanged.

    The content is flushed to the disk before it gets its name, so that after a power failure `path` is the old file or
    the new one, never half of either. Missing folders are made. Temporary files that killed processes left of the same
    `path` are removed.

    Args:
        path: the file to write.
        previous: where to keep the old file at `path`, if there is one.
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
            _keep_as(path, previous)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _flush_names(path.parent)


def check_local(path: Path) -> None:
    """Raises ValueError for an address such as s3://bucket/name, which would become a folder called s3: here."""
    if match := re.match(r"([a-z][a-z0-9+.-]+):/+", str(path)):
        address = f"{match[1]}://{str(path)[match.end() :]}"
        raise ValueError(f"{address}: must be a place on this machine; nothing is written to addresses")


def check_place(path: Path) -> None:
    """Raises ValueError for a file that cannot be made: better now than after hours of work for it."""
    check_local(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise ValueError(f"{path}: must be a file, and is a folder")
    if not folder.is_dir():
        raise ValueError(f"{path}: must be in a folder, and {folder} is a file")


def _keep_as(path: Path, previous: Path) -> None:
    """Gives the file at `path`, if any, the name `previous` as well: `path` exists whenever this process dies."""
    link = previous.with_name(f"{previous.name}.partial{os.getpid()}")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
    except FileNotFoundError:
        return
    except OSError:  # no hard links on this file system
        with suppress(FileNotFoundError):
            path.replace(previous)
        return
    link.replace(previous)
    link.unlink(missing_ok=True)  # renaming one name of a file to another name of it does nothing


def keep_as(path: Path, other: Path) -> None:
    """Gives the file at `path` the name `other` as well, atomically, by a hard link or else as a copy.

    `other` is replaced, and never half written. `atomic_file` replaces one of both names and leaves the other.
    """
    link = other.with_name(f"{other.name}.partial{os.getpid()}")
    try:
        link.unlink(missing_ok=True)
        os.link(path, link)
    except OSError:  # no hard links on this file system
        with path.open("rb") as source, atomic_file(other) as file:
            shutil.copyfileobj(source, file)
        return
    link.replace(other)
    link.unlink(missing_ok=True)  # renaming one name of a file to another name of it does nothing
    _flush_names(other.parent)


def is_temporary(name: str) -> bool:
    """Whether this is a name that `atomic_file` gives to unfinished files."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_stale_files(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files in `folder`, or only those of the file `name`, whose processes no longer run.

    Keeps the files of running processes, and those that a process on another machine has locked. Call it before this
    process writes.
    """
    with suppress(OSError), os.scandir(folder) as entries:  # no such folder, or no permission to read it
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match and name in (None, match[1]) and _is_stale(Path(entry.path), int(match[2])):
                with suppress(OSError):  # removed by another process, or no permission
                    Path(entry.path).unlink()


def _is_stale(temporary: Path, process: int) -> bool:
    """Whether nobody writes a temporary file any more. `process` is the number in its name."""
    # A file with the number of this process is stale: in containers restarted processes often get the same number.
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
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _lock(file: BinaryIO) -> None:
    """Locks the file to mark that it is being written. The lock ends with the process, however that dies."""
    with suppress(OSError):  # no locks on this file system
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flush_names(folder: Path) -> None:
    """Flushes a folder, else a power failure could undo renamings in it. Some network file systems cannot."""
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
