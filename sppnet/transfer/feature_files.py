"""Features on disk: one float16 row per image, memory-mapped, with a manifest; an interrupted extraction resumes.

Letters: n images, d values of a feature.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sppnet.runtime.files import atomic_file, write_json
from sppnet.runtime.names import first_line, printable

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
    """Opens the features in a folder that `make_features` made. Raises OSError or ValueError for damaged files."""
    mode: Any = "r+" if writable else "r"
    values, done = (np.lib.format.open_memmap(folder / name, mode=mode) for name in (_FEATURES, _DONE))
    return Features(folder, values, done)


@dataclass(frozen=True, eq=False)
class SavedFeatures:
    """Features that lie in a folder already.

    names: str (n,), of their images.
    digests: uint8 (n, 16): `content_digests` of their images.
    """

    features: Features
    names: np.ndarray
    digests: np.ndarray

    def are_of(self, names: np.ndarray, digests: np.ndarray) -> bool:
        """Whether they are of exactly these images, in this order."""
        return np.array_equal(self.names, names) and np.array_equal(self.digests, digests)


def read_saved_features(folder: Path, identity: dict[str, Any]) -> SavedFeatures | None:
    """Reads the features in a folder if there are any and they were made with this identity; else None.

    Damaged files are None as well, after a line that names the folder.
    """
    if not (folder / _MANIFEST).exists():
        return None
    try:
        return _read_saved(folder, identity)
    except Exception as error:  # damaged files fail in many ways
        print(f"{printable(str(folder))}: damaged, and made again ({printable(first_line(error))})", flush=True)
        return None


def _read_saved(folder: Path, identity: dict[str, Any]) -> SavedFeatures | None:
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    if any(manifest.get(key) != value for key, value in _stated(identity).items()):
        return None
    with (folder / _IMAGES).open("rb") as file, np.load(file, allow_pickle=False) as images:
        names, digests = images["names"], images["digests"]
    features = open_features(folder)
    values, done = features.values, features.done

    if manifest["images"] != _fingerprint(names, digests) or manifest["shape"] != list(values.shape):
        raise ValueError("the manifest is of other features")
    if not len(names) == len(digests) == len(values) or done.shape != names.shape:
        raise ValueError("the files are of different numbers of images")
    if values.dtype != np.float16 or done.dtype != np.bool_:
        raise ValueError(f"values of {values.dtype} and marks of {done.dtype}")
    return SavedFeatures(features, names, digests)


def make_features(
    folder: Path,
    identity: dict[str, Any],
    names: np.ndarray,
    digests: np.ndarray,
    length: int,
    saved: SavedFeatures | None = None,
) -> Features:
    """Makes the files of features in a folder, to be written, in place of those that are there.

    They take over the rows of images with the same name and content from `saved`. If that fails or is killed, the old
    files remain.

    Args:
        folder: of one layer; hold `folder_lock` of it.
        identity: plain values; everything but the images that decides the features.
        names: str (n,), of the images.
        digests: uint8 (n, 16): `content_digests` of the images.
        length: values of a feature.
        saved: `read_saved_features` of the same folder and identity.

    Raises OSError if the disk has too little space.
    """
    kept = _common_rows(saved, names, digests) if saved is not None and saved.features.length == length else []
    done = np.zeros(len(names), bool)
    done[[new for new, _ in kept]] = True
    if not kept:  # their space may be needed
        for name in (_MANIFEST, _FEATURES):
            (folder / name).unlink(missing_ok=True)

    with (
        _naming(folder),
        atomic_file(folder / _IMAGES) as images_file,
        atomic_file(folder / _DONE) as done_file,
        atomic_file(folder / _FEATURES) as values_file,
    ):
        start = _allocate(values_file, (len(names), length))
        if saved is not None:
            for new, row in kept:
                values_file.seek(start + 2 * length * new)
                values_file.write(saved.features.values[row].tobytes())
        done_file.write(_npy(done))
        np.savez(images_file, names=names, digests=digests)
        values_file.flush()
        os.fsync(values_file.fileno())
        # From here until the new manifest, a moment, the files do not belong together.
        (folder / _MANIFEST).unlink(missing_ok=True)

    shape = [len(names), length]
    write_json(folder / _MANIFEST, {**_stated(identity), "images": _fingerprint(names, digests), "shape": shape})
    return open_features(folder)


def _stated(identity: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries of a manifest that do not depend on the images, after a round trip through JSON."""
    stated: dict[str, Any] = json.loads(json.dumps({**identity, "dtype": "float16"}))
    return stated


def _fingerprint(names: np.ndarray, digests: np.ndarray) -> str:
    """Returns a hash of the names and contents of images, in order."""
    return hashlib.sha256(json.dumps(names.tolist()).encode() + digests.tobytes()).hexdigest()


def _common_rows(saved: SavedFeatures, names: np.ndarray, digests: np.ndarray) -> list[tuple[int, int]]:
    """Returns (new index, old index) of the images with the same name and content whose features are done."""
    index_of = {key: i for i, key in enumerate(_keys(saved.names, saved.digests)) if saved.features.done[i]}
    return [(new, index_of[key]) for new, key in enumerate(_keys(names, digests)) if key in index_of]


def _keys(names: np.ndarray, digests: np.ndarray) -> Iterator[tuple[str, bytes]]:
    return zip(names.tolist(), map(bytes, digests), strict=True)


def _npy(array: np.ndarray) -> bytes:
    """Returns the content of a .npy file. On a full disk np.save reports only the bytes written."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _allocate(file: BinaryIO, shape: tuple[int, int]) -> int:
    """Makes a .npy file of float16 zeros whose space on the disk is taken, and returns where the values start.

    In a sparse file, a full disk would kill the process that writes to the mapped memory.
    """
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
    file.flush()
    start, size = file.tell(), 2 * shape[0] * shape[1]
    if not hasattr(os, "posix_fallocate"):  # on macOS
        file.truncate(start + size)
        return start
    try:
        os.posix_fallocate(file.fileno(), start, size)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({size:,} bytes of features)", file.name) from error
    return start


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Adds the folder to errors that name no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, so that one process at a time extracts into it. The lock ends with the process.

    Waits for another process that holds it, and raises TimeoutError naming it after LOCK_TIMEOUT seconds. A folder that
    cannot be written to, on read-only media for example, has no lock: features can only be read there.
    """
    file = _open_lock(folder)
    if file is None:
        yield
        return

    with file:
        _wait_for_lock(file, folder)
        with suppress(OSError):  # a full disk is no reason not to read
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()}".encode())
        try:
            yield
        finally:
            file.truncate(0)


def _open_lock(folder: Path) -> TextIO | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / _LOCK).open("a+")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return None
        raise


def _wait_for_lock(file: TextIO, folder: Path) -> None:
    deadline, waiting = time.monotonic() + LOCK_TIMEOUT, False
    while not _try_lock(file.fileno()):
        if not waiting:
            file.seek(0)
            holder = file.read() or "another process"
            print(f"{printable(str(folder))}: waiting for {holder}, which extracts into it", flush=True)
            waiting = True
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder}: another process extracts into it, for {LOCK_TIMEOUT / 3600:g} hours now")
        time.sleep(0.2)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # no locks on this file system
        return True
    return True
