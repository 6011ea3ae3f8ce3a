"""Data sets of the images that a table names, with one label each."""

import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np

from sppnet.data.folders import existing_folder
from sppnet.data.image_files import (
    ImageFiles,
    chosen_parts,
    file_keys,
    missing_files,
    of_classes,
    sorted_files,
    split_by_fraction,
)
from sppnet.data.table_files import Table, read_table
from sppnet.runtime.names import counted, printable

_TRAIN = ("train", "training")
_VAL = ("val", "validation", "valid", "test")


def table(
    *,
    file: str,
    root: str | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str | None = None,
    val_file: str | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
    classes: list[str] | None = None,
) -> tuple[ImageFiles, ImageFiles]:
    """The images that a CSV or parquet file names, with one label each: any text, or numbers, which are names too.

    The parts are those of `split_column` or `val_file`; without either, images are split as `folder` does it. Classes
    are the labels of the training images, in the order of `sorted_files`.

    Args:
        file: the table, as `read_table` takes it.
        root: the folder that paths start from; None: the one that holds `file`.
        path_column: the column of paths, absolute or from `root`.
        label_column: the column of labels.
        split_column: a column of train, and val, validation, valid or test. Warns if it has several of these four: the
            first one is used.
        val_file: a table of the validation images, with the same columns.
        val_fraction: the share of every class that becomes val in a random split; None: 0.2.
        split_seed: decides, together with the paths, which images become val.
        classes: only the images of these; None: all.

    Raises FileNotFoundError or ValueError, with the line or row, for what is wrong with a table, for a row without a
    label, an image that is there twice, one that is no file, and a class without training images.
    """
    fixed = has_fixed_parts(split_column, val_file, val_fraction)
    rows, top = _read(file, root, path_column, label_column, split_column)
    if not fixed:
        if val_fraction is None:
            _warn_of_unused_split(rows)
        images, _ = of_classes((_labelled(rows, top, label_column),) * 2, classes, file)  # before the split
        place_of = partial(_place_of_label, rows, label_column)
        return split_by_fraction(images, 0.2 if val_fraction is None else val_fraction, split_seed, place_of)

    if split_column is not None:
        train_rows, val_rows = split_rows(rows, split_column)
    else:
        train_rows, val_rows = rows, _read(str(val_file), top, path_column, label_column, None)[0]
        check_disjoint(train_rows, val_rows, top)
    train, val = (_labelled(part, top, label_column) for part in (train_rows, val_rows))
    return chosen_parts(train, val, classes, file, partial(_place_of_label, val_rows, label_column))


def unsplit_table(
    *,
    file: str,
    root: str | None = None,
    path_column: str = "path",
    label_column: str = "label",
    classes: list[str] | None = None,
) -> tuple[ImageFiles, ImageFiles]:
    """All images of a table, and no validation images: to test on all of them."""
    rows, top = _read(file, root, path_column, label_column, None)
    images = _labelled(rows, top, label_column)
    nothing = ImageFiles(images.root, images.paths[:0], images.labels[:0], images.classes)
    return of_classes((images, nothing), classes, file)


# Reading and checking.


def has_fixed_parts(split_column: str | None, val_file: str | None, val_fraction: float | None) -> bool:
    """Returns whether the parts are fixed. Raises ValueError for several ways to split."""
    ways = {"split_column": split_column, "val_file": val_file, "val_fraction": val_fraction}
    given = [f"{key}={value}" for key, value in ways.items() if value is not None]
    if len(given) > 1:
        raise ValueError(printable(f"{' and '.join(given)}: must be one of them, as each splits the images"))
    return split_column is not None or val_file is not None


def existing_root(file: str, root: str | None) -> str:
    """Returns the folder that paths of a table start from. Raises FileNotFoundError or ValueError if it is none."""
    return str(existing_folder(Path(root)) if root is not None else Path(file).parent)


def read_columns(label_column: str, split_column: str | None = None) -> dict[str, str]:
    """Returns the columns to read besides that of the paths, as `read_table` takes them."""
    return {"label_column": label_column} | ({} if split_column is None else {"split_column": split_column})


def _warn_of_unused_split(rows: Table) -> None:
    """Warns that images are split at random although a column seems to say how."""
    if named := [name for name in rows.names if name.lower() == "split"]:
        warnings.warn(
            printable(
                f"{rows.file}: images are split at random, and its column {named[0]} is not used; "
                f"data.split_column={named[0]} uses it"
            ),
            stacklevel=3,
        )


def _read(
    file: str, root: str | None, path_column: str, label_column: str, split_column: str | None
) -> tuple[Table, str]:
    """Returns the rows of a table, an image with one label each, and the folder that its paths start from."""
    rows = read_table(file, path_column, read_columns(label_column, split_column))
    top = existing_root(file, root)
    codes, labels = rows.columns[label_column]
    if "" in labels:
        without = np.flatnonzero(codes == labels.index(""))
        more = f", as {counted(without.size - 1, 'more row')}" if without.size > 1 else ""
        raise ValueError(printable(f"{rows.place(without[0])}: {_path(rows, without[0])} has no {label_column}{more}"))
    check_exist(rows, top)
    _check_once(rows, top, label_column)
    return rows, top


def _path(rows: Table, row: int) -> str:
    return os.fsdecode(rows.paths[row])


def _place_of_label(rows: Table, label_column: str, label: str) -> str:
    """Returns where the first row with a label is."""
    codes, labels = rows.columns[label_column]
    return rows.place(int((codes == labels.index(label)).argmax()))


def _check_once(rows: Table, top: str, label_column: str) -> None:
    """Raises ValueError for an image that is there twice."""
    keys = file_keys(top, rows.paths)
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    if not again.size:
        return
    codes, labels = rows.columns[label_column]
    first, second = order[again], order[again + 1]
    different = np.flatnonzero(codes[first] != codes[second])
    i = int(different[0]) if different.size else 0
    line = f"{rows.place(second[i])}: found {_path(rows, second[i])} a second time, after {rows.place(first[i])}"
    line += _other_spelling(_path(rows, second[i]), _path(rows, first[i]))
    if different.size:
        line += (
            f", as {labels[codes[second[i]]]} and as {labels[codes[first[i]]]}; data=multilabel takes several labels"
        )
    raise ValueError(printable(f"{line} ({counted(again.size, 'such row')})"))


def check_exist(rows: Table, top: str) -> None:
    """Raises FileNotFoundError for an image that is no file."""
    missing = missing_files(top, rows.paths)
    if missing.size:
        path = _path(rows, missing[0])
        where = "" if Path(path).is_absolute() else f" in {top}"
        hint = "; write paths with / instead of \\" if "\\" in path else ""
        count = f"no file for {missing.size:,} of {counted(len(rows.paths), 'row')}"
        raise FileNotFoundError(printable(f"{rows.place(missing[0])}: there is no {path}{where} ({count}){hint}"))


def check_disjoint(train: Table, val: Table, top: str) -> None:
    """Raises ValueError for an image in both parts, whose paths start from `top`."""
    train_keys, val_keys = (file_keys(top, part.paths) for part in (train, val))
    shared = np.flatnonzero(np.isin(val_keys, train_keys))
    if shared.size:
        first, path = int((train_keys == val_keys[shared[0]]).argmax()), _path(val, shared[0])
        more = f", and {counted(shared.size - 1, 'more image')}" if shared.size > 1 else ""
        where = f"{train.place(first)}{_other_spelling(path, _path(train, first))}"
        raise ValueError(printable(f"{val.place(shared[0])}: {path} is among the training images, {where}{more}"))


def _other_spelling(path: str, other: str) -> str:
    """Returns how an image is named elsewhere, for messages; nothing if it is the same there."""
    return "" if path == other else f", which names it {other}"


# Parts and labels.


def split_rows(rows: Table, split_column: str) -> tuple[Table, Table]:
    """Returns the rows of training and of validation images."""
    codes, values = rows.columns[split_column]
    names = [value.lower() for value in values]
    for code, name in enumerate(names):
        if name not in (*_TRAIN, *_VAL):
            place, known = rows.place(int((codes == code).argmax())), ", ".join((*_TRAIN, *_VAL))
            raise ValueError(printable(f"{place}: {split_column} is {values[code]!r}, expected one of {known}"))

    val_name, *unused = [name for name in _VAL if name in names] or [""]
    if not val_name or not set(names) & set(_TRAIN):
        missing = "val" if not val_name else "train"
        raise ValueError(
            f"{rows.file}: found no row whose {split_column} is {missing}; split_column=null splits images at random"
        )
    if unused:
        warnings.warn(
            f"{rows.file}: validation uses the rows whose {split_column} is {val_name}, not {', '.join(unused)}",
            stacklevel=4,
        )

    masks = [np.array([name in chosen for name in names])[codes] for chosen in (_TRAIN, (val_name,))]
    return rows.of_rows(masks[0]), rows.of_rows(masks[1])


def _labelled(rows: Table, top: str, label_column: str) -> ImageFiles:
    return sorted_files(top, rows.paths, *rows.columns[label_column])
