"""Tables of images in files, CSV or parquet: the paths of the images and columns of text about them.

Rows are kept in NumPy arrays, not as Python objects: a table may have millions of them.
"""

import csv
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from sppnet.runtime.names import counted, first_line, is_utf8, listing, printable

_DELIMITERS = (",", ";", "\t")  # spreadsheets write semicolons where the comma is the decimal point
_LONGEST_PATH = 4096  # bytes, on Linux
_PARQUET_SUFFIXES = (".parquet", ".pq")
# How files begin that are no tables, though their names may say so.
_OTHER_FILES = {
    b"\xff\xfe": "UTF-16 text, expected UTF-8; save the table as UTF-8",
    b"\xfe\xff": "UTF-16 text, expected UTF-8; save the table as UTF-8",
    b"PK\x03\x04": "a spreadsheet or an archive, expected CSV or parquet; save the table as CSV",
    b"\x1f\x8b": "a compressed file, expected CSV or parquet; unpack it",
}


class Column(NamedTuple):
    """A column of text, its different values once."""

    codes: np.ndarray  # int64 (n,): index in `values`
    values: tuple[str, ...]  # "" for an empty cell


class Table(NamedTuple):
    """The rows of a table, one or more."""

    file: Path
    numbers: np.ndarray  # int64 (n,): the line of a CSV file, from 1, or the row of a parquet file, from 0
    paths: np.ndarray  # (n,) of bytes, as `os.fsencode` makes them, without "./" and "//"
    columns: dict[str, Column]  # those that were read
    names: tuple[str, ...]  # of all columns of the file

    def place(self, row: int) -> str:
        """Returns where a row is, for messages: photos.csv:17, or "photos.parquet: row 15"."""
        number = int(self.numbers[row])
        return f"{self.file}: row {number}" if _is_parquet(self.file) else f"{self.file}:{number}"

    def of_rows(self, rows: np.ndarray) -> "Table":
        """Returns the rows with these indices, or where a mask is true."""
        columns = {name: Column(codes[rows], values) for name, (codes, values) in self.columns.items()}
        return Table(self.file, self.numbers[rows], self.paths[rows], columns, self.names)


def read_table(file: str, path_column: str, columns: Mapping[str, str]) -> Table:
    """Reads the column of paths and some others of a table.

    A file that begins as parquet does is read as parquet, another one as CSV: UTF-8, with or without a byte order mark,
    a first line that names the columns, fields separated by commas, semicolons or tabs, quotes where needed, any line
    ends. Spaces around fields are left out (after a closing quote they are an error), and so are blank lines.

    Args:
        file: the table.
        path_column: the column of paths.
        columns: the other columns, by the keys that give them: {"label_column": "label"}.

    Raises FileNotFoundError or ValueError, with the line or row, for a file that is no table, missing columns, rows
    with another number of fields, empty paths, and text that is not UTF-8.
    """
    path = Path(file)
    _check_file(path)
    table = (_read_parquet if _is_parquet(path) else _read_csv)(path, path_column, columns)
    if not len(table.paths):
        raise ValueError(f"{file}: found no rows below the names of the columns")
    if (empty := np.flatnonzero(table.paths == b"")).size:
        raise ValueError(f"{table.place(empty[0])}: the column {path_column} is empty{_more_rows(empty.size)}")
    for name, (codes, values) in table.columns.items():
        for code, value in enumerate(values):
            if not is_utf8(value):
                place = table.place(int((codes == code).argmax()))
                raise ValueError(printable(f"{place}: {name} is {value}, expected UTF-8; save the table as UTF-8"))
    return table


def _more_rows(count: int) -> str:
    return f", as in {counted(count - 1, 'more row')}" if count > 1 else ""


def _check_file(file: Path) -> None:
    if not file.exists():
        raise FileNotFoundError(f"{file}: there is no such file")
    if not file.is_file():
        raise ValueError(f"{file}: found a folder, expected a CSV or parquet file")
    beginning = _beginning(file)
    if not beginning:
        raise ValueError(f"{file}: is empty, expected a CSV or parquet file")
    for bytes_of_it, words in _OTHER_FILES.items():
        if beginning.startswith(bytes_of_it):
            raise ValueError(f"{file}: is {words}")
    if file.suffix.lower() in _PARQUET_SUFFIXES and not _is_parquet(file):
        raise ValueError(f"{file}: is not a parquet file, as its name says; CSV files are named .csv")


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4)


def _is_parquet(file: Path) -> bool:
    return _beginning(file) == b"PAR1"


def _check_columns(file: Path, found: Sequence[str], expected: Mapping[str, str]) -> None:
    """Raises ValueError for a column that is missing, or there twice. `expected` is by the keys that give them."""
    if missing := {key: name for key, name in expected.items() if name not in found}:
        keys = " and ".join(f"{key}={name}" for key, name in missing.items())
        others = [name for name in found if name not in expected.values()]
        close = dict.fromkeys(match for name in missing.values() for match in get_close_matches(name, others, n=1))
        hint = f"; did you mean {' and '.join(close)}?" if close else ""
        raise ValueError(printable(f"{file}: found the columns {listing(found) or 'none'}, expected {keys}{hint}"))
    for name in expected.values():
        if list(found).count(name) > 1:
            raise ValueError(printable(f"{file}: found several columns with the name {name}, expected one"))


def _clean_path(path: bytes) -> bytes:
    """Returns a path without "./" and "//", so that a file has one name. Leaves "..", which links can lead elsewhere.

    Raises ValueError for one that no file can have.
    """
    if len(path) > _LONGEST_PATH:
        raise ValueError(f"found a path of {len(path):,} bytes, expected at most {_LONGEST_PATH:,}")
    if b"./" in path or b"//" in path:
        return os.fsencode(str(Path(os.fsdecode(path))))
    return path


# CSV.


def _read_csv(file: Path, path_column: str, columns: Mapping[str, str]) -> Table:
    # Surrogates, because names of files may be any bytes.
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        delimiter = _delimiter(text, (path_column, *columns.values()))
        reader = csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
        rows = _numbered_rows(file, reader)
        header = [name.strip() for name in next(rows, (0, []))[1]]
        _check_columns(file, header, {"path_column": path_column, **columns})
        return _collected(file, rows, header, path_column, list(columns.values()))


def _delimiter(text: TextIO, expected: Sequence[str]) -> str:
    """Returns the delimiter by which the first line has most of the expected names, a comma in doubt."""
    line = text.readline(1 << 20)
    text.seek(0)

    def found(delimiter: str) -> int:
        names = {name.strip(" \r\n\"'") for name in line.split(delimiter)}
        return len(names.intersection(expected))

    return max(_DELIMITERS, key=found)


def _numbered_rows(file: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yields line numbers and fields of a `csv.reader`, without blank lines."""
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: {error}; is a quote open, or doubled?") from error


def _collected(
    file: Path, rows: Iterator[tuple[int, list[str]]], header: list[str], path_column: str, columns: Sequence[str]
) -> Table:
    """Returns the table of numbered rows."""
    numbers, paths = array("q"), []
    path_at, places = header.index(path_column), [header.index(name) for name in columns]
    code_of: list[dict[str, int]] = [{} for _ in columns]
    codes = [array("q") for _ in columns]

    for number, fields in rows:
        if len(fields) != len(header):
            found = f"found {counted(len(fields), 'field')}, expected {len(header)}, as in the first line"
            raise ValueError(f"{file}:{number}: {found}; fields that hold a comma need quotes")
        numbers.append(number)
        try:
            paths.append(_clean_path(os.fsencode(fields[path_at].strip())))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {error}") from error
        for at, codes_of_column, known in zip(places, codes, code_of, strict=True):
            codes_of_column.append(known.setdefault(fields[at].strip(), len(known)))

    collected = [Column(np.array(one, np.int64), tuple(known)) for one, known in zip(codes, code_of, strict=True)]
    by_name = dict(zip(columns, collected, strict=True))
    return Table(file, np.array(numbers, np.int64), np.array(paths, np.bytes_), by_name, tuple(header))


# Parquet.


def _read_parquet(file: Path, path_column: str, columns: Mapping[str, str]) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{file}: parquet needs the package pyarrow: pip install sppnet[parquet]") from error
    try:
        opened = parquet.ParquetFile(file)
        names = opened.schema_arrow.names
        _check_columns(file, names, {"path_column": path_column, **columns})
        rows = opened.read(list(dict.fromkeys((path_column, *columns.values()))))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read as parquet ({first_line(error)})") from error

    encoded = _text(rows, path_column, file).cast(pyarrow.large_binary())
    try:
        paths = [_clean_path(path) for chunk in encoded.chunks for path in chunk.to_pylist()]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    numbers = np.arange(len(paths), dtype=np.int64)
    by_name = {name: _parquet_column(rows, name, file) for name in columns.values()}
    return Table(file, numbers, np.array(paths, np.bytes_), by_name, tuple(names))


def _parquet_column(rows: Any, name: str, file: Path) -> Column:
    """Returns a column of a `pyarrow.Table`."""
    encoded = _text(rows, name, file).combine_chunks().dictionary_encode()
    values = [value.strip() for value in encoded.dictionary.to_pylist()]
    different = tuple(dict.fromkeys(values))
    code_of = {value: code for code, value in enumerate(different)}
    codes = np.array([code_of[value] for value in values], np.int64)
    return Column(codes[encoded.indices.to_numpy(zero_copy_only=False)], different)


def _text(rows: Any, name: str, file: Path) -> Any:
    """Returns a column of text, whole numbers or true and false as text, with "" for missing values."""
    import pyarrow

    column = rows.column(name)
    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, types = column.type, pyarrow.types
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if not (is_text or types.is_integer(kind) or types.is_boolean(kind)):
        hint = "; data=hub reads images that are inside of parquet files" if types.is_struct(kind) else ""
        raise ValueError(printable(f"{file}: the column {name} is {kind}, expected text or whole numbers{hint}"))
    return column.cast(pyarrow.large_string()).fill_null("")
