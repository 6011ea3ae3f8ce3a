"""Atomic files: the old content or the new one, and no temporary files left by killed writers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import run_process, without_rights
from sppnet.runtime.files import atomic_file, check_place, is_temporary, keep_as, remove_stale_files

PROJECT = Path(__file__).parents[1]
DEAD = 2**22 + 1  # Linux gives no process a higher number than 2**22


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "made" / "a.txt"
    with atomic_file(path) as file:
        file.write(b"new")
        assert names(path.parent) == [f"a.txt.partial{os.getpid()}"]
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.writelines([b"new", "not bytes"])
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.txt"]


def test_the_previous_file_is_kept_on_request(tmp_path):
    path, previous = tmp_path / "last", tmp_path / "previous"
    path.write_bytes(b"old")
    with atomic_file(path, previous=previous) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        assert not previous.exists()
    assert (path.read_bytes(), previous.read_bytes()) == (b"new", b"old")


KILLED = """
import os, sys
from pathlib import Path
from sppnet.runtime.files import atomic_file

path, rename = Path("last"), Path.replace
Path.replace = lambda self, target: os._exit(9) if target == path else rename(self, target)
if "without hard links" in sys.argv:
    def no_links(*names):
        raise PermissionError
    os.link = no_links
with atomic_file(path, previous=Path("previous")) as file:
    file.write(b"new")
"""


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_kill_before_the_new_file_has_its_name_leaves_the_old_one(tmp_path, hard_links):
    """Twice; with hard links `last` is always there, on other file systems it may be `previous` only."""
    path, previous = tmp_path / "last", tmp_path / "previous"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", KILLED, *([] if hard_links else ["without hard links"])]
    for _ in range(2):
        done = run_process(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(PROJECT)})
        assert done.returncode == 9, done.stderr
        assert previous.read_bytes() == b"old"
        assert path.exists() == hard_links

    with atomic_file(path, previous=previous) as file:
        file.write(b"new")
    assert (path.read_bytes(), previous.read_bytes()) == (b"new", b"old")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last", "previous"]


def test_content_and_names_are_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        flushed.append((path.name, path.stat().st_size if path.is_file() else names(path)))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_file(tmp_path / "a") as file:
        file.write(b"12345")
    assert flushed == [(f"a.partial{os.getpid()}", 5), (tmp_path.name, ["a"])]


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_is_kept_when_the_first_is_written_again(tmp_path, monkeypatch, links):
    """By a hard link, or a copy where the file system has none."""
    if not links:

        def no_links(*names):
            raise PermissionError

        monkeypatch.setattr(os, "link", no_links)
    last, best = tmp_path / "last", tmp_path / "best"
    for content in (b"1", b"22"):
        with atomic_file(last) as file:
            file.write(content)
        keep_as(last, best)
        keep_as(last, best)  # two names of one file
        assert best.read_bytes() == content
        assert best.samefile(last) == links
    with atomic_file(last) as file:
        file.write(b"333")
    assert (best.read_bytes(), names(tmp_path)) == (b"22", ["best", "last"])


@pytest.mark.parametrize(
    ("name", "temporary"),
    [
        ("report.json.partial17", True),
        ("last.ckpt.partial4194304", True),
        ("report.json.partial", False),
        ("report.json.partial0", False),
        ("report.json.partial17x", False),
        (".partial17", False),
        ("report.json", False),
    ],
)
def test_the_rule_for_temporary_names(name, temporary):
    assert is_temporary(name) == temporary


def test_stale_files_of_the_same_name_are_removed_by_the_next_write(tmp_path):
    (tmp_path / f"a.partial{DEAD}").touch()
    (tmp_path / f"a.partial{os.getpid()}").touch()  # of a killed process that had the same number
    (tmp_path / f"a.partial{os.getppid()}").touch()
    (tmp_path / f"other.partial{DEAD}").touch()
    with atomic_file(tmp_path / "a") as file:
        file.write(b"new")
    assert names(tmp_path) == sorted(["a", f"a.partial{os.getppid()}", f"other.partial{DEAD}"])


def test_all_stale_files_of_a_folder_are_removed(tmp_path):
    for name in (f"a.partial{DEAD}", f"b.json.partial{DEAD}", f"c.partial{10**30}", f"d.partial{os.getppid()}", "e"):
        (tmp_path / name).touch()
    (tmp_path / f"folder.partial{DEAD}").mkdir()
    remove_stale_files(tmp_path)
    assert names(tmp_path) == [f"d.partial{os.getppid()}", "e", f"folder.partial{DEAD}"]
    remove_stale_files(tmp_path / "nowhere")


WRITER = """
import os, sys
from pathlib import Path
from sppnet.runtime.files import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_file_locked_by_a_process_of_another_machine_is_left_alone(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == b"writing\n"
        elsewhere = tmp_path / f"a.partial{DEAD}"  # its number means nothing on this machine
        (tmp_path / f"a.partial{process.pid}").rename(elsewhere)
        remove_stale_files(tmp_path)
        assert elsewhere.read_bytes() == b"half"
        process.kill()
        process.wait(timeout=60)
        remove_stale_files(tmp_path)
        assert not elsewhere.exists()
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_a_folder_without_write_permission_keeps_its_files(tmp_path):
    (tmp_path / f"a.partial{DEAD}").touch()
    tmp_path.chmod(0o555)
    with without_rights():
        remove_stale_files(tmp_path)
    tmp_path.chmod(0o755)
    assert names(tmp_path) == [f"a.partial{DEAD}"]


@pytest.mark.parametrize("address", ["s3://bucket/a.csv", "hf://me/a", "file:///a"])
def test_an_address_is_no_place_to_write_to(address):
    with pytest.raises(ValueError, match=rf"^{address.replace(':///', '://')}: must be a place on this machine"):
        check_place(Path(address))
    check_place(Path("/tmp/a:/b"))
