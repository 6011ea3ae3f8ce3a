import ctypes
import os
import subprocess
import sys

import pytest
import torch

from conftest import run_process, started_process
from sppnet.classify.machine import bf16_is_fast, busy_machine, claim_gpu, worker_count


def test_the_number_of_workers():
    assert worker_count(0) == 0
    assert worker_count(7) == 7
    assert 1 <= worker_count(None) <= 16
    with pytest.raises(ValueError, match=r"workers=-1"):
        worker_count(-1)


def test_workers_are_shared_among_processes():
    assert worker_count(None, 1000) == 1
    assert worker_count(3, 1000) == 3


def test_bf16_is_used_where_the_processor_multiplies_it():
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    assert bf16_is_fast("cpu") == bool(capabilities.get("amx_bf16"))


def test_a_machine_whose_load_exceeds_its_cores_is_busy(monkeypatch):
    cores = os.cpu_count()
    monkeypatch.setattr(os, "getloadavg", lambda: (cores - 0.1, 0.0, 0.0))
    assert busy_machine() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (cores + 6.0, 0.0, 0.0))
    assert busy_machine() == f"this machine is busy (load {cores + 6:.1f} on {cores} cores); training will be slower"


def test_processes_claim_different_gpus_until_they_end(tmp_path):
    code = f"""
from pathlib import Path
from sppnet.classify.machine import claim_gpu
print(claim_gpu(2, Path({str(tmp_path)!r})), claim_gpu(2, Path({str(tmp_path)!r})), flush=True)
input()
"""

    def start():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return started_process([sys.executable, "-c", code], **pipes)

    with start() as first, start() as second:
        claims = [process.stdout.readline() for process in (first, second)]
        assert sorted(claims) == ["0 0\n", "1 1\n"]  # a second job of one process keeps its GPU
        assert claim_gpu(2, tmp_path) in (0, 1)  # none is free: share
        first.communicate("\n")
        with start() as third:
            assert third.stdout.readline() == claims[0]
            third.communicate("\n")
        second.communicate("\n")


NEW_PAGES = """
import resource, sys, torch
from sppnet.classify.machine import keep_freed_memory

keep_freed_memory(sys.argv[1] == "keep")
for i in range(40):
    torch.ones(2**24)  # 64 MB
    if i == 29:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")
def test_kept_memory_is_not_mapped_anew():
    kept, mapped = (int(run_process([sys.executable, "-c", NEW_PAGES, word]).stdout) for word in ("keep", "give back"))
    assert kept * 100 < mapped
