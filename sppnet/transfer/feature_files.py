"""Features on disk: one float16 row per image, memory-mapped, with a manifest; an interrupted extraction resumes.

Letters: n images, d values of a feature.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sppnet.runtime.files import atomic_file, write_json

# A folder holds the features of one layer in these files.
_FEATURES, _DONE, _IMAGES, _MANIFEST, _LOCK = "features.npy", "done.npy", "images.npz", "manifest.json", "lock"

LOCK_TIMEOUT = 6 * 3600.0  # seconds to wait for another process that extracts into the same folder


@dataclass(frozen=True, eq=False)
class Features:
    """The features of images by one layer, in a folder.

    values: float16 (n, d), memory-mapped; rows are l2-normalized, or 0 where the feature is 0 everywhere.
    done: bool (n,), memory-mapped; rows that have been written.
    """

    folder: Path
    values: np.ndarray
    done: np.ndarray

    @property
    def length(self) -> int:
        """The number of values of a feature, d."""
        return int(self.values.shape[1])

    def rows(self, indices: np.ndarray | slice, device: str = "cpu") -> Tensor:
        """Reads rows: float32 (k, d) of length 1, which float16 has only nearly, or 0."""
        rows = torch.from_numpy(np.array(self.values[indices])).to(device)
        return F.normalize(rows.float(), dim=1)

    def write(self, indices: Sequence[int], rows: np.ndarray) -> None:
        """Writes rows, float16 (k, d), but does not mark them as done."""
        self.values[indices] = rows

    def mark_done(self, indices: Sequence[int]) -> None:
        """Marks rows as done, after what has been written is on the disk."""
        self.values.flush()  # type: ignore[attr-defined]
        self.done[indices] = True
        self.done.flush()  # type: ignore[attr-defined]


def open_features(folder: Path, *, writable: bool = False) -> Features:
    """Opens the features in a folder that `prepare_features` made."""
    mode: Any = "r+" if writable else "r"
    return Features(folder, np.load(folder / _FEATURES, mmap_mode=mode), np.load(folder / _DONE, mmap_mode=mode))


def prepare_features(
    folder: Path, identity: dict[str, Any], names: np.ndarray, digests: np.ndarray, length: int
) -> Features:
    """Opens the features in a folder if they are those asked for; otherwise makes new files.

    New files take over the rows of images with the same name and content if these were made with the same identity.

    Args:
        folder: of one layer; hold `folder_lock` of it.
        identity: plain values; everything but the images that decides the features.
        names: str (n,), of the images.
        digests: uint8 (n, 16): `content_digests` of the images.
        length: values of a feature.

    Raises OSError if the disk has too little space.
    """
    manifest = {**identity, "dtype": "float16", "shape": [len(names), length]}
    old = _read_old(folder, identity)
    if old is not None and _holds(old, names, digests, length):
        return open_features(folder)

    kept = _common_rows(old, names, digests) if old is not None else []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)  # until all files belong together
    with atomic_file(folder / _DONE) as file:
        done = np.zeros(len(names), bool)
        done[[new for new, _ in kept]] = True
        np.save(file, done)
    with atomic_file(folder / _FEATURES) as file:
        _allocate(file.fileno(), file.name, (len(names), length))
        values = np.load(file.name, mmap_mode="r+")
        for new, row in kept:
            values[new] = row
        values.flush()
    with atomic_file(folder / _IMAGES) as file:
        np.savez(file, names=names, digests=digests)
    write_json(folder / _MANIFEST, manifest)
    return open_features(folder)


@dataclass(frozen=True, eq=False)
class _Old:
    """Features that lie in a folder already."""

    names: np.ndarray
    digests: np.ndarray
    values: np.ndarray
    done: np.ndarray


def _read_old(folder: Path, identity: dict[str, Any]) -> _Old | None:
    """Reads the features in a folder if they were made with this identity; None if not, or if files are damaged."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if any(manifest.get(key) != json.loads(json.dumps(value)) for key, value in identity.items()):
            return None
        with np.load(folder / _IMAGES, allow_pickle=False) as images:
            names, digests = images["names"], images["digests"]
        features = open_features(folder)
        if list(features.values.shape) != list(manifest["shape"]) or features.values.dtype != np.float16:
            return None
        if not len(names) == len(digests) == len(features.values) == len(features.done):
            return None
    except Exception:  # damaged files fail in many ways, and are only made again
        return None
    return _Old(names, digests, features.values, features.done)


def _holds(old: _Old, names: np.ndarray, digests: np.ndarray, length: int) -> bool:
    same_images = np.array_equal(old.names, names) and np.array_equal(old.digests, digests)
    return same_images and old.values.shape[1] == length


def _common_rows(old: _Old, names: np.ndarray, digests: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Returns (new index, row) for the images with the same name and content whose features are done."""
    rows = {
        (name, digest.tobytes()): row
        for name, digest, row, done in zip(old.names.tolist(), old.digests, old.values, old.done, strict=True)
        if done
    }
    keys = [(name, digest.tobytes()) for name, digest in zip(names.tolist(), digests, strict=True)]
    return [(new, rows[key]) for new, key in enumerate(keys) if key in rows]


def _allocate(descriptor: int, path: str, shape: tuple[int, int]) -> None:
    """Makes a .npy file of float16 zeros whose space on the disk is taken.

    In a sparse file, a full disk would kill the process that writes to the mapped memory.
    """
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    with os.fdopen(os.dup(descriptor), "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start, size = file.tell(), 2 * shape[0] * shape[1]
    if not size:
        return
    if hasattr(os, "posix_fallocate"):  # not on macOS
        try:
            os.posix_fallocate(descriptor, start, size)
            return
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} ({size:,} bytes of features)", path) from error
    os.truncate(descriptor, start + size)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, so that one process at a time extracts into it. The lock ends with the process.

    Waits for another process that holds it, and raises TimeoutError naming it after LOCK_TIMEOUT seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+") as file:
        deadline, waiting = time.monotonic() + LOCK_TIMEOUT, False
        while not _try_lock(file.fileno()):
            if not waiting:
                file.seek(0)
                print(f"{folder}: waiting for {file.read() or 'another process'}, which extracts into it", flush=True)
                waiting = True
            if time.monotonic() > deadline:
                raise TimeoutError(f"{folder}: another process extracts into it, for {LOCK_TIMEOUT / 3600:g} hours now")
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # no locks on this file system
        return True
    return True
