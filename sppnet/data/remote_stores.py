"""Stores at addresses such as s3://bucket/store: downloaded once into a cache folder, and read from there."""

import fcntl
import glob
import hashlib
import json
import os
import posixpath
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppnet.runtime.cluster import is_first_process
from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import first_line
from sppnet.runtime.progress import Progress, Waiting

# Files of a store as `datasets` writes it, and the report of prepare_data.py, which may be missing.
SPLITS_FILE, REPORT_FILE = "dataset_dict.json", "report.json"
_SPLIT_FILES = ("state.json", "dataset_info.json")

_THREADS, _BLOCK = 8, 8 << 20  # files downloaded at once, and the bytes of one request
# Seconds and repetitions: a server that no longer answers is given up after two minutes, where botocore takes 25.
_S3_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 10, "retries": {"max_attempts": 1}}
_CONNECTION_ERRORS = {"ConnectionError", "HTTPClientError", "TimeoutError", "ClientConnectionError"}


@dataclass(frozen=True)
class _RemoteStore:
    """The files of a store at an address, as they are now."""

    address: str
    filesystem: Any  # of fsspec
    path: str  # of the store in `filesystem`
    sizes: dict[str, int]  # file -> bytes; SPLITS_FILE is the last one
    version: str  # another one when a file is replaced


def is_remote(root: str) -> bool:
    """Whether a place is an address rather than a folder."""
    return "://" in root


def local_copy(address: str) -> Path:
    """Returns a folder with the files of a remote store, and downloads those that are not in it yet.

    The folder is in the cache of `datasets`. If the store is replaced, the new one gets another folder: running
    processes have the files of the old one mapped into memory. If the server cannot be reached, the newest finished
    copy is used, with a warning.

    Raises FileNotFoundError naming a file that the store lacks, ImportError for a missing package, and the many errors
    of `fsspec` and the packages below it.
    """
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE, "stores")
    name = f"{posixpath.basename(address.rstrip('/'))}-{_short_hash(address.rstrip('/'))}"
    try:
        with _waiting(f"{address}: waiting for the server"):
            store = _remote_store(address)
    except Exception as error:
        copy = _newest_copy(cache, name) if _is_connection_error(error) else None
        if copy is None:
            raise
        if is_first_process():
            print(f"warning: {address}: no connection ({first_line(error)}); using the copy in {copy}", file=sys.stderr)
        return copy

    folder = cache / f"{name}-{store.version}"
    if _missing_files(store, folder):
        with _locked(folder, address):
            _download(store, folder)
    return folder


# What is at the address.


def _remote_store(address: str) -> _RemoteStore:
    filesystem, path = _filesystem(address)
    filesystem.invalidate_cache()  # kept by fsspec as long as the process lives
    found = _listed(filesystem, path)
    if not found:
        raise FileNotFoundError("nothing is there; check the names of the bucket and of the folder")
    wanted = [REPORT_FILE] if REPORT_FILE in found else []
    for split in _splits(filesystem, path, found):
        found |= {f"{split}/{file}": entry for file, entry in _listed(filesystem, f"{path}/{split}").items()}
        wanted += _split_files(filesystem, path, split, found)
    wanted.append(SPLITS_FILE)  # the last one: a copy that has it is finished

    entries = {file: found[file] for file in wanted}
    tags = {file: str(entry.get("ETag") or filesystem.ukey(entry["name"])) for file, entry in entries.items()}
    sizes = {file: int(entry["size"]) for file, entry in entries.items()}
    return _RemoteStore(address, filesystem, path, sizes, _short_hash(json.dumps([sizes, tags], sort_keys=True)))


def _filesystem(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec

    limit_waiting()
    filesystem, path = fsspec.core.url_to_fs(address)
    return filesystem, str(path).rstrip("/")


def limit_waiting() -> None:
    """Makes s3fs give up a server that no longer answers. What the user has set for fsspec counts more."""
    import fsspec

    options = fsspec.config.conf.setdefault("s3", {})
    options["config_kwargs"] = _S3_TIMEOUTS | options.get("config_kwargs", {})


def _listed(filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    """The files directly in a remote folder by name; empty if there is no such folder."""
    try:
        entries = filesystem.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {posixpath.basename(entry["name"]): entry for entry in entries if entry["type"] == "file"}


def _splits(filesystem: Any, path: str, found: dict[str, Any]) -> list[str]:
    _check_there(SPLITS_FILE, found)
    content = json.loads(filesystem.cat_file(f"{path}/{SPLITS_FILE}"))
    return [_plain_name(split) for split in content["splits"]]


def _split_files(filesystem: Any, path: str, split: str, found: dict[str, Any]) -> list[str]:
    """The files of a split. FileNotFoundError if one of them is not `found`."""
    for file in _SPLIT_FILES:
        _check_there(f"{split}/{file}", found)
    state = json.loads(filesystem.cat_file(f"{path}/{split}/state.json"))
    data_files = [_plain_name(entry["filename"]) for entry in state["_data_files"]]
    files = [f"{split}/{file}" for file in (*data_files, *_SPLIT_FILES)]
    for file in files:
        _check_there(file, found)
    return files


def _check_there(file: str, found: dict[str, Any]) -> None:
    if file not in found:
        raise FileNotFoundError(f"{file} is missing: not a prepared store, or not copied there completely")


def _plain_name(name: str) -> str:
    """Returns a name that a store gives. ValueError if it is a path, which could be outside of the copy."""
    if name != posixpath.basename(name) or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not the name of a file")
    return name


def _is_connection_error(error: BaseException) -> bool:
    """Whether a server could not be reached. Packages have errors of their own for that, some not even an OSError."""
    return any(kind.__name__ in _CONNECTION_ERRORS for kind in type(error).__mro__)


# The copy.


def _missing_files(store: _RemoteStore, folder: Path) -> list[str]:
    def is_there(file: str) -> bool:
        with suppress(FileNotFoundError):
            return (folder / file).stat().st_size == store.sizes[file]
        return False

    return [file for file in store.sizes if not is_there(file)]


def _newest_copy(cache: Path, name: str) -> Path | None:
    finished = sorted(cache.glob(f"{glob.escape(name)}-*/{SPLITS_FILE}"), key=lambda file: file.stat().st_mtime)
    return finished[-1].parent if finished else None


@contextmanager
def _locked(folder: Path, address: str) -> Iterator[None]:
    """Lets one process of this machine download at a time. The lock ends with the process, however that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            with _waiting(f"{address}: another process is downloading it"):
                fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks on this file system: every process downloads, each to temporary files of its own
        yield


def _download(store: _RemoteStore, folder: Path) -> None:
    """Downloads the missing files, several at once. OSError if the connection is lost or the disk is full."""
    missing = _missing_files(store, folder)
    if not missing:  # another process has downloaded them meanwhile
        return
    total, left = sum(store.sizes.values()), sum(store.sizes[file] for file in missing)
    resumed = f"resuming after {_megabytes(total - left)} of " if left < total else ""
    print(f"downloading {store.address}: {resumed}{_megabytes(total)} into {folder}", flush=True)
    _check_space(folder, left)
    try:
        _fetch_all(store, folder, [file for file in missing if file != SPLITS_FILE])
        _fetch(store, folder, SPLITS_FILE, [], threading.Event())
    except Exception as error:
        raise OSError(f"{first_line(error)}; into {folder}; the same command resumes the download") from error


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"needs {_megabytes(size)} in {folder}, where {_megabytes(free)} are free; HF_DATASETS_CACHE=FOLDER is "
            "another place for it"
        )


def _fetch_all(store: _RemoteStore, folder: Path, files: list[str]) -> None:
    """Downloads files in threads, and shows the progress."""
    received: list[int] = []  # bytes, a number for each block
    stopped = threading.Event()
    total = sum(store.sizes[file] for file in files) // 10**6
    with ThreadPoolExecutor(_THREADS) as pool, Progress("download", total, "MB") as progress:
        waiting = {pool.submit(_fetch, store, folder, file, received, stopped) for file in files}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=1, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if new := sum(received) // 10**6 - progress.done:
                    progress.add(new)
        finally:
            stopped.set()  # after Ctrl-C or an error
            pool.shutdown(wait=True, cancel_futures=True)


def _fetch(store: _RemoteStore, folder: Path, file: str, received: list[int], stopped: threading.Event) -> None:
    """Downloads one file, which gets its name when it is complete."""
    # s3fs raises FileExpired for a file that is replaced meanwhile.
    remote = store.filesystem.open(f"{store.path}/{file}", "rb", block_size=_BLOCK, cache_type="none")
    with remote as source, atomic_file(folder / file) as target:
        while block := source.read(_BLOCK):
            if stopped.is_set():
                raise InterruptedError("stopped")
            target.write(block)
            received.append(len(block))
        if target.tell() != store.sizes[file]:
            raise OSError(f"{file} has {target.tell():,} bytes, expected {store.sizes[file]:,}")


# Words.


@contextmanager
def _waiting(title: str) -> Iterator[None]:
    with Waiting(title) if is_first_process() else nullcontext():
        yield


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 10**7 else f"{size / 1e6:.1f} MB"


def _short_hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
