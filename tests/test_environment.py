"""Versions, commit and hardware as results record them."""

import json
import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
import torch

from sppnet.runtime import environment as environment_module
from sppnet.runtime.environment import environment


def test_the_environment_is_plain_and_names_versions_and_hardware():
    recorded = json.loads(json.dumps(environment()))
    versions = recorded["versions"]
    assert sorted(versions) == ["python", "pytorch-lightning", "sppnet", "timm", "torch", "torchvision"]
    assert all(versions.values())
    assert versions["python"] == platform.python_version()
    assert recorded["hardware"]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads Linux's description of the processor")
def test_the_hardware_is_the_cores_this_process_may_use_and_the_name_of_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        hardware = environment()["hardware"]
    finally:
        os.sched_setaffinity(0, usable)

    cores, processor = re.fullmatch("([0-9]+) cores? of (.+)", hardware).groups()
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
    monkeypatch.setattr(environment_module, "__file__", str(source))
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


def test_the_hardware_counts_the_gpus_that_were_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert environment()["hardware"] == "8 x NVIDIA H200"
    assert environment(gpus=1)["hardware"] == "1 x NVIDIA H200"
    assert environment(gpus=32)["hardware"] == "32 x NVIDIA H200"
