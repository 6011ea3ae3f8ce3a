"""Data sets of the images that a table names, with any number of labels each: for transfer."""

import numpy as np

from sppnet.data.image_files import check_classes, file_keys, shuffled_order
from sppnet.data.table_files import Column, Table, read_table
from sppnet.data.table_images import (
    check_disjoint,
    check_exist,
    existing_root,
    has_fixed_parts,
    read_columns,
    split_rows,
)
from sppnet.data.voc import MultiLabelFiles, MultiLabelSplits
from sppnet.runtime.names import printable


def multilabel(
    *,
    file: str,
    root: str | None = None,
    path_column: str = "path",
    label_column: str = "label",
    label_separator: str | None = ";",
    split_column: str | None = None,
    val_file: str | None = None,
    val_fraction: float | None = None,
    split_seed: int = 0,
    classes: list[str] | None = None,
) -> MultiLabelSplits:
    """The images that a CSV or parquet file names, with any number of labels each.

    The labels of an image are in one row, in several, or both; an image whose label is empty shows none of the classes.
    The parts are as in `table`, but a random split takes `val_fraction` of all images.

    Args:
        file: the table, as `read_table` takes it.
        root: as in `table`.
        path_column: as in `table`.
        label_column: the column of labels.
        label_separator: what is between the labels of a row; None: every row has one label.
        split_column: as in `table`.
        val_file: a table of the images to test on, with the same columns.
        val_fraction: the share of the images to test on in a random split; None: 0.2.
        split_seed: as in `table`.
        classes: only these, and all images; None: all.

    Raises FileNotFoundError or ValueError, with the line or row, for what is wrong with a table, for an image that is
    no file, one in both parts, and for a table without labels.
    """
    fixed = has_fixed_parts(split_column, val_file, val_fraction)
    if label_separator == "":
        raise ValueError("label_separator='': must be text, or null for one label in each row")
    rows = read_table(file, path_column, read_columns(label_column, split_column))
    top = existing_root(file, root)
    rows = _in_one_spelling(rows, top)
    if split_column is not None:
        train, test = split_rows(rows, split_column)
    elif fixed:
        train = rows
        test = _in_one_spelling(read_table(str(val_file), path_column, read_columns(label_column)), top)
    else:
        train, test = _random_rows(rows, 0.2 if val_fraction is None else val_fraction, split_seed)
    for part in (train, test):
        check_exist(part, top)
    if fixed:
        check_disjoint(train, test, top)

    parts = [(part, _separated(part.columns[label_column], label_separator)) for part in (train, test)]
    known = sorted({name for _, names in parts for of_value in names for name in of_value})
    if not known:
        raise ValueError(printable(f"{file}: found no labels in the column {label_column}"))
    if classes is not None:
        check_classes(classes, known, file)
        known = [name for name in known if name in classes]
    files = [_files(part, part.columns[label_column].codes, top, names, known) for part, names in parts]
    return MultiLabelSplits(*files)


def _in_one_spelling(rows: Table, top: str) -> Table:
    """Returns the rows with one path for every image: the first, sorted, of those that the table has for it."""
    keys = file_keys(top, rows.paths)
    order = np.lexsort((rows.paths, keys))
    _, first, image_of_row = np.unique(keys[order], return_index=True, return_inverse=True)
    paths = rows.paths.copy()
    paths[order] = rows.paths[order[first]][image_of_row]
    return rows._replace(paths=paths)


def _random_rows(rows: Table, fraction: float, seed: int) -> tuple[Table, Table]:
    """Returns the rows of all but `fraction` of the images, rounded, and the others; both have one image at least."""
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction={fraction}: must be above 0 and below 1")
    images, image_of_row = np.unique(rows.paths, return_inverse=True)
    if len(images) < 2:
        raise ValueError(f"{rows.file}: found one image, expected two or more to split")
    count = min(max(round(fraction * len(images)), 1), len(images) - 1)
    is_val = np.zeros(len(images), bool)
    is_val[shuffled_order(images, seed)[:count]] = True
    return rows.of_rows(~is_val[image_of_row]), rows.of_rows(is_val[image_of_row])


def _separated(column: Column, separator: str | None) -> list[list[str]]:
    """Returns the labels in each of the values of a column that a row has; none for the others."""
    used = set(np.unique(column.codes).tolist())
    values = [value if code in used else "" for code, value in enumerate(column.values)]
    parts = [[value] if separator is None else value.split(separator) for value in values]
    return [[name.strip() for name in names if name.strip()] for names in parts]


def _files(rows: Table, codes: np.ndarray, top: str, names: list[list[str]], classes: list[str]) -> MultiLabelFiles:
    """Returns the images of rows, sorted by path.

    Args:
        rows: one or more of every image.
        codes: int64 (rows,), indices in `names`.
        top: the folder that the paths start from.
        names: lists of labels.
        classes: the labels that count.
    """
    paths, image_of_row = np.unique(rows.paths, return_inverse=True)
    labels = np.full((len(paths), len(classes)), -1, np.int8)
    column_of = {name: column for column, name in enumerate(classes)}
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    for code, of_value in enumerate(names):
        images = image_of_row[order[bounds[code] : bounds[code + 1]]]
        for name in of_value:
            if name in column_of:
                labels[images, column_of[name]] = 1
    return MultiLabelFiles(top, paths, labels, tuple(classes))
