"""Data sets in memory-mapped Arrow files, as the library `datasets` writes them: of the Hub, or prepared here."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.folders import listing

# The columns of a prepared store.
IMAGE, LABEL, NAME, DIGEST = "image", "label", "name", "source_sha256"
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images in the memory-mapped files of a `datasets.Dataset`."""

    images: Any  # a `datasets.Dataset` of one column, undecoded: the bytes of a file, or its path
    names: Any  # of one column; None: a name is the split and the position in it
    split: str
    labels: np.ndarray
    classes: tuple[str, ...]
    stored_fingerprint: str  # by which `datasets` tells one content from another

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int, str]:
        index = range(len(self))[index]
        (image,) = self.images[index].values()
        data = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
        return data, int(self.labels[index]), self.name(index)

    def name(self, index: int) -> str:
        return f"{self.split}/{index}" if self.names is None else self.names[index][NAME]

    def fingerprint(self) -> str:
        """A hash of what `datasets` knows of the files, and of the labels."""
        return hashlib.sha256(self.stored_fingerprint.encode() + self.labels.tobytes()).hexdigest()


def hub(
    *,
    name: str,
    config: str | None = None,
    data_files: dict[str, str] | None = None,
    train_split: str = TRAIN,
    val_split: str = VALIDATION,
    image_column: str = "image",
    label_column: str = "label",
    cache: str | None = None,
) -> tuple[StoredImages, StoredImages]:
    """A data set of the Hugging Face Hub, or a local folder that `load_dataset` reads or `save_to_disk` wrote.

    Splits of what `load_dataset` reads may be slices, such as train[:90%] and train[90%:]. With `data_files`, split ->
    path, pattern or URL, `name` is a format: parquet, webdataset, imagefolder.
    """
    return (
        _hub_images(name, config, data_files, train_split, image_column, label_column, cache),
        _hub_images(name, config, data_files, val_split, image_column, label_column, cache),
    )


def prepared(*, root: str) -> tuple[StoredImages, StoredImages]:
    """What scripts/prepare_data.py wrote, in a folder or wherever `datasets.load_from_disk` can read: s3://, gs://."""
    datasets = _library("prepared")
    if "://" not in root and not Path(root, "dataset_dict.json").is_file():
        raise ValueError(
            f"{root}: not a prepared store, or not a finished one; make it with prepare_data.py out={root}"
        )
    splits = datasets.load_from_disk(root)
    if missing := [split for split in (TRAIN, VALIDATION) if split not in splits]:
        raise ValueError(f"{root}: found the splits {listing(list(splits))}, expected {missing[0]}")
    return _prepared_images(splits[TRAIN], root), _prepared_images(splits[VALIDATION], root)


def _prepared_images(dataset: Any, root: str) -> StoredImages:
    if missing := [column for column in (IMAGE, LABEL, NAME) if column not in dataset.features]:
        raise ValueError(f"{root}: found the columns {listing(list(dataset.features))}, expected {missing[0]}")
    return _stored_images(dataset, root, str(dataset.split), IMAGE, LABEL, dataset.select_columns([NAME]))


def _library(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"the source {source} needs the package datasets: pip install sppnet[hub]") from error
    # What it reports of errors is in its exceptions too, and its bars are of files that we do not name.
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    return datasets


def _hub_images(
    name: str,
    config: str | None,
    data_files: dict[str, str] | None,
    split: str,
    image_column: str,
    label_column: str,
    cache: str | None,
) -> StoredImages:
    dataset = _load_split(name, config, data_files, split, cache)
    return _stored_images(dataset, f"{name} {split}", split, image_column, label_column, names=None)


def _load_split(name: str, config: str | None, data_files: dict[str, str] | None, split: str, cache: str | None) -> Any:
    """A `datasets.Dataset`, as it is stored."""
    datasets = _library("hub")
    if Path(name, "state.json").is_file():
        raise ValueError(f"{name}: found one data set without splits, expected a saved DatasetDict")
    if not Path(name, "dataset_dict.json").is_file():
        # With `data_files` a name without a slash is a format, for which nobody is asked.
        is_local = Path(name).exists() or (data_files is not None and "/" not in name)
        with nullcontext() if is_local else _cached_if_unreachable(name):
            try:
                return datasets.load_dataset(name, config, data_files=data_files, split=split, cache_dir=cache)
            except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
                cause = error.__cause__ or error  # "An error occurred while generating the dataset" says nothing
                raise ValueError(f"{name}: {str(cause).splitlines()[0]}") from error
    splits = datasets.load_from_disk(name)
    if split not in splits:
        raise ValueError(f"{name}: found the splits {listing(list(splits))}, expected {split}")
    return splits[split]


@contextmanager
def _cached_if_unreachable(name: str) -> Iterator[None]:
    """Where the Hub does not answer, keeps `datasets` from asking it for `name`: then only its cache is read.

    By itself it asks six times, which takes 25 seconds.
    """
    import datasets
    import huggingface_hub

    before = datasets.config.HF_HUB_OFFLINE
    try:
        if not before:
            huggingface_hub.HfApi().dataset_info(name, timeout=10)
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError):
        pass  # The Hub answers, or the name is none: `datasets` says more about it.
    except Exception:  # of the HTTP library, which is not the same in all releases
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _stored_images(
    dataset: Any, place: str, split: str, image_column: str, label_column: str, names: Any
) -> StoredImages:
    import datasets

    columns = dataset.features
    for column, kind in ((image_column, datasets.Image), (label_column, datasets.ClassLabel)):
        if column not in columns:
            raise ValueError(f"{place}: found the columns {listing(list(columns))}, expected {column}")
        if not isinstance(columns[column], kind):
            raise ValueError(f"{place}: {column} is {columns[column]}, expected {kind.__name__}")
    labels = column_values(dataset, label_column).astype(np.int64)
    if not len(labels) or labels.min() < 0:  # test splits without labels say -1
        raise ValueError(f"{place}: found {(labels < 0).sum()} of {len(labels)} images without a label")
    images = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    return StoredImages(images, names, split, labels, tuple(columns[label_column].names), dataset._fingerprint)


def column_values(dataset: Any, column: str) -> np.ndarray:
    """A whole column as an array."""
    values: np.ndarray = dataset.select_columns([column]).with_format("numpy")[:][column]
    return values
