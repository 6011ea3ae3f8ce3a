"""Where pictures come from: drawn shapes, folders, ImageNet, Caltech101, the Hugging Face Hub.

A data set is an `EncodedImages`. It keeps no Python object per image, because their reference counts would copy the
memory of a forked worker page by page: 1.28 million paths are one NumPy array.

What is wrong with a data set is said by a FileNotFoundError or ValueError of one line: where, what was found, what
is expected.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sppnet.shapes import generate_shapes


class EncodedImages(Protocol):
    """Image files by index, from 0. `labels` is int64 (len(d),) and counts `classes` from 0."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int, str]:
        """The bytes of the file, its label, and its name, which no other image of train and val has."""

    def name(self, index: int) -> str: ...


class ImageData(NamedTuple):
    """Both parts label by `classes`."""

    train: EncodedImages
    val: EncodedImages
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images in files; a name is the path from `root`, with slashes."""

    root: str
    paths: np.ndarray  # bytes (len(d),), each the path from `root`
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[bytes, int, str]:
        name = self.name(index)
        return Path(self.root, name).read_bytes(), int(self.labels[index]), name

    def name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])


@dataclass(frozen=True, eq=False)
class HubImages:
    """Images in the memory-mapped files of a `datasets.Dataset`; a name is the split and the position in it."""

    dataset: Any
    image_column: str  # undecoded: the bytes of a file, or its path
    split: str
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int, str]:
        index = range(len(self))[index]
        image = self.dataset[index][self.image_column]
        data = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
        return data, int(self.labels[index]), self.name(index)

    def name(self, index: int) -> str:
        return f"{self.split}/{index}"


@dataclass(frozen=True, eq=False)
class SelectedImages:
    """Some images of one or more data sets, labelled by `classes`."""

    sources: tuple[EncodedImages, ...]
    places: np.ndarray  # (len(d), 2): which source, and the index in it
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[bytes, int, str]:
        source, place = self.places[index]
        data, _, name = self.sources[source][int(place)]
        return data, int(self.labels[index]), name

    def name(self, index: int) -> str:
        source, place = self.places[index]
        return self.sources[source].name(int(place))


def select_images(
    data: ImageData, part: str, exclude: Sequence[str] = (), classes: Sequence[str] | None = None
) -> SelectedImages:
    """The "train" or "val" images or "all" of them, without those named in `exclude`, labelled by `classes`.

    Raises ValueError for another part, a name that is not there, and classes that are not those of the data.
    """
    parts = {"train": (data.train,), "val": (data.val,), "all": (data.train, data.val)}
    if part not in parts:
        raise ValueError(f"part={part!r}: must be one of {', '.join(parts)}")
    classes = data.classes if classes is None else tuple(classes)
    missing, extra = sorted(set(data.classes) - set(classes)), sorted(set(classes) - set(data.classes))
    if missing or extra:
        raise ValueError(
            f"the data has {len(data.classes)} classes and the network {len(classes)}: only in the data "
            f"{_listing(missing) or 'none'}; only in the network {_listing(extra) or 'none'}"
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
    order = np.array([classes.index(name) for name in data.classes])
    return SelectedImages(sources, places, order[labels], classes)


def _places(source: int, images: EncodedImages) -> np.ndarray:
    return np.stack([np.full(len(images), source), np.arange(len(images))], axis=1)


# The sources.

_VAL_FOLDERS = ("val", "validation", "test")


def shapes(*, root: str, train: int = 2000, val: int = 500, seed: int = 0) -> ImageData:
    """The pictures of `sppnet.shapes`, drawn into `root` on first use; `train` and `val` count them."""
    return _train_and_val(generate_shapes(Path(root), train=train, val=val, seed=seed), "val")


def folder(*, root: str, val_fraction: float | None = None, split_seed: int = 0) -> ImageData:
    """One folder per class in `root`/train and `root`/val (or validation, or test), or all in `root` itself.

    Without a val folder, `val_fraction` of every class becomes val, chosen by `split_seed` and the names of the
    files alone: where there is no train/ either, 0.2 of it unless told. Class folders may hold folders; hidden
    files and folders are left out.
    """
    top = _existing_folder(Path(root))
    has_train = (top / "train").is_dir()
    val_folder = next((name for name in _VAL_FOLDERS if (top / name).is_dir()), None)
    if val_folder and not has_train:
        raise ValueError(f"{top}: found {val_folder}/, expected train/ beside it")
    if val_folder and val_fraction is not None:
        raise ValueError(f"{top}: found {val_folder}/, val_fraction={val_fraction} is for folders without it")
    if val_folder:
        return _train_and_val(top, val_folder)
    if has_train and val_fraction is None:
        raise ValueError(f"{top}: found train/, expected val/ beside it, or val_fraction=0.2 to split train/")
    images = _read_classes(top, "train" if has_train else "")
    return _split_by_fraction(images, 0.2 if val_fraction is None else val_fraction, split_seed)


def imagenet(*, root: str) -> ImageData:
    """ILSVRC 2012: `root`/train and `root`/val, each with 1000 folders named by WordNet id, such as n01440764."""
    top = _existing_folder(Path(root))
    for split in ("train", "val"):
        _check_wordnet_folders(_existing_folder(top / split))
    return _train_and_val(top, "val")


def caltech101(*, root: str, split_seed: int = 0, train_per_class: int = 30, test_per_class: int = 50) -> ImageData:
    """102 categories with the background: 30 random images of each to train, up to 50 others to test.

    The protocol of arXiv:1406.4729v4, 3.3, which averages 10 splits. `root` is 101_ObjectCategories or the folder
    that holds it; names are paths from 101_ObjectCategories.
    """
    top = _existing_folder(Path(root))
    nested = top / "101_ObjectCategories"
    images = _read_classes(nested if nested.is_dir() else top, "")
    if len(images.classes) != 102:
        raise ValueError(f"{images.root}: found {len(images.classes)} class folders, expected Caltech101's 102")
    train, test = [], []
    for name, members in _shuffled_classes(images, split_seed):
        if not 0 < train_per_class < len(members) or test_per_class < 1:
            raise ValueError(
                f"{images.root}: {name} has {len(members)} images, "
                f"train_per_class={train_per_class} and test_per_class={test_per_class} need one each at least"
            )
        train.append(members[:train_per_class])
        test.append(members[train_per_class : train_per_class + test_per_class])
    return ImageData(_select(images, train), _select(images, test), images.classes)


def hub(
    *,
    name: str,
    config: str | None = None,
    train_split: str = "train",
    val_split: str = "validation",
    image_column: str = "image",
    label_column: str = "label",
    cache: str | None = None,
) -> ImageData:
    """A data set of the Hugging Face Hub, or a local folder that `load_dataset` reads or `save_to_disk` wrote.

    Splits of what `load_dataset` reads may be slices, such as train[:90%] and train[90%:].
    """
    train, val = (
        _hub_images(_load_split(name, config, split, cache), f"{name} {split}", split, image_column, label_column)
        for split in (train_split, val_split)
    )
    return _image_data(name, train, val)


DATA_SOURCES: dict[str, Callable[..., ImageData]] = {
    "shapes": shapes,
    "folder": folder,
    "imagenet": imagenet,
    "hub": hub,
    "caltech101": caltech101,
}


def open_data(source: str, /, **options: Any) -> ImageData:
    """The data set of a source in DATA_SOURCES; `options` are the arguments of that function."""
    if source not in DATA_SOURCES:
        raise ValueError(f"source={source!r}: must be one of {', '.join(DATA_SOURCES)}")
    return DATA_SOURCES[source](**options)


# Reading trees of files.

_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp"),
    *(".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm"),
)


def _train_and_val(top: Path, val_folder: str) -> ImageData:
    return _image_data(top, _read_classes(top, "train"), _read_classes(top, val_folder))


def _read_classes(top: Path, split: str) -> ImageFiles:
    """The images in the class folders of `top`/`split`, sorted by class, then by path."""
    base = top / split
    classes = _class_folders(base)
    if len(classes) < 2:
        raise ValueError(f"{base}: found {_contents(base)}, expected a folder for each of two or more classes")
    paths, counts = [], []
    for name in classes:
        found = sorted(_image_paths(base / name, f"{split}/{name}" if split else name))
        if not found:
            raise ValueError(f"{base / name}: found no images, expected files such as *.jpg")
        paths += [os.fsencode(path) for path in found]
        counts.append(len(found))
    return ImageFiles(str(top), np.array(paths), np.repeat(np.arange(len(classes)), counts), tuple(classes))


def _class_folders(base: Path) -> list[str]:
    with os.scandir(base) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _image_paths(place: Path | str, prefix: str) -> Iterator[str]:
    """`prefix`/path of each image in `place` and the folders in it, but not in links to folders: they may be rings."""
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{prefix}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _image_paths(entry.path, path)
            elif entry.name.lower().endswith(_SUFFIXES):
                yield path


def _contents(base: Path) -> str:
    """What lies in a folder that should hold class folders, in words."""
    with os.scandir(base) as entries:
        images = sum(entry.name.lower().endswith(_SUFFIXES) and not entry.is_dir() for entry in entries)
    return f"{images} images lying flat and the folders: {_listing(_class_folders(base)) or 'none'}"


def _existing_folder(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such folder")
    if not path.is_dir():
        raise ValueError(f"{path}: found a file, expected a folder")
    return path


def _check_wordnet_folders(base: Path) -> None:
    names = _class_folders(base)
    if not names and any(base.glob("ILSVRC2012_*")):
        raise ValueError(
            f"{base}: found {_contents(base)}, expected 1000 folders such as n01440764: move each image into the "
            "folder of its class, as the ground truth file says (valprep.sh does it for the validation images)"
        )
    if len(names) != 1000:
        raise ValueError(f"{base}: found {len(names)} class folders, expected 1000")
    others = [name for name in names if not re.fullmatch(r"n\d{8}", name)]
    if others:
        raise ValueError(f"{base}: found the folders {_listing(others)}, expected WordNet ids such as n01440764")


def _image_data(place: Path | str, train: EncodedImages, val: EncodedImages) -> ImageData:
    if train.classes != val.classes:
        only_train = _listing(sorted(set(train.classes) - set(val.classes)))
        only_val = _listing(sorted(set(val.classes) - set(train.classes)))
        raise ValueError(
            f"{place}: found classes only in train ({only_train or 'none'}) and only in val ({only_val or 'none'}), "
            "expected the same in both, in the same order"
        )
    return ImageData(train, val, train.classes)


def _listing(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


# Splitting.


def _split_by_fraction(images: ImageFiles, fraction: float, seed: int) -> ImageData:
    """Every class gives the nearest number of images to val, at least one, and keeps at least one."""
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction={fraction}: must be between 0 and 1")
    train, val = [], []
    for name, members in _shuffled_classes(images, seed):
        if len(members) < 2:
            raise ValueError(f"{images.root}: found one image of {name}, expected two or more to split")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        train.append(members[count:])
        val.append(members[:count])
    return ImageData(_select(images, train), _select(images, val), images.classes)


def _shuffled_classes(images: ImageFiles, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every class with the indices of its images, in an order that hangs on the seed and each image's name alone.

    Hashes, not a random generator: an added file moves no other, and no library can change the split.
    """
    ends = np.cumsum(np.bincount(images.labels))
    for name, members in zip(images.classes, np.split(np.arange(len(images)), ends[:-1]), strict=True):
        ranks = [hashlib.sha256(b"%d/%b" % (seed, path)).digest() for path in images.paths[members]]
        yield name, members[sorted(range(len(members)), key=ranks.__getitem__)]


def _select(images: ImageFiles, indices: Sequence[np.ndarray]) -> ImageFiles:
    chosen = np.sort(np.concatenate(indices))
    return ImageFiles(images.root, images.paths[chosen], images.labels[chosen], images.classes)


# Reading the Hub.


def _load_split(name: str, config: str | None, split: str, cache: str | None) -> Any:
    """A `datasets.Dataset`, as it is stored."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError("the source hub needs the package datasets: pip install sppnet[hub]") from error
    if Path(name, "state.json").is_file():
        raise ValueError(f"{name}: found one data set without splits, expected a saved DatasetDict")
    if not Path(name, "dataset_dict.json").is_file():
        try:
            return datasets.load_dataset(name, config, split=split, cache_dir=cache)
        except (ValueError, OSError) as error:  # no such name, config or split, or no network
            raise ValueError(f"{name}: {str(error).splitlines()[0]}") from error
    splits = datasets.load_from_disk(name)
    if split not in splits:
        raise ValueError(f"{name}: found the splits {_listing(list(splits))}, expected {split}")
    return splits[split]


def _hub_images(dataset: Any, place: str, split: str, image_column: str, label_column: str) -> HubImages:
    import datasets

    columns = dataset.features
    for column, kind in ((image_column, datasets.Image), (label_column, datasets.ClassLabel)):
        if column not in columns:
            raise ValueError(f"{place}: found the columns {_listing(list(columns))}, expected {column}")
        if not isinstance(columns[column], kind):
            raise ValueError(f"{place}: {column} is {columns[column]}, expected {kind.__name__}")
    labels = dataset.select_columns([label_column]).with_format("numpy")[:][label_column].astype(np.int64)
    if not len(labels) or labels.min() < 0:  # test splits without labels say -1
        raise ValueError(f"{place}: found {(labels < 0).sum()} of {len(labels)} images without a label")
    images = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    return HubImages(images, image_column, split, labels, tuple(columns[label_column].names))
