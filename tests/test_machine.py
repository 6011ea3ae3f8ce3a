"""Loader processes, devices, bf16 support, malloc and GPU claims."""

import ctypes
import os
import sys
from contextlib import contextmanager

import pytest
import torch

from conftest import run_process
from forks import exit_code, start_process
from sppnet.runtime.machine import bf16_is_fast, busy_machine, claim_gpu, most_processes, processes_here, worker_count
from sppnet.runtime.names import counted


def test_workers_are_the_requested_ones_or_as_many_as_cores():
    assert worker_count(0) == 0
    assert worker_count(7) == 7
    assert 1 <= worker_count(None) <= 16
    with pytest.raises(ValueError, match=r"workers=-1"):
        worker_count(-1)


def test_workers_are_shared_among_processes():
    assert worker_count(None, 1000) == 1
    assert worker_count(3, 1000) == 3


def test_more_workers_than_a_machine_can_start_are_refused():
    assert worker_count(most_processes()) == most_processes() >= 16
    with pytest.raises(
        ValueError, match=rf"^workers=1000000: must be at most {most_processes()} on a machine of \d+ cores?$"
    ):
        worker_count(1_000_000)


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"avx512_f": True, "amx_bf16": False, "avx512_bf16": False}, False),
        ({"avx512_f": True, "amx_bf16": False, "avx512_bf16": True}, True),  # Zen 4, Zen 5, Cooper Lake
        ({"avx512_f": True, "amx_bf16": True, "avx512_bf16": True}, True),  # Sapphire Rapids
        ({"neon": True, "bf16": True}, False),  # not measured
        ({}, False),
    ],
)
def test_bf16_is_used_on_processors_with_the_measured_instructions(monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert bf16_is_fast("cpu") is fast


def test_bf16_is_not_used_if_torch_does_not_report_the_processor(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert bf16_is_fast("cpu") is False


@pytest.mark.parametrize(("generation", "fast"), [(7, False), (8, True), (9, True)])
def test_bf16_is_not_used_on_gpus_that_emulate_it(monkeypatch, generation, fast):
    """Volta and Turing (7) also compute in bf16, by way of float32."""
    properties = type("Properties", (), {"major": generation})
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert bf16_is_fast("cuda") is fast


@pytest.mark.parametrize(
    ("accelerator", "devices", "processes"),
    [("auto", "auto", 1), ("cpu", 1, 1), ("cpu", "2", 2), ("cpu", 2, 2)],
)
def test_a_run_on_a_cpu_has_one_process_or_as_many_as_requested(monkeypatch, accelerator, devices, processes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes_here(accelerator, devices) == processes


@pytest.mark.parametrize(
    ("accelerator", "devices", "processes"),
    [("auto", "auto", 4), ("gpu", -1, 4), ("gpu", "0,3", 2), ("gpu", "2,", 1), ("gpu", 3, 3), ("cpu", "auto", 1)],
)
def test_a_run_has_a_process_for_each_of_its_gpus(monkeypatch, accelerator, devices, processes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes_here(accelerator, devices) == processes


@pytest.mark.parametrize(
    ("gpus", "devices", "message"),
    [
        (0, -1, r"^trainer\.devices=-1: must be auto or a number from 1 on a CPU$"),
        (0, "0,1", r"^trainer\.devices=0,1: must be auto or a number from 1 on a CPU$"),
        (0, 10_000, r"^trainer\.devices=10000: must be at most \d+ processes on this CPU$"),
        (4, 99, r"^trainer\.devices=99: must be at most 4, the GPUs of this machine$"),
        (4, "0,4", r"^trainer\.devices=0,4: must be from 0 to 3, the GPUs of this machine$"),
    ],
)
def test_missing_devices_are_refused(monkeypatch, gpus, devices, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=message):
        processes_here("auto", devices)


def test_a_machine_whose_load_exceeds_its_cores_is_busy(monkeypatch):
    cores = os.cpu_count()
    monkeypatch.setattr(os, "getloadavg", lambda: (cores - 0.1, 0.0, 0.0))
    assert busy_machine() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (cores + 6.0, 0.0, 0.0))
    load = f"load {cores + 6:.1f} on {counted(cores, 'core')}"
    assert busy_machine() == f"this machine is busy ({load}); training will be slower"


def test_processes_claim_different_gpus_until_they_end(tmp_path):
    @contextmanager
    def claiming():
        """Another process claims a GPU for two jobs, and ends after the block, which gets what it claimed."""
        claimed, claims = os.pipe()
        ended, ends = os.pipe()

        def work():
            claim_gpu.cache_clear()  # as in a new process
            os.write(claims, bytes([claim_gpu(2, tmp_path), claim_gpu(2, tmp_path)]))
            os.read(ended, 1)

        process = start_process(work)
        os.close(claims)  # so that reading ends if the other process does
        try:
            yield tuple(os.read(claimed, 2))
        finally:
            os.write(ends, b"x")
            assert exit_code(process) == 0
            for descriptor in (claimed, ended, ends):
                os.close(descriptor)

    with claiming() as second:
        with claiming() as first:
            assert sorted([first, second]) == [(0, 0), (1, 1)]  # a second job of one process keeps its GPU
            assert claim_gpu(2, tmp_path) in (0, 1)  # none is free: share
        with claiming() as third:
            assert third == first


NEW_PAGES = """
import resource, torch
from sppnet.runtime.machine import keep_freed_memory

for keep in (False, True):
    keep_freed_memory(keep)
    for i in range(40):
        torch.ones(2**24)  # 64 MB
        if i == 29:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")
def test_kept_memory_is_not_mapped_again():
    mapped, kept = map(int, run_process([sys.executable, "-c", NEW_PAGES]).stdout.split())
    assert kept * 100 < mapped
