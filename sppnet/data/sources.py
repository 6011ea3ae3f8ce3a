"""Data sets: their interface, the available sources, and selecting images.

A data set for classification has `LabelledImages` to train on and others to validate on. They keep no Python object per
image, because their reference counts would copy the memory of a forked worker page by page: 1.28 million paths are one
NumPy array.

Whatever is wrong with a data set is a FileNotFoundError or ValueError of one line: where, what was found, what is
expected.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from sppnet.data.coco import coco
from sppnet.data.folders import caltech101, folder, imagenet, shapes, unsplit_folder, val_folders
from sppnet.data.images import Images as Images  # the interface of all data sets, known from here as well
from sppnet.data.images import UnreadableImage, encoded_image_size
from sppnet.data.multilabel import multilabel
from sppnet.data.objects import DetectionSplits
from sppnet.data.scenes import scenes
from sppnet.data.stores import hub, prepared
from sppnet.data.table_images import table, unsplit_table
from sppnet.data.voc import MultiLabelSplits, voc2007
from sppnet.data.voc_objects import voc_objects
from sppnet.runtime.names import counted, listing
from sppnet.runtime.progress import Progress


class LabelledImages(Images, Protocol):
    """Images with one label each: `labels` is int64 (n,), from 0 in the order of `classes`."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def classes(self) -> tuple[str, ...]: ...


class ImageData(NamedTuple):
    """The two splits of a data set, labelled by the same `classes`."""

    train: LabelledImages
    val: LabelledImages
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """A hash of the fingerprints of both splits: 16 hexadecimal digits."""
        fingerprints = f"{self.train.fingerprint()} {self.val.fingerprint()}"
        return hashlib.sha256(fingerprints.encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class SelectedImages:
    """Some images of one or more data sets, labelled by `classes`."""

    sources: tuple[Images, ...]
    places: np.ndarray  # int (n, 2): number of the source, index in it
    labels: np.ndarray  # int64 (n,)
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> bytes:
        source, place = self.places[index]
        return self.sources[int(source)].read(int(place))

    def name(self, index: int) -> str:
        source, place = self.places[index]
        return self.sources[int(source)].name(int(place))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(" ".join(source.fingerprint() for source in self.sources).encode())
        digest.update(self.places.tobytes() + self.labels.tobytes())
        return digest.hexdigest()


def select_images(
    data: ImageData, part: str, exclude: Sequence[str] = (), classes: Sequence[str] | None = None
) -> SelectedImages:
    """Selects images of a data set by split and name.

    Raises ValueError for another `part`, an unknown name, other classes than those of the data, and if no image is
    left.

    Args:
        data: the data set.
        part: "train", "val" or "all".
        exclude: names of images to leave out.
        classes: the classes of the data in the order of the new labels; None keeps their order.
    """
    parts = {"train": (data.train,), "val": (data.val,), "all": (data.train, data.val)}
    if part not in parts:
        raise ValueError(f"part={part!r}: must be one of {', '.join(parts)}")
    classes = data.classes if classes is None else tuple(classes)
    missing, extra = sorted(set(data.classes) - set(classes)), sorted(set(classes) - set(data.classes))
    if missing or extra:
        raise ValueError(
            f"the data has {counted(len(data.classes), 'class')} and the network {len(classes)}: only in the data "
            f"{listing(missing) or 'none'}; only in the network {listing(extra) or 'none'}"
        )

    sources = parts[part]
    places = np.concatenate([_places(i, source) for i, source in enumerate(sources)])
    labels = np.concatenate([source.labels for source in sources])
    if exclude:
        names = [sources[i].name(int(place)) for i, place in places]
        unknown = sorted(set(exclude) - set(names))
        if unknown:
            raise ValueError(f"exclude={unknown[0]}: no image of {part} has this name; such a name is {names[0]}")
        kept = ~np.isin(names, list(exclude))
        places, labels = places[kept], labels[kept]
    if not len(places):
        raise ValueError(f"exclude: leaves none of the {sum(map(len, sources)):,} images of {part}")

    order = np.array([classes.index(name) for name in data.classes])
    return SelectedImages(sources, places, order[labels], classes)


_Value = TypeVar("_Value")
_DIGEST_BYTES = 16
_IMAGES_PER_ROUND = 512  # so that few files are in memory at once


def content_digests(images: Images, title: str) -> np.ndarray:
    """Reads every image once and hashes its bytes by BLAKE2b: uint8 (len(images), 16). Shows its progress.

    Files are hashed by threads, at about the speed of the disk: 50,000 images of 110 kB are 5.5 GB. Names, sizes and
    times of files would be faster, but equal for images that were swapped and different for a copy of the same data.

    Raises UnreadableImage naming the first image that cannot be read.
    """
    digests = _of_each(images, title, lambda encoded, _: _digest(encoded))
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(images), _DIGEST_BYTES)


def content_digests_and_sizes(images: Images, title: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns `content_digests` and int64 (n, 2), the (height, width) of every upright image, and reads each once.

    Raises UnreadableImage naming the first image that cannot be read.
    """
    rows = _of_each(images, title, lambda encoded, name: (_digest(encoded), encoded_image_size(encoded, name)))
    digests = np.frombuffer(b"".join(digest for digest, _ in rows), np.uint8)
    sizes = np.array([size for _, size in rows], np.int64)
    return digests.reshape(len(images), _DIGEST_BYTES), sizes.reshape(len(images), 2)


def _digest(encoded: bytes) -> bytes:
    return hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest()


def _of_each(images: Images, title: str, compute: Callable[[bytes, str], _Value]) -> list[_Value]:
    """Returns what `compute` returns for the bytes and the name of every image, in order; shows its progress."""
    values = []
    with ThreadPoolExecutor() as pool, Progress(title, len(images)) as progress:
        for start in range(0, len(images), _IMAGES_PER_ROUND):
            indices = range(start, min(start + _IMAGES_PER_ROUND, len(images)))
            values += list(pool.map(lambda index: compute(*read_image(images, index)), indices))
            progress.add(len(indices))
    return values


def read_image(images: Images, index: int) -> tuple[bytes, str]:
    """The bytes and the name of an image to test on. Raises UnreadableImage that says how to skip it."""
    name = images.name(index)
    try:
        return images.read(index), name
    except UnreadableImage as error:
        raise UnreadableImage(f"{error}; {skip_hint(name)}") from error


def skip_hint(name: str) -> str:
    """What a message about an unreadable image to test on advises."""
    return f"repair the file, or skip it with exclude=[{name}]"


def images_fingerprint(images: LabelledImages, digests: np.ndarray) -> str:
    """A hash of the classes and of the name, label and content of every image, in order.

    Args:
        images: the images.
        digests: their `content_digests`.
    """
    names = [images.name(i) for i in range(len(images))]
    digest = hashlib.sha256(json.dumps([images.classes, names]).encode())
    digest.update(np.asarray(images.labels, np.int64).tobytes() + digests.tobytes())
    return digest.hexdigest()


def without_images(data: ImageData, exclude: Sequence[str]) -> ImageData:
    """Both splits without the images named in `exclude`. ValueError for a name that neither has."""
    if not exclude:
        return data
    names = {"train": _names(data.train), "val": _names(data.val)}
    if unknown := sorted(set(exclude) - names["train"] - names["val"]):
        raise ValueError(f"exclude={unknown[0]}: no image has this name; such a name is {data.train.name(0)}")
    train, val = (select_images(data, split, sorted(names[split].intersection(exclude))) for split in names)
    return ImageData(train, val, data.classes)


def _names(images: Images) -> set[str]:
    return {images.name(i) for i in range(len(images))}


def _places(source: int, images: Images) -> np.ndarray:
    """The `SelectedImages.places` of all images of a source."""
    return np.stack([np.full(len(images), source), np.arange(len(images))], axis=1)


# Each returns (training images, validation images).
DATA_SOURCES: dict[str, Callable[..., tuple[LabelledImages, LabelledImages]]] = {
    "shapes": shapes,
    "folder": folder,
    "table": table,
    "imagenet": imagenet,
    "hub": hub,
    "caltech101": caltech101,
    "prepared": prepared,
}

# Images with several labels each: for linear classifiers on features, not for training a network on one label.
MULTI_LABEL_SOURCES: dict[str, Callable[..., MultiLabelSplits]] = {"voc2007": voc2007, "multilabel": multilabel}

# Images with the boxes of objects: for detection.
DETECTION_SOURCES: dict[str, Callable[..., DetectionSplits]] = {"voc": voc_objects, "coco": coco, "scenes": scenes}


def open_data(source: str, /, **options: Any) -> ImageData:
    """Opens the data set of a source in DATA_SOURCES; `options` are the arguments of its function.

    Raises ValueError for another source, and if the classes of train and val are not the same in the same order.
    """
    if source not in DATA_SOURCES:
        raise ValueError(f"source={source!r}: must be one of {', '.join(DATA_SOURCES)}")
    train, val = DATA_SOURCES[source](**options)
    if train.classes != val.classes:
        place = options.get("file") or options.get("root") or options.get("name") or source
        raise ValueError(f"{place}: {_difference(train.classes, val.classes)}")
    return ImageData(train, val, train.classes)


def _difference(train: Sequence[str], val: Sequence[str]) -> str:
    """Says how the classes of the two parts differ."""
    parts = {"validation": set(train) - set(val), "training": set(val) - set(train)}
    lacking = [f"no {part} images of {listing(sorted(names))}" for part, names in parts.items() if names]
    if not lacking:
        return "the classes of the training and of the validation images are in different orders"
    return f"found {' and '.join(lacking)}, expected some of every class in both parts"


# Of sources that can split at random: opens all images as training images, without splitting them.
_UNSPLIT: dict[str, Callable[..., tuple[LabelledImages, LabelledImages]]] = {
    "folder": unsplit_folder,
    "table": unsplit_table,
}


def open_unsplit(source: str, /, **options: Any) -> ImageData:
    """Opens all images of a data set, in one part if its parts would be random. Raises as `open_data`.

    So a class of a single image can be tested, though it could not be split.
    """
    if source not in _UNSPLIT or has_fixed_parts(source, options):
        return open_data(source, **options)
    known = inspect.signature(_UNSPLIT[source]).parameters
    everything, nothing = _UNSPLIT[source](**{key: value for key, value in options.items() if key in known})
    return ImageData(everything, nothing, everything.classes)


def has_fixed_parts(source: str, options: dict[str, Any]) -> bool:
    """Whether the parts of a data set are its own, rather than drawn by `split_seed`.

    Args:
        source: a name of DATA_SOURCES or MULTI_LABEL_SOURCES.
        options: the arguments of its function.
    """
    if source in MULTI_LABEL_SOURCES or "split_seed" not in inspect.signature(DATA_SOURCES[source]).parameters:
        return True
    if any(options.get(key) is not None for key in ("split_column", "val_file", "val_list")):
        return True
    if options.get("train_list") is not None:
        return False
    return source == "folder" and bool(val_folders(Path(options["root"])))
