"""Images to load, an epoch of ours of them, and where its time goes."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sppnet.benchmark.bench import WIDTHS, Bench
from sppnet.benchmark.comparisons import largest_parts
from sppnet.benchmark.loaders import SIDE, SMALLEST_AREA, Loading, our_epoch, our_loader, our_work
from sppnet.benchmark.timing import Work, seconds_of, thread_count
from sppnet.classify.augmentation import Augmentation
from sppnet.classify.caching import NO_CACHING, Caching
from sppnet.classify.datamodule import ClassificationData
from sppnet.classify.loading import TrainingCrops, shorter_side_for
from sppnet.classify.recipe import Recipe
from sppnet.data.images import decode_image, resize, resize_shorter_side
from sppnet.data.sources import ImageData, open_data
from sppnet.network import IMAGENET_MEAN, IMAGENET_STD

_TIMED_IMAGES = 64  # at most, whose parts are timed one by one
_PASSES = 3  # over them, of which the median counts


class Photos(NamedTuple):
    """Images to load, and how they are cropped."""

    name: str
    open: Callable[[], ImageData]
    augmentation: Augmentation | None  # None: crops at one of five positions
    caching: Caching = NO_CACHING  # whether they are decoded once


def files(bench: Bench, width: int, augmentation: Augmentation | None) -> Photos:
    """Returns the drawn files of one width."""
    crops = "five positions" if augmentation is None else "random areas"
    name = f"files, {width:,} wide, {crops}"
    return Photos(name, lambda: open_data("folder", root=str(bench.files(width))), augmentation)


def stored(bench: Bench) -> Photos:
    """Returns the files of 500 x 375 in a prepared store."""
    return Photos("a prepared store, five positions", lambda: bench.stored, None)


def raw(bench: Bench) -> Photos:
    """Returns the same in a prepared store of pixels."""
    return Photos("a prepared store of pixels, five positions", lambda: bench.raw, None)


def kept(bench: Bench) -> Photos:
    """Returns the files of 500 x 375, decoded in the epoch that warms up, and kept."""
    photos = files(bench, 500, None)
    return photos._replace(name="decoded images that are kept, five positions", caching=Caching(10**10, 0, 10**10))


def random_areas() -> Augmentation:
    """Returns our crops of random areas, as the peers have them, and nothing else."""
    recipe = Recipe(
        epochs=2, batch_size=1, learning_rate=1, momentum=0, weight_decay=0, warmup_epochs=0,
        crop_area=[SMALLEST_AREA, 1],
    )  # fmt: skip
    return Augmentation(recipe, side=SIDE, mean=IMAGENET_MEAN)


def loading_of(bench: Bench) -> Loading:
    """Returns what is the same for all loaders."""
    return Loading(bench.batch_size, bench.workers, bench.device)


def our_loading(bench: Bench, photos: Photos) -> Work:
    """Returns an epoch of our loading up to the input of the network."""
    data_module = our_loader(photos.open(), loading_of(bench), photos.augmentation, photos.caching)
    return our_work(our_epoch(data_module, bench.device))


class Parts(NamedTuple):
    """Milliseconds of one core that loading an image takes, by part."""

    photos: str
    milliseconds: dict[str, float]


def loading_parts(bench: Bench) -> list[Parts]:
    """Returns the parts of loading from files of every width, with either kind of crops, and from a store."""
    areas = random_areas()
    every = [files(bench, width, crops) for width in WIDTHS for crops in (None, areas)]
    return [parts_of(bench, photos) for photos in [*every, stored(bench), raw(bench), kept(bench)]]


def parts_of(bench: Bench, photos: Photos) -> Parts:
    """Returns the parts of loading an image, measured once for each `bench`."""
    if photos.name not in bench.parts:
        bench.parts[photos.name] = _measured_parts(bench, photos)
    return Parts(photos.name, bench.parts[photos.name])


def bound_of(bench: Bench, photos: Photos) -> str:
    """Says which parts take most of the time of loading."""
    return largest_parts(parts_of(bench, photos).milliseconds)


def _measured_parts(bench: Bench, photos: Photos) -> dict[str, float]:
    """Measures the parts by the time of the processor: all but the last two one by one on one thread.

    Handing over is what is left of the processor's time of a whole epoch in all its processes, waiting what is left of
    the time of all cores: for memory, for each other, and for other programs.
    """
    data, augmentation = photos.open(), photos.augmentation
    images = data.train
    cache, _ = photos.caching.caches(data)
    crops = TrainingCrops(images, side=SIDE, seed=0, augmentation=augmentation, cache=cache)
    indices = list(range(min(_TIMED_IMAGES, len(images))))
    encoded = [(images.read(i), images.name(i)) for i in indices]
    decoded = [decode_image(*file) for file in encoded]
    batch = torch.stack([crops[0, i]["image"] for i in indices])

    read = decode = resized = 0.0
    with thread_count(1):
        if cache is None:
            read = _processor_time(images.read, indices)
            decode = _processor_time(lambda file: decode_image(*file), encoded)
            resized = _processor_time(partial(_resized, augmentation), decoded)
        item = _processor_time(lambda i: crops[0, i], indices)
        conversion = _processor_time(_conversion(our_loader(data, loading_of(bench))), [batch]) / len(indices)
    whole, processors = _whole_epoch(bench, photos)
    seconds = {
        "reading": read,
        "decoding": decode,
        "resizing": resized,
        "cropping and random numbers": max(0.0, item - read - decode - resized),
        "conversion": conversion,
        "handing over": max(0.0, processors - item - conversion),
        "waiting": max(0.0, whole - max(processors, item + conversion)),
    }
    return {name: 1000 * value for name, value in seconds.items()}


def _whole_epoch(bench: Bench, photos: Photos) -> tuple[float, float]:
    """Returns the seconds of an epoch per image: those of the clock times the cores that load it, and of processors."""
    work = our_loading(bench, photos)
    work()  # to start the workers
    images = len(photos.open().train)
    loaded = _PASSES * (images // bench.batch_size * bench.batch_size or images)
    before = _seconds_of_processes()
    clock = max(1, bench.workers) * _PASSES * seconds_of(work, _PASSES)
    return clock / loaded, (_seconds_of_processes() - before) / loaded


def _seconds_of_processes() -> float:
    """Returns the processor's time of this process and of its loader processes so far."""
    workers = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
    # The number of the clock of another process, as clock_getcpuclockid of Linux computes it.
    return time.process_time() + sum(time.clock_gettime((~pid << 3) | 2) for pid in workers)


def _resized(augmentation: Augmentation | None, image: Tensor) -> Tensor:
    """Resizes as the loader does: to the shorter side of 256, or an area of the image to the crop."""
    if augmentation is None or augmentation.random_crop is None:
        return resize_shorter_side(image, shorter_side_for(SIDE))
    window = augmentation.random_crop.make_params([image])
    rows = slice(window["top"], window["top"] + window["height"])
    columns = slice(window["left"], window["left"] + window["width"])
    return resize(image[:, rows, columns], (SIDE, SIDE))


def _conversion(data_module: ClassificationData) -> Callable[[Tensor], Tensor]:
    """Returns the conversion of crops (N, 224, 224, 3), none of them mirrored, to the input of the network."""

    def convert(crops: Tensor) -> Tensor:
        flags = torch.zeros(len(crops), dtype=torch.bool)
        return data_module.training_input(crops, flags, None, SIDE, IMAGENET_MEAN, IMAGENET_STD)

    return convert


def _processor_time(function: Callable[[Any], Any], items: list[Any]) -> float:
    """Returns the seconds of this thread's processor per item: the median of several passes after one to warm up."""
    passes = []
    for _ in range(_PASSES + 1):
        started = time.thread_time()
        for item in items:
            function(item)
        passes.append((time.thread_time() - started) / len(items))
    return statistics.median(passes[1:])
