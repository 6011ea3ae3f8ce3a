import json
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
import torch

from sppnet import records
from sppnet.records import clock, duration, environment, read_result, result_text, write_json

RESULT = {
    "network": "zf5 (width 0.25), pyramid 6, 3, 2, 1, 1,000 parameters",
    "data": "shapes",
    "n": 500,
    "num_classes": 10,
    "protocol": "centre crop 224",
    "top1_error": 0.1,
    "top1_wrong": 50,
    "top5_wrong": 5,
    "epochs": 4,
    "seconds": 3725.0,
    "hardware": "2 cores of a processor",
}


def test_a_result_comes_back_as_it_was_written(tmp_path):
    write_json(tmp_path / "result.json", RESULT)
    assert read_result(tmp_path) == RESULT
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_result_has_one_value_per_line_and_missing_folders_are_made(tmp_path):
    file = tmp_path / "runs" / "one" / "result.json"
    write_json(file, {"n": 500, "data": "shapes"})
    assert file.read_text() == '{\n  "n": 500,\n  "data": "shapes"\n}\n'


def test_an_unfinished_run_has_no_result(tmp_path):
    assert read_result(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"top1_error": "abc"}'])
def test_a_damaged_result_is_named(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json: not a result of a run"):
        read_result(tmp_path)


def test_a_value_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "result.json", RESULT)
    with pytest.raises(TypeError):
        write_json(tmp_path / "result.json", {"top1_error": object()})
    assert read_result(tmp_path) == RESULT
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_the_table_gives_errors_with_interval_n_and_protocol(tmp_path):
    assert result_text(RESULT, tmp_path).splitlines() == [
        "  network        zf5 (width 0.25), pyramid 6, 3, 2, 1, 1,000 parameters",
        "  data           shapes (500 validation images, 10 classes)",
        "  protocol       centre crop 224",
        "  top-1 error    10.00 %  (95 % interval 7.67 to 12.94 %)",
        "  top-5 error    1.00 %  (95 % interval 0.43 to 2.32 %)",
        "  trained        4 epochs in 1 h 2 min on 2 cores of a processor",
        f"  run directory  {tmp_path}",
        f"  TensorBoard    tensorboard --logdir {tmp_path}",
    ]


def test_the_environment_is_plain_and_names_versions_and_hardware():
    found = json.loads(json.dumps(environment()))
    versions = found["versions"]
    assert sorted(versions) == ["python", "pytorch-lightning", "sppnet", "timm", "torch", "torchvision"]
    assert all(versions.values())
    assert versions["python"] == platform.python_version()
    assert found["hardware"]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads Linux's description of the processor")
def test_the_hardware_is_the_cores_this_process_may_use_and_the_name_of_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        found = environment()["hardware"]
    finally:
        os.sched_setaffinity(0, usable)

    cores, processor = re.fullmatch("([0-9]+) cores of (.+)", found).groups()
    assert cores == "1"
    known = Path("/proc/cpuinfo").read_text()  # names the processor on x86; what it says on others differs
    assert f"model name\t: {processor}\n" in known or "model name" not in known


def git(folder, *arguments):
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_the_commit_is_that_of_the_source_tree_with_a_plus_where_it_was_changed(tmp_path, monkeypatch, capfd):
    source = tmp_path / "checkout" / "sppnet" / "records.py"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(source))
    assert environment()["commit"] is None  # a folder outside of any checkout

    source.write_text("as committed\n")
    git(source.parent, "init", "--quiet")
    git(source.parent, "add", "records.py")
    git(source.parent, "commit", "--quiet", "--message=first")
    git(source.parent, "tag", "--annotate", "--message=first", "v1")
    commit = git(source.parent, "rev-parse", "HEAD")[:12]
    assert environment()["commit"] == commit

    source.write_text("changed\n")
    assert environment()["commit"] == f"{commit}+"
    assert capfd.readouterr() == ("", "")  # git's own messages do not reach the user


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.4, 61, 3599, 3600)] == ["0:00", "0:59", "1:01", "59:59", "1:00:00"]


@pytest.mark.parametrize(
    ("hours", "minutes", "seconds", "text"),
    [
        (0, 0, 0, "0 min 0 s"),
        (0, 0, 59.6, "1 min 0 s"),
        (0, 59, 59, "59 min 59 s"),
        (1, 0, 0, "1 h 0 min"),
        (47, 59, 59, "47 h 59 min"),
        (48, 0, 0, "2 days 0 h"),
        (49, 30, 0, "2 days 1 h"),
        (24_000, 0, 0, "1,000 days 0 h"),
    ],
)
def test_durations_are_given_to_two_units(hours, minutes, seconds, text):
    assert duration(3600 * hours + 60 * minutes + seconds) == text
