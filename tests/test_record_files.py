"""Files of records: every format holds the same, complete or not at all; what an interrupted command left counts."""

import csv
import json
import os
import signal
import sys

import pyarrow.parquet
import pytest

from conftest import run_process
from sppnet.results.record_files import FORMATS, Table, check_format, error_record, record_file, unsaved_records

TABLE = Table(
    {"image": str, "count": int, "score": float, "sure": bool, "error": str},
    lambda record: [{key: value for key, value in record.items() if key != "more"}],
)
RECORDS = [
    {"image": 'a,"b".jpg', "count": 3, "score": 0.12345679, "sure": True, "more": [1, 2]},
    error_record("new\nline.jpg", "cannot be read"),
    {"image": "\udcff.jpg", "count": 0, "score": 1e-30, "sure": False, "more": []},
]
SHOWN = ['a,"b".jpg', "new\\nline.jpg", "\\xff.jpg"]  # in tables: printable


def write(path, records, identity=None):
    with record_file(path, TABLE, identity or {"network": "x"}) as file:
        for record in records[file.saved :]:
            file.add(record)


def stopped_after_one_more(path, identity=None, records=1):
    """Adds records as a command that is interrupted then; returns how many there were before."""
    try:
        with record_file(path, TABLE, identity or {"network": "x"}) as file:
            before = file.saved
            for record in RECORDS[before : before + records]:
                file.add(record)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return before


def interrupted(path, identity=None):
    stopped_after_one_more(path, identity, records=2)
    return path.with_name(f".{path.name}.unfinished")


def saved(path, identity=None):
    return stopped_after_one_more(path, identity, records=0)


def test_json_holds_the_records(tmp_path):
    write(tmp_path / "a.json", RECORDS)
    write(tmp_path / "a.jsonl", RECORDS)
    assert json.loads((tmp_path / "a.json").read_text()) == RECORDS
    assert list(map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())) == RECORDS


def test_csv_has_a_row_per_image_and_empty_cells(tmp_path):
    write(tmp_path / "new" / "a.csv", RECORDS)
    with (tmp_path / "new" / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == SHOWN
    assert rows[0] == {"image": SHOWN[0], "count": "3", "score": "0.12345679", "sure": "True", "error": ""}
    assert rows[1] == {"image": SHOWN[1], "count": "", "score": "", "sure": "", "error": "cannot be read"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.csv"]


@pytest.mark.parametrize("at_once", [1, 2, 10])
def test_parquet_has_typed_columns(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("sppnet.results.record_files._ROWS_AT_ONCE", at_once)
    write(tmp_path / "a.parquet", RECORDS)
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "image": "string",
        "count": "int64",
        "score": "double",
        "sure": "bool",
        "error": "string",
    }
    assert table["image"].to_pylist() == SHOWN
    assert table["score"].to_pylist() == [0.12345679, None, 1e-30]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_without_records_can_be_read(tmp_path, suffix):
    write(tmp_path / f"a{suffix}", [])
    content = (tmp_path / f"a{suffix}").read_bytes()
    if suffix == ".parquet":
        assert pyarrow.parquet.read_table(tmp_path / "a.parquet").num_rows == 0
    else:
        assert (
            content.split() == {".csv": [b"image,count,score,sure,error"], ".json": [b"[", b"]"], ".jsonl": []}[suffix]
        )


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_is_finished_after_an_interruption_is_the_same(tmp_path, suffix):
    write(tmp_path / f"whole{suffix}", RECORDS)
    path = tmp_path / f"a{suffix}"
    for count in range(len(RECORDS)):
        assert stopped_after_one_more(path) == count
        assert not path.exists()
    write(path, RECORDS)
    assert path.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_records_of_another_identity_do_not_count(tmp_path):
    interrupted(tmp_path / "a.csv", {"network": "x", "top": 5})
    assert saved(tmp_path / "a.csv", {"top": 5, "network": "x"}) == 2
    for _ in range(2):
        assert saved(tmp_path / "a.csv", {"network": "x", "top": 4}) == 0
    assert saved(tmp_path / "a.csv", {"network": "x", "top": 5}) == 0


@pytest.mark.parametrize("length", [0, 1, 18, 19, 60, -1])
def test_a_record_that_was_cut_off_does_not_count(tmp_path, length):
    """Of the 16 to 18 letters of the identity, and of the first record or two."""
    unfinished = interrupted(tmp_path / "a.jsonl")
    content = unfinished.read_bytes()
    complete = content[:length].count(b"\n") - 1
    unfinished.write_bytes(content[:length])
    assert stopped_after_one_more(tmp_path / "a.jsonl") == max(0, complete)
    assert saved(tmp_path / "a.jsonl") == max(0, complete) + 1
    write(tmp_path / "a.jsonl", RECORDS)
    assert list(map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())) == RECORDS


@pytest.mark.parametrize("damage", [b"\0" * 40 + b"\n", b"[1]\n", b'"a"\n', b"{\n", b"\xff\n"])
def test_damage_ends_what_counts(tmp_path, damage):
    unfinished = interrupted(tmp_path / "a.jsonl")
    first, second, third = unfinished.read_bytes().splitlines(keepends=True)
    unfinished.write_bytes(first + second + damage + third)
    assert saved(tmp_path / "a.jsonl") == 1
    write(tmp_path / "a.jsonl", RECORDS)
    assert list(map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())) == RECORDS


def test_two_commands_do_not_write_the_same_file(tmp_path):
    with record_file(tmp_path / "a.csv", TABLE, {}) as file:
        file.add(RECORDS[0])
        with (
            pytest.raises(ValueError, match=r"a\.csv: another process is writing it$"),
            record_file(tmp_path / "a.csv", TABLE, {}),
        ):
            pass
    assert (tmp_path / "a.csv").read_text().count("\n") == 2


def test_records_survive_when_the_process_is_killed(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from sppnet.results.record_files import *\n"
        "with record_file(Path(sys.argv[1]), Table({'image': str}, lambda r: [r]), {}) as file:\n"
        "    file.add({'image': 'a'}); file.add({'image': 'b'}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = run_process([sys.executable, "-c", code, tmp_path / "a.csv"], env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".a.csv.unfinished"]
    with record_file(tmp_path / "a.csv", Table({"image": str}, lambda r: [r]), {}) as file:
        assert file.saved == 2
    assert (tmp_path / "a.csv").read_text() == "image\na\nb\n"


def test_records_can_be_read_before_the_file_is_finished(tmp_path):
    for opened in (record_file(tmp_path / "a.csv", TABLE, {}), unsaved_records()):
        with opened as file:
            for count, record in enumerate(RECORDS, start=1):
                file.add(record)
                assert next(file.records()) == RECORDS[0]
                assert list(file.records()) == RECORDS[:count]


def test_numbers_that_json_does_not_have_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"), record_file(tmp_path / "a.json", TABLE, {}) as file:
        file.add({"image": "a", "score": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_full_disk_is_an_error_with_the_name_of_the_file(tmp_path):
    with pytest.raises(OSError, match=r"a\.csv") as raised, record_file(tmp_path / "a.csv", TABLE, {}):
        raise OSError(28, "No space left on device")
    assert raised.value.filename == str(tmp_path / "a.csv")


def test_the_name_is_left_out_of_an_error():
    assert error_record("a\n.jpg", "a\\n.jpg: empty") == {"image": "a\n.jpg", "error": "empty"}


@pytest.mark.parametrize("name", ["a.txt", "a", "a.csv.gz", ".csv"])
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"^out=.*: must end in .csv, .json, .jsonl, .parquet$"):
        check_format("out", tmp_path / name)


def test_parquet_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(ValueError, match=r"a\.parquet: Parquet needs pyarrow: pip install sppnet\[parquet\]$"):
        check_format("out", tmp_path / "a.parquet")
