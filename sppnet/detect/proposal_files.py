"""Proposals on disk: the windows of every image in a file of its own, computed once by several processes.

Letters: n images, K windows.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from sppnet.data.images import UnreadableImage, decode_image
from sppnet.data.sources import Images, content_digests, read_image, skip_hint
from sppnet.detect.proposals import Proposer, chosen_windows
from sppnet.runtime.files import atomic_file, write_json
from sppnet.runtime.loaders import WatchedLoader
from sppnet.runtime.machine import worker_count
from sppnet.runtime.names import printable
from sppnet.runtime.processes import explained_loader_failures, start_loader_worker
from sppnet.runtime.progress import Progress

# The version of the code that proposes windows. Raise it when windows of unchanged settings change.
PROPOSAL_RULES = 1


@dataclass(frozen=True, eq=False)
class Proposals:
    """The windows of images, read from their files when they are asked for.

    folder: of the files.
    names: of the images.
    digests: uint8 (n, 16), their `content_digests`.
    most: windows of an image at most.
    ranked: whether files hold the best windows first.
    seed: chooses the windows to keep where they are not ranked.
    """

    folder: Path
    names: Sequence[str]
    digests: np.ndarray
    most: int
    ranked: bool
    seed: int

    def __len__(self) -> int:
        return len(self.names)

    def windows(self, index: int) -> np.ndarray:
        """Reads the windows of an image: int64 (K, 4), half-open (x0, y0, x1, y1) in pixels.

        Of more than `most` they are `chosen_windows`.

        Raises FileNotFoundError or ValueError if the file was removed or damaged.
        """
        windows = _read_windows(self.path(index))
        return chosen_windows(windows, most=self.most, ranked=self.ranked, seed=self.seed, name=self.names[index])

    def path(self, index: int) -> Path:
        """The file of an image, by its content and its name, which the windows of a `WindowFile` depend on."""
        name = self.names[index].encode(errors="surrogateescape")
        key = hashlib.blake2b(self.digests[index].tobytes() + name, digest_size=16).hexdigest()
        return self.folder / key[:2] / f"{key}.npy"  # in 256 folders, because writing lists the files beside


def compute_proposals(
    images: Images,
    proposer: Proposer,
    folder: Path,
    *,
    digests: np.ndarray | None = None,
    workers: int | None = None,
    seed: int = 0,
    most: int = 2000,
) -> Proposals:
    """Proposes windows of every image by several processes, and keeps them in `folder`. Shows its progress.

    A folder in it, named by the proposer and its settings, which are in settings.json, holds all windows of each image
    in a .npy file, int16 (K, 4). Images whose file exists are left out: an interrupted computation resumes, and several
    may run at once. Damaged files are computed again. `most` and `seed` choose among the windows when they are read.

    Args:
        images: the images.
        proposer: finds the windows.
        folder: where windows are kept, of any images and proposers.
        digests: `content_digests` of the images; None computes them.
        workers: processes; None: one per core, at most 16; 0: this one.
        seed: from 0.
        most: windows of an image, from 1.

    Raises ValueError for values out of range, images that are too large, and what the proposer raises; UnreadableImage
    for an image that cannot be read; OSError of one line if a process fails.
    """
    for name, value, least in [("most", most, 1), ("seed", seed, 0)]:
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    workers = worker_count(workers)
    names = [images.name(i) for i in range(len(images))]
    digests = content_digests(images, "reading the images") if digests is None else digests

    settings = {"rules": PROPOSAL_RULES, **proposer.settings()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    top = folder / f"{settings['proposer']}-{digest}"
    if not (top / "settings.json").exists():
        write_json(top / "settings.json", settings)

    proposals = Proposals(top, names, digests, most, proposer.ranked, seed)
    left = _without_file(proposals)
    if left:
        _propose(_ProposedImages(images, proposer, proposals), left, workers, len(images))
    return proposals


def _without_file(proposals: Proposals) -> list[int]:
    """The first image of every file that is missing or damaged. Prints a line for each damaged one."""
    left: dict[Path, int] = {}
    for index in range(len(proposals)):
        path = proposals.path(index)
        try:
            _read_windows(path)
        except FileNotFoundError:
            left.setdefault(path, index)
        except ValueError as error:
            if path not in left:
                print(f"{error}; computing it again", flush=True)
            left.setdefault(path, index)
    return list(left.values())


def _propose(images: "_ProposedImages", left: Sequence[int], workers: int, count: int) -> None:
    """Writes the files of the images at `left`."""
    if len(left) < count:
        print(f"proposals: resuming after {count - len(left):,} of {count:,} images", flush=True)

    loader = WatchedLoader(
        images,
        batch_size=None,
        sampler=left,
        num_workers=min(workers, len(left)),
        worker_init_fn=start_loader_worker,
    )

    with (
        explained_loader_failures("hardware.workers"),
        _opencv_in_one_thread(),
        Progress("proposals", len(left)) as bar,
    ):
        done = iter(loader)
        try:
            for _ in done:
                bar.add(1)
        finally:
            if workers:
                done._shutdown_workers()  # type: ignore[attr-defined]


class _ProposedImages(Dataset[int]):
    """Reads an image, writes the file of its windows, and returns its index: in a loader process."""

    def __init__(self, images: Images, proposer: Proposer, proposals: Proposals) -> None:
        self.images, self.proposer, self.proposals = images, proposer, proposals

    def __getitem__(self, index: int) -> int:
        path = self.proposals.path(index)
        if not _is_sound(path):  # another command may have written it by now
            encoded, name = read_image(self.images, index)
            try:
                image = decode_image(encoded, name)
            except UnreadableImage as error:
                raise UnreadableImage(f"{error}; {skip_hint(name)}") from error
            windows = self.proposer(image, name)
            with atomic_file(path) as file:
                np.save(file, windows)
        return index


def _read_windows(path: Path) -> np.ndarray:
    """Reads a file of windows, int16 (K, 4). Raises FileNotFoundError, or ValueError if it is damaged."""
    try:
        with path.open("rb") as file:
            windows = np.load(file, allow_pickle=False)
        if windows.dtype != np.int16 or windows.ndim != 2 or windows.shape[1] != 4 or not len(windows):
            raise ValueError(f"{windows.dtype} {windows.shape}")
        if (windows < 0).any() or (windows[:, :2] >= windows[:, 2:]).any():
            raise ValueError("empty windows")
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise ValueError(printable(f"{path}: damaged, expected windows, int16 (K, 4)")) from error
    return np.asarray(windows)


def _is_sound(path: Path) -> bool:
    """Whether the file of an image exists and can be read."""
    try:
        _read_windows(path)
    except (FileNotFoundError, ValueError):
        return False
    return True


@contextmanager
def _opencv_in_one_thread() -> Iterator[None]:
    """Stops OpenCV's threads, if it is in use, during the block, in which processes are forked.

    They would take the cores from other processes. And a forked process that stopped them itself would wait for ever
    for the threads of its parent.
    """
    cv2 = sys.modules.get("cv2")
    if cv2 is None:
        yield
        return
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
