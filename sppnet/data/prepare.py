"""Reads every image of a data set once, checks it, and writes a store to train from at full speed.

The store is a folder that `datasets.load_from_disk` reads: memory-mapped Arrow files, splits "train" and "validation",
columns image, label, name and the SHA-256 of the source file. Training images are made small, validation images keep
their bytes. It is written in shards; a finished shard is never read again, so a stopped preparation goes on.
"""

import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sppnet.data.images import UnreadableImage, decode_image, resize_shorter_side
from sppnet.data.sources import ImageData, LabelledImages
from sppnet.data.stores import DIGEST, IMAGE, LABEL, NAME, TRAIN, VALIDATION, column_values
from sppnet.data.survey import KINDS, remarks
from sppnet.runtime.files import atomic_file, is_temporary, remove_stale_files, write_json
from sppnet.runtime.names import is_utf8, listing, printable
from sppnet.runtime.processes import exit_with_parent
from sppnet.runtime.progress import Progress

MARKER = "dataset_dict.json"  # what `datasets` looks for; written last
REPORT = "report.json"
_OWN_FILES = re.compile(rf"{TRAIN}|{VALIDATION}|{re.escape(REPORT)}")
_OWN_SPLIT_FILES = re.compile(r"data-\d{5,}\.(arrow|json)|state\.json|dataset_info\.json")
ROWS_PER_BATCH = 64  # of Arrow, the unit in which it looks rows up
MOST_WORKERS_PER_CORE = 16  # beyond them they only take memory


class Settings(NamedTuple):
    """How training images are stored."""

    short_side: int  # pixels; images that are smaller keep their size
    quality: int  # of JPEG, 1..100, without chroma subsampling


class Shard(NamedTuple):
    """Some images of a split, stored in one file."""

    split: str
    number: int
    start: int  # index of its first image
    stop: int
    folder: Path
    plan: str  # a hash of all that decides what is in it

    @property
    def arrow(self) -> Path:
        return self.folder / f"data-{self.number:05}.arrow"

    @property
    def facts(self) -> Path:
        """Written after the Arrow file: its size in bytes, and what is known of its images."""
        return self.folder / f"data-{self.number:05}.json"


def prepare(data: ImageData, out: Path, settings: Settings, *, workers: int) -> dict[str, Any]:
    """Writes the store `out`, except for what is there, and returns its report. A finished store is repaired.

    The report, also in `out`/report.json, holds per split the numbers of images and bytes and, for every key of KINDS,
    [name, remark] of the images that it is said of; and `both`, [validation name, training name] of equal files.

    Training images that cannot be read are left out. Where a validation image cannot be read, everything else is
    written but the store is not finished.

    Raises ValueError for values out of range, for a folder that holds something else, and naming validation images that
    cannot be read; OSError where a file cannot be written.
    """
    if not 1 <= settings.quality <= 100 or settings.short_side < 1:
        raise ValueError(f"{settings}: must be short_side >= 1 and quality 1 to 100")
    _check_names(data)
    most = MOST_WORKERS_PER_CORE * (os.cpu_count() or 1)
    if not 1 <= workers <= most:
        raise ValueError(f"workers={workers}: must be 1 to {most} on this machine")
    plan = _plan(data, settings)
    _check_folder(out, plan)
    shards = [*_shards(TRAIN, data.train, out, plan), *_shards(VALIDATION, data.val, out, plan)]
    report = _read_json(out / REPORT)
    if (out / MARKER).is_file() and report is not None and all(_is_done(shard) for shard in shards):
        return report
    for folder in (out, out / TRAIN, out / VALIDATION):
        remove_stale_files(folder)
    (out / MARKER).unlink(missing_ok=True)
    _write_shards(data, settings, shards, workers)
    report = _report(shards) | {"plan": plan, **settings._asdict()}
    unreadable = report[VALIDATION]["unreadable"]
    if unreadable:
        raise ValueError(
            f"{len(unreadable)} validation images cannot be read: {listing([remark for _, remark in unreadable])}; "
            "repair them, or leave them out by name with exclude=[...], and give the command again: the rest is done"
        )
    for split in (TRAIN, VALIDATION):
        _finish_split(out / split, split, [shard for shard in shards if shard.split == split], data.classes)
    write_json(out / REPORT, report)
    write_json(out / MARKER, {"splits": [TRAIN, VALIDATION]})
    return report


def _plan(data: ImageData, settings: Settings) -> str:
    return hashlib.sha256(f"{data.fingerprint()} {settings}".encode()).hexdigest()[:16]


def _check_names(data: ImageData) -> None:
    """ValueError for a name that Arrow cannot store."""
    for images in (data.train, data.val):
        for name in map(images.name, range(len(images))):
            if not is_utf8(name):
                raise ValueError(printable(f"{name}: the name is not UTF-8; rename the file"))


def _check_folder(out: Path, plan: str) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: found a file, expected a new folder or an unfinished store")
    if (out / MARKER).is_file():
        if _plan_of(out) != plan:
            raise ValueError(f"{out}: holds another data set, or one prepared in another way; give another out=")
    elif others := sorted(_foreign_files(out)):
        raise ValueError(f"{out}: found {listing(others)}, expected a new folder or an unfinished store")


def _foreign_files(out: Path) -> Iterator[str]:
    """What lies in a folder and was not written by `prepare`."""
    for folder, own in ((out, _OWN_FILES), (out / TRAIN, _OWN_SPLIT_FILES), (out / VALIDATION, _OWN_SPLIT_FILES)):
        for path in folder.iterdir() if folder.is_dir() else ():
            if not own.fullmatch(path.name) and not is_temporary(path.name):
                yield str(path.relative_to(out))


def _plan_of(out: Path) -> str | None:
    """By which a store was made: as its report says, or where that is damaged, its shards."""
    for file in (out / REPORT, *sorted(out.glob("*/data-*.json"))):
        if (content := _read_json(file)) is not None:
            return content.get("plan")
    return None


def _read_json(file: Path) -> dict[str, Any] | None:
    """None where there is no such file, and for one that was cut by a power failure."""
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _shards(split: str, images: LabelledImages, out: Path, plan: str) -> Iterator[Shard]:
    # Many enough that a stop costs little, few enough that opening the store does not.
    size = min(4096, max(16, len(images) // 64))
    for number, start in enumerate(range(0, len(images), size)):
        yield Shard(split, number, start, min(len(images), start + size), out / split, plan)


# Writing, in worker processes.

_data: ImageData
_settings: Settings
_stopped: Event


def _start_worker(data: ImageData, settings: Settings, stopped: Event) -> None:
    global _data, _settings, _stopped
    exit_with_parent()  # it would otherwise wait for work for ever
    _data, _settings, _stopped = data, settings, stopped
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one


def _write_shards(data: ImageData, settings: Settings, shards: list[Shard], workers: int) -> None:
    """Every shard that is not there yet."""
    left = [shard for shard in shards if not _is_done(shard)]
    done, total = (sum(shard.stop - shard.start for shard in some) for some in (left, shards))
    if not left:
        return
    if len(left) < len(shards):
        print(f"resuming after {total - done:,} of {total:,} images", flush=True)
    for shard in left:
        shard.folder.mkdir(parents=True, exist_ok=True)
    # Not forked: the threads of torch do not survive that.
    context = multiprocessing.get_context("spawn")
    stopped = context.Event()
    with (
        Progress("prepare", done) as progress,
        ProcessPoolExecutor(min(workers, len(left)), context, _start_worker, (data, settings, stopped)) as pool,
    ):
        waiting: dict[Future[None], Shard] = {pool.submit(_write_shard, shard): shard for shard in left}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    shard = waiting.pop(future)
                    future.result()
                    progress.add(shard.stop - shard.start)
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process was killed, perhaps for lack of memory; the same command goes on, and takes less "
                "with fewer workers"
            ) from error
        finally:
            stopped.set()  # after Ctrl-C or an error; the shards that are not finished would take minutes
            pool.shutdown(wait=True, cancel_futures=True)


def _is_done(shard: Shard) -> bool:
    """Written by the same plan, whole, and without unreadable images: those may have been repaired."""
    facts = _read_json(shard.facts)
    if facts is None or facts.get("plan") != shard.plan or facts.get("unreadable") != []:
        return False
    return (
        shard.arrow.is_file()
        and shard.arrow.stat().st_size == facts.get("size")
        and _rows(shard) == facts.get("images")
    )


def _rows(shard: Shard) -> int | None:
    """How many images the Arrow file has; None for one that is damaged. Reads the headers of its batches only."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(shard.arrow)) as file, pyarrow.ipc.open_stream(file) as stream:
            return sum(batch.num_rows for batch in stream)
    except (pyarrow.ArrowException, OSError):
        return None


def _write_shard(shard: Shard) -> None:
    import pyarrow

    images = _data.train if shard.split == TRAIN else _data.val
    facts: dict[str, Any] = {"plan": shard.plan, "images": 0, "bytes": 0} | {kind: [] for kind in KINDS}
    schema = _features(_data.classes).arrow_schema
    with atomic_file(shard.arrow) as file, pyarrow.ipc.new_stream(file, schema) as writer:
        rows: list[dict[str, Any]] = []
        for index in range(shard.start, shard.stop):
            if _stopped.is_set():
                raise InterruptedError("stopped")  # nobody waits for this shard any more
            row = _row(images, index, shard.split == TRAIN, facts)
            rows += [] if row is None else [row]
            if rows and (len(rows) == ROWS_PER_BATCH or index == shard.stop - 1):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
                rows = []
    write_json(shard.facts, facts | {"size": shard.arrow.stat().st_size})


def _features(classes: tuple[str, ...]) -> Any:
    import datasets

    return datasets.Features(
        {
            IMAGE: datasets.Image(),
            LABEL: datasets.ClassLabel(names=list(classes)),
            NAME: datasets.Value("string"),
            DIGEST: datasets.Value("string"),
        }
    )


def _row(images: LabelledImages, index: int, training: bool, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What is stored of an image, and what is said of it added to `facts`; None where it cannot be read."""
    name = images.name(index)
    try:
        encoded = images.read(index)
        image = decode_image(encoded, name)
    except UnreadableImage as error:
        facts["unreadable"].append([name, str(error)])
        return None
    usual = True
    for kind, remark in remarks(encoded, name, image):
        facts[kind].append([name, remark])
        usual = usual and kind == "tiny"
    stored = encoded if not training else _small(encoded, image, _settings, keep=usual)
    facts["images"] += 1
    facts["bytes"] += len(stored)
    digest = hashlib.sha256(encoded).hexdigest()
    return {IMAGE: {"bytes": stored, "path": None}, LABEL: int(images.labels[index]), NAME: name, DIGEST: digest}


def _small(encoded: bytes, image: torch.Tensor, settings: Settings, keep: bool) -> bytes:
    """The image as JPEG at its shorter side; the file itself where that would win nothing."""
    side = min(*image.shape[1:], settings.short_side)
    if keep and side == min(image.shape[1:]) and encoded.startswith(b"\xff\xd8"):
        return encoded
    pixels = resize_shorter_side(image, side).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=settings.quality, subsampling=0)
    return file.getvalue()


# Finishing.


def _finish_split(folder: Path, split: str, shards: list[Shard], classes: tuple[str, ...]) -> None:
    """Writes beside the shards what `datasets.load_from_disk` needs to find and tell them."""
    import datasets

    for stray in set(folder.iterdir()) - {file for shard in shards for file in (shard.arrow, shard.facts)}:
        if not is_temporary(stray.name):
            stray.unlink()  # of a stopped preparation by another plan
    with tempfile.TemporaryDirectory() as temporary:  # the library does not write atomically
        datasets.DatasetInfo(features=_features(classes)).write_to_directory(temporary)
        write_json(folder / "dataset_info.json", json.loads(Path(temporary, "dataset_info.json").read_text()))
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.arrow.name} for shard in shards],
        "_fingerprint": _content_fingerprint(shards),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    write_json(folder / "state.json", state)


def _content_fingerprint(shards: list[Shard]) -> str:
    """Of every source file, name and label, and of how they were stored."""
    digest = hashlib.sha256(shards[0].plan.encode())
    for values in _columns(shards, DIGEST):
        digest.update("".join(values).encode())
    return digest.hexdigest()[:16]


def _columns(shards: list[Shard], column: str) -> Iterator[np.ndarray]:
    import datasets

    for shard in shards:
        yield column_values(datasets.Dataset.from_file(str(shard.arrow)), column)


def _report(shards: list[Shard]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    first: dict[str, str] = {}  # digest of a file -> its name, of training images
    both: list[list[str]] = []
    for split in (TRAIN, VALIDATION):
        own = [shard for shard in shards if shard.split == split]
        facts = [facts for shard in own if (facts := _read_json(shard.facts)) is not None]
        summary: dict[str, Any] = {key: sum(one[key] for one in facts) for key in ("images", "bytes")}
        summary |= {kind: [entry for one in facts for entry in one[kind]] for kind in KINDS}
        seen: dict[str, str] = {}
        for digests, names in zip(_columns(own, DIGEST), _columns(own, NAME), strict=True):
            for digest, name in zip(digests.tolist(), names.tolist(), strict=True):
                if digest in seen:
                    summary["duplicate"].append([name, seen[digest]])
                elif digest in first:
                    both.append([name, first[digest]])
                seen.setdefault(digest, name)
        first = first or seen
        report[split] = summary
    return report | {"both": both}
