"""Data sets in memory-mapped Arrow files, as the library `datasets` writes them: from the Hub, or prepared here."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.data.images import UnreadableImage, read_image_file
from sppnet.data.remote_stores import REPORT_FILE as REPORT_FILE  # known from here as well
from sppnet.data.remote_stores import SPLITS_FILE as SPLITS_FILE  # `datasets` looks for it first; written last
from sppnet.data.remote_stores import is_remote, limit_waiting, local_copy
from sppnet.runtime.cluster import is_first_process
from sppnet.runtime.names import first_line, listing
from sppnet.runtime.progress import Waiting

# The columns of a prepared store.
IMAGE, LABEL, NAME, DIGEST = "image", "label", "name", "source_sha256"
TRAIN, VALIDATION = "train", "validation"

PAGE_FILE = "report.html"  # the report of a prepared store as a page


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images in the memory-mapped files of a `datasets.Dataset`."""

    images: Any  # a `datasets.Dataset` of one column, undecoded: the bytes of a file, or its path
    names: Any  # a `datasets.Dataset` of one column; None: a name is SPLIT/INDEX
    split: str
    labels: np.ndarray
    classes: tuple[str, ...]
    stored_fingerprint: str  # the fingerprint that `datasets` computed for the content
    folders: tuple[str, ...]  # if a row holds a path instead of bytes, the file must be in one of these folders

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        (image,) = self.images[index].values()
        encoded: bytes | None = image["bytes"]
        return self._read_named_file(index, image["path"]) if encoded is None else encoded

    def _read_named_file(self, index: int, path: str) -> bytes:
        """Reads a file in one of `folders`. UnreadableImage elsewhere: a downloaded store may name any file."""
        file = os.path.realpath(os.path.join(self.folders[0], path) if self.folders else path)
        if not any(Path(file).is_relative_to(os.path.realpath(folder)) for folder in self.folders):
            where = " and ".join(self.folders) or "a remote store"
            raise UnreadableImage(f"{self.name(index)}: row {index} of {self.split} names {path}, outside {where}")
        return read_image_file(file, self.name(index))

    def name(self, index: int) -> str:
        return f"{self.split}/{index}" if self.names is None else self.names[index][NAME]

    def fingerprint(self) -> str:
        """A hash of the fingerprint that `datasets` keeps of the files, and of the labels."""
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
    """Reads a data set of the Hugging Face Hub, or a local folder for `load_dataset` or written by `save_to_disk`.

    The splits of what `load_dataset` reads may be slices, such as train[:90%] and train[90%:].

    Args:
        name: of the data set on the Hub, a local folder or, with `data_files`, a format: parquet, webdataset,
            imagefolder.
        config: the configuration, for data sets that have several.
        data_files: split -> path, pattern or URL.
        train_split: the split to train on.
        val_split: the split to validate on.
        image_column: a column of type `datasets.Image`.
        label_column: a column of type `datasets.ClassLabel`.
        cache: the folder for downloads; None: that of `datasets`.
    """
    return (
        _hub_images(name, config, data_files, train_split, image_column, label_column, cache),
        _hub_images(name, config, data_files, val_split, image_column, label_column, cache),
    )


def prepared(*, root: str) -> tuple[StoredImages, StoredImages]:
    """Reads a store of prepare_data.py, in a folder or at an address that fsspec can read: s3://, gs://."""
    datasets = _import_datasets("prepared")
    if not is_remote(root) and not Path(root, SPLITS_FILE).is_file():
        raise ValueError(
            f"{root}: not a prepared store, or not a finished one; make it with prepare_data.py out={root}"
        )
    with _named_errors(root):
        folder = local_copy(root) if is_remote(root) else Path(root)
        splits = datasets.load_from_disk(str(folder))
    if missing := [split for split in (TRAIN, VALIDATION) if split not in splits]:
        raise ValueError(f"{root}: found the splits {listing(list(splits))}, expected {missing[0]}")
    _check_counts(splits, folder / REPORT_FILE, root)
    return _prepared_images(splits, TRAIN, root), _prepared_images(splits, VALIDATION, root)


def _check_counts(splits: Any, report: Path, root: str) -> None:
    """Raises ValueError for a split with missing rows: an Arrow file cut between two batches opens without an error."""
    if not report.is_file():  # made by another program
        return
    with _named_errors(f"{root}/{report.name}"):
        counts = {split: json.loads(report.read_text())[split]["images"] for split in (TRAIN, VALIDATION)}
    for split, count in counts.items():
        if len(splits[split]) != count:
            advice = "copy it there" if is_remote(root) else "run the same command of prepare_data.py"
            raise ValueError(
                f"{root}: found {len(splits[split])} rows of {split}, {report.name} says {count}; "
                f"{advice} again to repair it"
            )


def _prepared_images(splits: Any, split: str, root: str) -> StoredImages:
    """One split of a prepared store, its columns checked."""
    dataset, place = splits[split], f"{root} {split}"
    if missing := [column for column in (IMAGE, LABEL, NAME) if column not in dataset.features]:
        raise ValueError(f"{place}: found the columns {listing(list(dataset.features))}, expected {missing[0]}")
    names = dataset.select_columns([NAME])
    if str(dataset.features[NAME].dtype) not in ("string", "large_string"):
        raise ValueError(f"{place}: {NAME} is {dataset.features[NAME]}, expected string")
    _check_no_null(_arrow_column(dataset, NAME, place), place, "name")
    return _stored_images(dataset, place, split, IMAGE, LABEL, names, () if is_remote(root) else (root,))


@contextmanager
def _named_errors(place: str) -> Iterator[None]:
    """Turns errors of reading a store into a ValueError of one line that names it."""
    try:
        yield
    except ImportError as error:  # fsspec's, for the package that reads this kind of address
        extra = "pip install sppnet[remote]" if place.startswith("s3://") else str(error).splitlines()[0]
        raise ValueError(f"{place}: needs a package for {place.partition('://')[0]}:// addresses: {extra}") from error
    except Exception as error:  # damaged files and remote stores fail in a dozen ways
        raise ValueError(f"{place}: cannot be read ({first_line(error)})") from error


def _import_datasets(source: str) -> Any:
    """The package `datasets`, silenced. Raises ValueError naming the extra that installs it."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"the source {source} needs the package datasets: pip install sppnet[hub]") from error

    # What it logs about errors is in its exceptions too, and its progress bars are of files that the user did not name.
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
    folders = (name,) if Path(name, "dataset_dict.json").is_file() else _local_folders(name, data_files, cache)
    return _stored_images(dataset, f"{name} {split}", split, image_column, label_column, None, folders)


def _local_folders(name: str, data_files: dict[str, str] | None, cache: str | None) -> tuple[str, ...]:
    """The folders that `load_dataset` takes files from: `name`, those of `data_files`, and its caches."""
    import datasets
    import huggingface_hub

    given = [os.path.dirname(re.split(r"[*?{[]", file)[0]) or "." for file in (data_files or {}).values()]
    folders = [name if Path(name).is_dir() else None, *given, cache]
    caches = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    return tuple(os.path.abspath(folder) for folder in (*filter(None, folders), *caches) if not is_remote(str(folder)))


def _load_split(name: str, config: str | None, data_files: dict[str, str] | None, split: str, cache: str | None) -> Any:
    """A split as a `datasets.Dataset`, from `save_to_disk` or by `load_dataset`."""
    datasets = _import_datasets("hub")
    if is_remote(name):
        raise ValueError(f"{name}: is an address; data=prepared data.root={name} reads a store there")
    if Path(name, "state.json").is_file():
        raise ValueError(f"{name}: found one data set without splits, expected a saved DatasetDict")

    if Path(name, SPLITS_FILE).is_file():
        with _named_errors(name):
            splits = datasets.load_from_disk(name)
        if split not in splits:
            raise ValueError(f"{name}: found the splits {listing(list(splits))}, expected {split}")
        return splits[split]

    # With `data_files` a name without a slash is a format, for which the Hub is not asked.
    is_local = Path(name).exists() or (data_files is not None and "/" not in name)
    with nullcontext() if is_local else _cached_if_unreachable(name):
        work = "preparing" if is_local else "downloading and preparing"
        waiting = Waiting(f"{name} {split}: {work}") if is_first_process() else nullcontext()
        with _named_load_errors(name, list((data_files or {}).values())), waiting:
            return datasets.load_dataset(name, config, data_files=data_files, split=split, cache_dir=cache)


@contextmanager
def _named_load_errors(name: str, files: list[str]) -> Iterator[None]:
    """Turns errors of `load_dataset` into a ValueError of one line that names the data set, and addresses of files."""
    import datasets

    addresses = [file for file in files if is_remote(file)]
    place = f"{name} ({listing(addresses)})" if addresses else name
    try:
        limit_waiting()
        yield
    except ImportError as error:  # fsspec's, for a package that reads addresses of this kind
        raise ValueError(f"{place}: {first_line(error)} (s3: pip install sppnet[remote])") from error
    except Exception as error:
        # Those of packages that read addresses may be of any type.
        if not addresses and not isinstance(error, ValueError | OSError | datasets.exceptions.DatasetsError):
            raise
        cause = error.__cause__ or error  # "An error occurred while generating the dataset" says nothing
        raise ValueError(f"{place}: {first_line(cause)}") from error


@contextmanager
def _cached_if_unreachable(name: str) -> Iterator[None]:
    """Sets `datasets` offline if the Hub does not answer, so that it reads `name` from its cache only.

    By itself `datasets` asks six times, which takes 25 seconds.
    """
    import datasets
    import huggingface_hub

    was_offline = datasets.config.HF_HUB_OFFLINE
    try:
        if not was_offline:
            huggingface_hub.HfApi().dataset_info(name, timeout=10)
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError):
        pass  # The Hub answers, or the name is not valid: the errors of `datasets` say more.
    except Exception:  # of the HTTP library, which differs between releases
        datasets.config.HF_HUB_OFFLINE = True

    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


def _stored_images(
    dataset: Any,
    place: str,
    split: str,
    image_column: str,
    label_column: str,
    names: Any,
    folders: tuple[str, ...],
) -> StoredImages:
    """The images of a `datasets.Dataset`; ValueError for wrong columns, missing labels and missing images."""
    import datasets
    import pyarrow.compute

    columns = dataset.features
    for column, kind in ((image_column, datasets.Image), (label_column, datasets.ClassLabel)):
        if column not in columns:
            raise ValueError(f"{place}: found the columns {listing(list(columns))}, expected {column}")
        if not isinstance(columns[column], kind):
            raise ValueError(f"{place}: {column} is {columns[column]}, expected {kind.__name__}")

    classes = tuple(columns[label_column].names)
    labels = _checked_labels(_arrow_column(dataset, label_column, place), classes, place)

    images = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    stored = _arrow_column(images, image_column, place)
    fields = [pyarrow.compute.struct_field(stored, field) for field in ("bytes", "path")]
    _check_no_null(pyarrow.compute.coalesce(*map(_true_or_null, fields)), place, "image")
    return StoredImages(images, names, split, labels, classes, dataset._fingerprint, folders)


def _true_or_null(column: Any) -> Any:
    """A column that is True where `column` has a value, and null where it has none."""
    import pyarrow.compute

    return pyarrow.compute.if_else(pyarrow.compute.is_valid(column), True, pyarrow.scalar(None, pyarrow.bool_()))


def _checked_labels(column: Any, classes: tuple[str, ...], place: str) -> np.ndarray:
    """The labels of an Arrow column as int64 (n,); ValueError for missing ones and those that are no class."""
    _check_no_null(column, place, "label")
    labels: np.ndarray = column.to_numpy().astype(np.int64)
    if not len(labels) or labels.min() < 0:  # test splits without labels say -1
        raise ValueError(f"{place}: found {(labels < 0).sum()} of {len(labels)} images without a label")
    if labels.max() >= len(classes):
        row = int((labels >= len(classes)).argmax())
        raise ValueError(f"{place}: row {row} has the label {labels[row]}, expected 0 to {len(classes) - 1}")
    return labels


def _check_no_null(column: Any, place: str, kind: str) -> None:
    """Raises ValueError naming the first row without a value; `kind` says what is missing."""
    if column.null_count:
        row = int(column.is_null().to_numpy().argmax())
        raise ValueError(f"{place}: row {row} has no {kind}")


def _arrow_column(dataset: Any, column: str, place: str) -> Any:
    """A whole column as a `pyarrow.ChunkedArray`, not copied if the rows are in the order of the files."""
    with _named_errors(place):
        return dataset.select_columns([column]).with_format("arrow")[:].column(column)


def column_values(dataset: Any, column: str) -> np.ndarray:
    """A whole column as an array."""
    values: np.ndarray = dataset.select_columns([column]).with_format("numpy")[:][column]
    return values
