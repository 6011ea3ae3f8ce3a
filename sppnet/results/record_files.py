"""Files of records, one per image, written row by row and only named when complete; an interrupted command resumes.

A record is a dictionary of plain values, with the "image" first: a line of JSON. Tables (CSV and Parquet) hold the rows
that `Table.rows` makes of it.
"""

import csv
import fcntl
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sppnet.runtime.files import atomic_file
from sppnet.runtime.names import printable

Record = dict[str, Any]

_ROWS_AT_ONCE = 10_000  # of a Parquet file in memory


def error_record(image: str, error: str) -> Record:
    """Returns the record of an image that could not be used. Its name is left out of the beginning of the error."""
    return {"image": image, "error": error.removeprefix(f"{printable(image)}: ")}


class Table(NamedTuple):
    """How records are laid out in tables."""

    columns: Mapping[str, type]  # str, int, float or bool
    rows: Callable[[Record], list[Record]]  # of a record; values that are missing are empty cells


def _write_json_lines(file: BinaryIO, records: Iterable[Record], table: Table) -> None:
    for record in records:
        file.write(f"{json.dumps(record, allow_nan=False)}\n".encode())


def _write_json(file: BinaryIO, records: Iterable[Record], table: Table) -> None:
    file.write(b"[")
    for number, record in enumerate(records):
        file.write(f"{',' * (number > 0)}\n{json.dumps(record, allow_nan=False)}".encode())
    file.write(b"\n]\n")


def _write_csv(file: BinaryIO, records: Iterable[Record], table: Table) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, table.columns, lineterminator="\n")
    writer.writeheader()
    for row in _rows(records, table):
        writer.writerow(row)
    text.detach()


def _write_parquet(file: BinaryIO, records: Iterable[Record], table: Table) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in table.columns.items()])
    rows, batch = _rows(records, table), []
    with ParquetWriter(file, schema) as writer:
        for row in rows:
            batch.append(row)
            if len(batch) == _ROWS_AT_ONCE:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pyarrow.Table.from_pylist(batch, schema))


def _rows(records: Iterable[Record], table: Table) -> Iterator[Record]:
    """Yields the rows of all records. Their text is printable: names of files can hold newlines, and invalid text."""
    for record in records:
        for row in table.rows(record):
            yield {key: printable(value) if isinstance(value, str) else value for key, value in row.items()}


FORMATS: dict[str, Callable[[BinaryIO, Iterable[Record], Table], None]] = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}


def check_format(key: str, path: Path) -> None:
    """Raises ValueError for a file whose name does not end in one of FORMATS, or whose format needs a package more."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{key}={path}: must end in {', '.join(FORMATS)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ValueError(f"{key}={path}: Parquet needs pyarrow: pip install sppnet[parquet]") from error


class RecordFile:
    """A file of records under construction, made by `record_file`."""

    def __init__(self, journal: BinaryIO, done: list[int], dropped: bool = False) -> None:
        self._journal, self._done = journal, done
        self.dropped = dropped  # records of an interrupted command with another identity

    @property
    def saved(self) -> int:
        """How many records there are so far."""
        return len(self._done)

    def add(self, record: Record) -> None:
        """Saves a record. It survives when the process is killed."""
        self._done.append(self._journal.seek(0, os.SEEK_END))
        self._journal.write(f"{json.dumps(record, allow_nan=False)}\n".encode())
        self._journal.flush()

    def records(self) -> Iterator[Record]:
        """Yields all records so far."""
        for place in self._done:
            self._journal.seek(place)
            yield json.loads(self._journal.readline())


@contextmanager
def unsaved_records() -> Iterator[RecordFile]:
    """Opens what holds records without a file that the user asked for: a temporary file, as they can be many."""
    with tempfile.TemporaryFile() as journal:
        yield RecordFile(journal, [])


@contextmanager
def record_file(path: Path, table: Table, identity: Record) -> Iterator[RecordFile]:
    """Opens a file for records, which gets its name when the block ends without an error.

    Until then they are in a hidden file beside it, `.NAME.unfinished`. The records that an interrupted command with the
    same identity left there are kept.

    Args:
        path: the file, with a name that ends in one of FORMATS.
        table: how records are laid out in tables.
        identity: plain values that decide all records and their order.

    Raises ValueError if another process is writing the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with os.fdopen(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{path}: another process is writing it") from error
        file = RecordFile(journal, *_saved_records(journal, identity))
        try:
            yield file
            with atomic_file(path) as finished:
                FORMATS[path.suffix](finished, file.records(), table)
        except OSError as error:
            if error.filename is None:  # as of a full disk
                error.filename = str(path)
            raise
        with suppress(OSError):
            unfinished.unlink()


def _saved_records(journal: BinaryIO, identity: Record) -> tuple[list[int], bool]:
    """Returns where the records of this identity begin, and whether there were those of another one.

    Cuts off all that follows the last complete record.
    """
    about = f"{json.dumps(identity, sort_keys=True)}\n".encode()
    places: list[int] = []
    found = journal.readline()
    if other := found != about:
        dropped = _is_record(found) and _is_record(journal.readline())
        journal.seek(0)
        journal.write(about)
    else:
        place = journal.tell()
        while _is_record(journal.readline()):
            places.append(place)
            place = journal.tell()
        journal.seek(place)
    journal.truncate()
    return places, other and dropped


def _is_record(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False
