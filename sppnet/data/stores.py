"""Data sets in memory-mapped Arrow files, as the library `datasets` writes them: of the Hub, or prepared here."""

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
from sppnet.runtime.names import first_line, listing

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
    folders: tuple[str, ...]  # where the files may lie that rows name instead of holding bytes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        (image,) = self.images[index].values()
        encoded: bytes | None = image["bytes"]
        return self._read_named_file(index, image["path"]) if encoded is None else encoded

    def _read_named_file(self, index: int, path: str) -> bytes:
        """The content of a file in one of `folders`. A store of a stranger may name any file of this machine."""
        file = os.path.realpath(os.path.join(self.folders[0], path) if self.folders else path)
        if not any(Path(file).is_relative_to(os.path.realpath(folder)) for folder in self.folders):
            where = " and ".join(self.folders) or "a remote store"
            raise UnreadableImage(f"{self.name(index)}: row {index} of {self.split} names {path}, outside {where}")
        return read_image_file(file, self.name(index))

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
    if not _is_remote(root) and not Path(root, "dataset_dict.json").is_file():
        raise ValueError(
            f"{root}: not a prepared store, or not a finished one; make it with prepare_data.py out={root}"
        )
    with _naming(root):
        splits = datasets.load_from_disk(root)
    if missing := [split for split in (TRAIN, VALIDATION) if split not in splits]:
        raise ValueError(f"{root}: found the splits {listing(list(splits))}, expected {missing[0]}")
    _check_counts(splits, Path(root, "report.json"))
    return _prepared_images(splits, TRAIN, root), _prepared_images(splits, VALIDATION, root)


def _check_counts(splits: Any, report: Path) -> None:
    """An Arrow file that was cut between two batches opens without an error."""
    if not report.is_file():  # remote, or made by another program
        return
    with _naming(str(report)):
        counts = {split: json.loads(report.read_text())[split]["images"] for split in (TRAIN, VALIDATION)}
    for split, count in counts.items():
        if len(splits[split]) != count:
            raise ValueError(
                f"{report.parent}: found {len(splits[split])} rows of {split}, {report.name} says {count}; "
                "repair it by the same command of prepare_data.py"
            )


def _prepared_images(splits: Any, split: str, root: str) -> StoredImages:
    dataset, place = splits[split], f"{root} {split}"
    if missing := [column for column in (IMAGE, LABEL, NAME) if column not in dataset.features]:
        raise ValueError(f"{place}: found the columns {listing(list(dataset.features))}, expected {missing[0]}")
    names = dataset.select_columns([NAME])
    if str(dataset.features[NAME].dtype) not in ("string", "large_string"):
        raise ValueError(f"{place}: {NAME} is {dataset.features[NAME]}, expected string")
    _check_no_null(_arrow_column(dataset, NAME, place), place, "name")
    return _stored_images(dataset, place, split, IMAGE, LABEL, names, () if _is_remote(root) else (root,))


def _is_remote(root: str) -> bool:
    return "://" in root


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Errors of reading a store become a ValueError of one line that names it."""
    try:
        yield
    except ImportError as error:  # fsspec's, for the package that reads this kind of address
        extra = "pip install sppnet[remote]" if place.startswith("s3://") else str(error).splitlines()[0]
        raise ValueError(f"{place}: needs a package for {place.partition('://')[0]}:// addresses: {extra}") from error
    except Exception as error:  # damaged files and remote stores fail in a dozen ways
        raise ValueError(f"{place}: cannot be read ({first_line(error)})") from error


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
    folders = (name,) if Path(name, "dataset_dict.json").is_file() else _local_folders(name, data_files, cache)
    return _stored_images(dataset, f"{name} {split}", split, image_column, label_column, None, folders)


def _local_folders(name: str, data_files: dict[str, str] | None, cache: str | None) -> tuple[str, ...]:
    """Where `load_dataset` takes files from: the folder given, those of `data_files`, and its caches."""
    import datasets
    import huggingface_hub

    given = [os.path.dirname(re.split(r"[*?{[]", file)[0]) or "." for file in (data_files or {}).values()]
    folders = [name if Path(name).is_dir() else None, *given, cache]
    caches = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    return tuple(os.path.abspath(folder) for folder in (*filter(None, folders), *caches) if not _is_remote(str(folder)))


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
            except ImportError as error:  # fsspec's, for a package that reads addresses of this kind
                raise ValueError(f"{name}: {first_line(error)} (s3: pip install sppnet[remote])") from error
            except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
                cause = error.__cause__ or error  # "An error occurred while generating the dataset" says nothing
                raise ValueError(f"{name}: {first_line(cause)}") from error
    with _naming(name):
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
    dataset: Any,
    place: str,
    split: str,
    image_column: str,
    label_column: str,
    names: Any,
    folders: tuple[str, ...],
) -> StoredImages:
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
    _check_no_null(pyarrow.compute.coalesce(*map(_is_there, fields)), place, "image")
    return StoredImages(images, names, split, labels, classes, dataset._fingerprint, folders)


def _is_there(column: Any) -> Any:
    """True where a value is, null elsewhere."""
    import pyarrow.compute

    return pyarrow.compute.if_else(pyarrow.compute.is_valid(column), True, pyarrow.scalar(None, pyarrow.bool_()))


def _checked_labels(column: Any, classes: tuple[str, ...], place: str) -> np.ndarray:
    _check_no_null(column, place, "label")
    labels = column.to_numpy().astype(np.int64)
    if not len(labels) or labels.min() < 0:  # test splits without labels say -1
        raise ValueError(f"{place}: found {(labels < 0).sum()} of {len(labels)} images without a label")
    if labels.max() >= len(classes):
        row = int((labels >= len(classes)).argmax())
        raise ValueError(f"{place}: row {row} has the label {labels[row]}, expected 0 to {len(classes) - 1}")
    return labels


def _check_no_null(column: Any, place: str, kind: str) -> None:
    if column.null_count:
        row = int(column.is_null().to_numpy().argmax())
        raise ValueError(f"{place}: row {row} has no {kind}")


def _arrow_column(dataset: Any, column: str, place: str) -> Any:
    """A whole column as a `pyarrow.ChunkedArray`, not copied where rows are in the order of the files."""
    with _naming(place):
        return dataset.select_columns([column]).with_format("arrow")[:].column(column)


def column_values(dataset: Any, column: str) -> np.ndarray:
    """A whole column as an array."""
    values: np.ndarray = dataset.select_columns([column]).with_format("numpy")[:][column]
    return values
