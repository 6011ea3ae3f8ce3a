"""Prepares a data set: reads every image once, checks it, and writes a store to train from at full speed.

The store is a folder that `datasets.load_from_disk` reads: memory-mapped Arrow files in the splits "train" and
"validation". It is written in shards by several processes. A finished shard is never read again, so an interrupted
preparation resumes.
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch

from sppnet.data.images import Images
from sppnet.data.pixels import mean_pixels
from sppnet.data.shards import (
    Settings,
    Shard,
    digests_and_names,
    features,
    is_finished,
    read_json,
    split_into_shards,
    write_shard,
)
from sppnet.data.sources import ImageData
from sppnet.data.stores import PAGE_FILE, REPORT_FILE, SPLITS_FILE, TRAIN, VALIDATION
from sppnet.data.survey import survey
from sppnet.runtime.files import is_temporary, remove_stale_files, write_json
from sppnet.runtime.names import is_utf8, listing, printable
from sppnet.runtime.processes import exit_with_parent
from sppnet.runtime.progress import Progress

_STORE_FILES = re.compile(rf"{TRAIN}|{VALIDATION}|{re.escape(REPORT_FILE)}|{re.escape(PAGE_FILE)}")
_SPLIT_FILES = re.compile(r"data-\d{5,}\.(arrow|json)|state\.json|dataset_info\.json")
_MOST_WORKERS_PER_CORE = 16  # more would only take memory


def prepare(data: ImageData, out: Path, settings: Settings, *, workers: int) -> dict[str, Any]:
    """Writes the store `out`, except for finished shards, and returns the report of `survey`, also in report.json.

    A finished store is checked, and repaired where files are damaged. Training images that cannot be read are left out.
    If a validation image cannot be read, everything else is written but the store is not finished.

    Args:
        data: both parts of the data set.
        out: folder of the store.
        settings: how training images are stored.
        workers: processes, each with one core; 0 to work in this process.

    Raises ValueError for values out of range, for a folder that holds something else, and naming validation images that
    cannot be read; OSError if a file cannot be written.
    """
    _check_arguments(data, settings, workers)
    plan = _plan(data, settings)
    _check_folder(out, plan)
    if settings.quality is None:
        _check_space(data.train, out, settings.short_side)
    shards = {
        TRAIN: split_into_shards(TRAIN, data.train, out, plan),
        VALIDATION: split_into_shards(VALIDATION, data.val, out, plan),
    }
    every_shard = shards[TRAIN] + shards[VALIDATION]
    saved_report = read_json(out / REPORT_FILE)
    if (out / SPLITS_FILE).is_file() and saved_report is not None and all(map(is_finished, every_shard)):
        return saved_report

    for folder in (out, out / TRAIN, out / VALIDATION):
        remove_stale_files(folder)
    (out / SPLITS_FILE).unlink(missing_ok=True)  # no store until everything is written
    _write_shards(data, settings, every_shard, workers)

    report = _report(shards) | {"plan": plan, **settings._asdict()}
    if unreadable := report[VALIDATION]["unreadable"]:
        raise ValueError(
            f"{len(unreadable)} validation images cannot be read: {listing([remark for _, remark in unreadable])}; "
            "repair them, or leave them out by name with exclude=[...], and run the command again: the rest is done"
        )
    for split in (TRAIN, VALIDATION):
        _finish_split(out / split, split, shards[split], data.classes)
    write_json(out / REPORT_FILE, report)
    write_json(out / SPLITS_FILE, {"splits": [TRAIN, VALIDATION]})
    return report


def _plan(data: ImageData, settings: Settings) -> str:
    """A hash of everything that decides what is in the store."""
    return hashlib.sha256(f"{data.fingerprint()} {settings}".encode()).hexdigest()[:16]


def _report(shards: dict[str, list[Shard]]) -> dict[str, Any]:
    facts = {split: [read_json(shard.facts) for shard in part] for split, part in shards.items()}
    return survey(
        {split: [entry for entry in entries if entry is not None] for split, entries in facts.items()},
        {split: digests_and_names(part) for split, part in shards.items()},
    )


# Checks.


def _check_arguments(data: ImageData, settings: Settings, workers: int) -> None:
    """Raises ValueError for numbers out of range, and for a name that Arrow cannot store."""
    if settings.short_side < 1:
        raise ValueError(f"short_side={settings.short_side}: must be at least 1")
    if settings.quality is not None and not 1 <= settings.quality <= 100:
        raise ValueError(f"quality={settings.quality}: must be 1 to 100, or null")

    for images in (data.train, data.val):
        for name in map(images.name, range(len(images))):
            if not is_utf8(name):
                raise ValueError(printable(f"{name}: the name is not UTF-8; rename the file"))

    most_workers = _MOST_WORKERS_PER_CORE * (os.cpu_count() or 1)
    if not 0 <= workers <= most_workers:
        raise ValueError(f"workers={workers}: must be 0 to {most_workers} on this machine")


def _check_folder(out: Path, plan: str) -> None:
    """Raises ValueError unless `out` is a new folder, an unfinished store or the finished store of this plan."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: found a file, expected a new folder or an unfinished store")
    if (out / SPLITS_FILE).is_file():
        if _plan_of(out) != plan:
            raise ValueError(f"{out}: holds another data set, or one prepared in another way; give another out=")
    elif others := sorted(_foreign_files(out)):
        raise ValueError(f"{out}: found {listing(others)}, expected a new folder or an unfinished store")


def _check_space(images: Images, out: Path, short_side: int) -> None:
    """Raises ValueError if the pixels of training images will hardly fit on the disk of `out`."""
    needed = 3 * mean_pixels(images, short_side) * len(images)
    written = sum(file.stat().st_size for file in out.glob("*/data-*.arrow"))
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free + written
    if needed > free:
        raise ValueError(
            f"{out}: the training images take about {needed / 1e9:,.2g} GB as pixels, and {free / 1e9:,.2g} GB are "
            "free; format=jpeg takes about a tenth, a smaller short_side less"
        )


def _foreign_files(out: Path) -> Iterator[str]:
    """Files in a folder that `prepare` did not write."""
    for folder, expected in ((out, _STORE_FILES), (out / TRAIN, _SPLIT_FILES), (out / VALIDATION, _SPLIT_FILES)):
        for path in folder.iterdir() if folder.is_dir() else ():
            if not expected.fullmatch(path.name) and not is_temporary(path.name):
                yield str(path.relative_to(out))


def _plan_of(out: Path) -> str | None:
    """The plan of a store, from its report or, if that is damaged, from its shards."""
    for file in (out / REPORT_FILE, *sorted(out.glob("*/data-*.json"))):
        if (content := read_json(file)) is not None:
            return content.get("plan")
    return None


# Writing shards.

_data: ImageData
_settings: Settings
_stopped: Event


def _start_worker(data: ImageData, settings: Settings, stopped: Event) -> None:
    """Called first in every worker process."""
    global _data, _settings, _stopped
    exit_with_parent()  # otherwise it would wait for work for ever
    _data, _settings, _stopped = data, settings, stopped
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the process that waits for this one


def _write_one_shard(shard: Shard) -> None:
    """Called in a worker process."""
    images = _data.train if shard.split == TRAIN else _data.val
    write_shard(shard, images, _data.classes, _settings, _stopped.is_set)


def _write_shards(data: ImageData, settings: Settings, shards: list[Shard], workers: int) -> None:
    """Writes every shard that is not finished."""
    unfinished = [shard for shard in shards if not is_finished(shard)]
    if not unfinished:
        return
    total, left = _image_count(shards), _image_count(unfinished)
    if len(unfinished) < len(shards):
        print(f"resuming after {total - left:,} of {total:,} images", flush=True)
    for shard in unfinished:
        shard.folder.mkdir(parents=True, exist_ok=True)

    written = (
        _write_in_workers(data, settings, unfinished, workers) if workers else _write_here(data, settings, unfinished)
    )
    with closing(written), Progress("prepare", left) as progress:
        for shard in written:
            progress.add(shard.stop - shard.start)


def _write_here(data: ImageData, settings: Settings, shards: list[Shard]) -> Generator[Shard, None, None]:
    """Writes shards in this process, and yields each when it is finished."""
    for shard in shards:
        images = data.train if shard.split == TRAIN else data.val
        write_shard(shard, images, data.classes, settings, is_stopped=lambda: False)
        yield shard


def _write_in_workers(
    data: ImageData, settings: Settings, shards: list[Shard], workers: int
) -> Generator[Shard, None, None]:
    """Writes shards in worker processes, and yields each when it is finished."""
    # Not forked: the threads of torch do not survive that.
    context = multiprocessing.get_context("spawn")
    stopped = context.Event()
    with ProcessPoolExecutor(min(workers, len(shards)), context, _start_worker, (data, settings, stopped)) as pool:
        waiting: dict[Future[None], Shard] = {pool.submit(_write_one_shard, shard): shard for shard in shards}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    future.result()
                    yield waiting.pop(future)
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process was killed, perhaps for lack of memory; the same command resumes, with fewer "
                "workers it takes less memory"
            ) from error
        finally:
            stopped.set()  # after Ctrl-C or an error, finishing the shards under way would take minutes
            pool.shutdown(wait=True, cancel_futures=True)


def _image_count(shards: list[Shard]) -> int:
    return sum(shard.stop - shard.start for shard in shards)


# Finishing.


def _finish_split(folder: Path, split: str, shards: list[Shard], classes: tuple[str, ...]) -> None:
    """Writes the files beside the shards that `datasets.load_from_disk` needs."""
    import datasets

    for stray in set(folder.iterdir()) - {file for shard in shards for file in (shard.arrow, shard.facts)}:
        if not is_temporary(stray.name):
            stray.unlink()  # of an interrupted preparation by another plan

    with tempfile.TemporaryDirectory() as temporary:  # the library does not write atomically
        datasets.DatasetInfo(features=features(classes)).write_to_directory(temporary)
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
    """A hash of every source file, name and label, and of how they were stored."""
    digest = hashlib.sha256(shards[0].plan.encode())
    for source_digest, _ in digests_and_names(shards):
        digest.update(source_digest.encode())
    return digest.hexdigest()[:16]
