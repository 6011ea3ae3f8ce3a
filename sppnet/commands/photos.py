"""What the commands on the user's photos share: their checks, and records of all photos, written, printed and shown."""

import glob
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import ListConfig, OmegaConf

from sppnet.commands.settings import bound
from sppnet.runtime.files import atomic_file, check_place
from sppnet.runtime.names import listing
from sppnet.runtime.progress import Progress, speed

if TYPE_CHECKING:  # they load torch, which takes seconds, and --help should not
    from sppnet.data.photos import Photos
    from sppnet.results.page import Page
    from sppnet.results.record_files import Record, Table
    from sppnet.runtime.hardware import Hardware


def photo_places(images: Any) -> Any:
    """Returns the setting `images` as a text or a list of texts."""
    return OmegaConf.to_container(images) if isinstance(images, ListConfig) else images


def check_photo_settings(images: Any, out: str | None, page: str | None) -> None:
    """Raises ValueError for settings that cannot be used, before any photo is opened."""
    from sppnet.results.record_files import check_format

    if not isinstance(images, str) and not (isinstance(images, list) and images and all(map(_is_name, images))):
        raise ValueError(
            f"images={images}: must be a file, a folder, a pattern, a list of them, or - for standard input"
        )
    if out is not None:
        check_format("out", Path(out))
    if page is not None and Path(page).suffix != ".html":
        raise ValueError(f"page={page}: must end in .html")


def check_photos_exist(images: Any) -> None:
    """Raises FileNotFoundError for a place that does not exist, before torch and networks are loaded for seconds."""
    places = photo_places(images)
    for place in places if isinstance(places, list) else [places]:
        if isinstance(place, str) and place != "-" and not glob.has_magic(place) and not Path(place).exists():
            raise FileNotFoundError(f"images={place}: there is no such file or folder, and no file matches")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def photo_hardware(section: Any) -> "Hardware":
    """Returns the hardware of a section. Raises ValueError for more than one device."""
    from sppnet.runtime.hardware import Hardware

    hardware = Hardware(**bound(section, Hardware, "hardware."))
    if (hardware.devices or 1) > 1:
        raise ValueError(f"hardware.devices={hardware.devices}: this command runs on one device")
    return hardware


def open_photos(images: Any, out: str | None, page: str | None) -> "Photos":
    """Finds the photos, and checks that the files to write can be made: better now than after hours of work."""
    from sppnet.data.photos import find_photos

    photos = find_photos(images)
    for place in filter(None, (out, page)):
        check_place(Path(place))
    return photos


class PhotoWork(NamedTuple):
    """Photos, and how their records are made and shown."""

    title: str  # of the progress bar
    photos: "Photos"
    out: str | None  # the file for the records
    page: str | None
    table: "Table"
    identity: "Record"  # plain values that decide the records of these photos
    make: "Callable[[int], Generator[Record, None, None]]"  # the records of the photos from an index on
    show: "Callable[[Record], None]"  # called with each record when it is made
    counted: "Callable[[Record], int]"  # what the summary counts in a record
    make_page: "Callable[[int, Iterable[Record]], Page]"  # of what is counted, and all records


class Recorded(NamedTuple):
    """Photos whose records were made."""

    photos: int
    unusable: list[str]
    counted: int  # by `PhotoWork.counted`
    seconds: float  # for the photos of this command
    resumed: int  # photos that an interrupted command had done


def record_photos(work: PhotoWork) -> Recorded:
    """Makes the records of all photos, and writes the files that the user asked for."""
    from sppnet.results.record_files import record_file, unsaved_records

    identity = {**work.identity, "photos": work.photos.digest()}
    with ExitStack() as stack:
        opened = record_file(Path(work.out), work.table, identity) if work.out else unsaved_records()
        file = stack.enter_context(opened)
        resumed, left, started = file.saved, len(work.photos) - file.saved, time.perf_counter()
        if file.dropped:
            print(
                f"{work.out}: starting again, as photos, network or settings are others than those of its rows so far"
            )
        if resumed:
            print(f"{work.out}: resuming after {resumed:,} of {len(work.photos):,} photos", flush=True)
        # Without a file, the lines that are printed show how far it is.
        progress = stack.enter_context(Progress(work.title, left, "photos")) if work.out else None
        for record in stack.enter_context(closing(work.make(resumed))):
            file.add(record)
            work.show(record)
            if progress is not None:
                progress.add(1)
        seconds = time.perf_counter() - started

        unusable = [record["image"] for record in file.records() if "error" in record]
        counted = sum(map(work.counted, file.records()))
        if work.page:
            html = work.make_page(counted, file.records()).html().encode()
            with atomic_file(Path(work.page)) as page:
                page.write(html)
    return Recorded(len(work.photos), unusable, counted, seconds, resumed)


def report_photos(work: PhotoWork, recorded: Recorded, words: str) -> None:
    """Prints a summary of the photos. Exits with code 1 if some could not be used.

    Args:
        words: of the summary.
    """
    done = recorded.photos - recorded.resumed
    print(f"{words}, {speed(done / recorded.seconds)} photos/s")
    if written := [place for place in (work.out, work.page) if place]:
        print(f"written: {', '.join(written)}")
    if count := len(recorded.unusable):
        names = listing(recorded.unusable)
        print(f"warning: {count:,} of {recorded.photos:,} photos could not be used: {names}", file=sys.stderr)
        sys.exit(1)
