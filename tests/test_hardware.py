"""Hardware settings out of range are refused; work on several devices raises its errors in the process that waits."""

import os
import signal

import pytest

from sppnet.data.images import UnreadableImage
from sppnet.runtime.hardware import Hardware, prepare_device, run_on_devices


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "cuda"}, "hardware.accelerator=cuda: must be one of auto, cpu, gpu"),
        ({"accelerator": "cpu", "devices": 0}, "hardware.devices=0: must be 1 to"),
        ({"precision": "half"}, "hardware.precision=half: must be bf16, float32 or null"),
        ({"megapixels": 0}, "hardware.megapixels=0: must be above 0, at most 10,000"),
        ({"megapixels": float("inf")}, "hardware.megapixels=inf: must be above 0, at most 10,000"),
        ({"megapixels": float("nan")}, "hardware.megapixels=nan: must be above 0, at most 10,000"),
        ({"workers": -1}, "hardware.workers=-1: must be from 0 to"),
        ({"workers": 1_000_000}, "hardware.workers=1000000: must be from 0 to"),
    ],
)
def test_hardware_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Hardware(**options)


def write_rank(rank, folder):
    (folder / str(rank)).touch()


def fail(rank, error):
    if rank == 1:
        raise error


def die(rank):
    prepare_device(rank, TWO)
    os.kill(os.getpid(), signal.SIGKILL)


TWO = Hardware(accelerator="cpu", devices=2)


def test_one_device_works_in_this_process():
    ranks = []
    run_on_devices(ranks.append, (), Hardware(accelerator="cpu"))
    assert ranks == [0]


def test_every_device_works_once(tmp_path):
    run_on_devices(write_rank, (tmp_path,), TWO)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.parametrize(
    "error", [UnreadableImage("a.jpg: the file: is empty"), FileNotFoundError("b.jpg")], ids=["of sppnet", "built in"]
)
def test_an_error_of_the_user_in_one_process_is_raised_here(error):
    with pytest.raises(type(error), match=str(error)) as raised:
        run_on_devices(fail, (error,), TWO)
    assert type(raised.value) is type(error)
    assert str(raised.value) == str(error)


def test_a_bug_in_one_process_keeps_its_traceback():
    with pytest.raises(Exception, match="in fail"):
        run_on_devices(fail, (ZeroDivisionError("bug"),), TWO)


def test_a_killed_process_is_explained_in_one_line():
    with pytest.raises(ChildProcessError, match=r"killed \(.*SIGKILL\), perhaps for lack of memory: use fewer"):
        run_on_devices(die, (), TWO)


def test_the_cpu_has_no_loader_processes_unless_they_are_asked_for():
    assert Hardware(accelerator="cpu").loaders == 0
    assert Hardware(accelerator="cpu", workers=1).loaders == 1
