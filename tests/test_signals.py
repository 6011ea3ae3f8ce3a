"""Stop signals: exit codes, messages, and SLURM's queue."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest

from conftest import make_image_folder
from sppnet.commands import train as train_command
from sppnet.commands.train import command
from sppnet.data.sources import open_data
from sppnet.lightning_checkpoints import SaveCheckpoints
from sppnet.runtime.signals import REQUEUE_SIGNALS, Stopped, StopSignals
from test_resuming import SignalAt, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_data("folder", root=str(make_image_folder(tmp_path_factory.mktemp("data"), train=9, val=3)))


def test_ctrl_c_exits_as_interrupted(data, tmp_path, capfd):
    with pytest.raises(Stopped) as stopped:
        train(data._replace(train=SignalAt(data.train, 6, signal.SIGINT)), tmp_path)
    assert stopped.value.code == 130
    stderr = capfd.readouterr().err
    assert "SIGINT: stopping after this step; Ctrl-C again stops at once" in stderr
    assert "stopped by SIGINT" in stderr


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The file in which a `scontrol` writes what it was asked for."""
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "asked"


@pytest.mark.parametrize("number", REQUEUE_SIGNALS)
@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({"SLURM_JOB_ID": "1234"}, "1234"),
        ({"SLURM_JOB_ID": "1236", "SLURM_ARRAY_JOB_ID": "1234", "SLURM_ARRAY_TASK_ID": "2"}, "1234_2"),
    ],
)
def test_sigusr1_and_sigusr2_requeue_a_slurm_job(data, tmp_path, monkeypatch, asked, environment, job, number):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 6, number)), tmp_path / "run")
    assert asked.read_text() == f"requeue {job}\n"


@pytest.mark.parametrize(("number", "requeues"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_signal_that_only_another_process_has_received_yet_requeues(
    tmp_path, monkeypatch, asked, number, requeues, capfd
):
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    waited = []
    answers = iter([True, number == signal.SIGUSR1])  # of both: whether to stop, whether to requeue
    trainer = SimpleNamespace(
        world_size=2,
        is_global_zero=True,
        is_last_batch=False,
        global_step=10,
        current_epoch=0,
        save_checkpoint=lambda path: None,
        strategy=SimpleNamespace(
            reduce_boolean_decision=lambda decision, all: next(answers),
            barrier=lambda: waited.append(asked.exists()),  # the others end after the job is in the queue
        ),
    )
    callback = SaveCheckpoints(tmp_path, StopSignals(), steps=None, minutes=None)
    with pytest.raises(Stopped) as stopped:
        callback.on_train_batch_end(trainer, None)
    assert stopped.value.code == os.EX_TEMPFAIL
    assert asked.exists() == requeues
    assert waited == [True] * requeues
    assert f"stopped by {number.name}; " in capfd.readouterr().err


@pytest.mark.parametrize(("rank", "number"), [("0", signal.SIGUSR1), ("1", signal.SIGUSR1), ("0", signal.SIGTERM)])
def test_a_signal_before_training_requeues_once(monkeypatch, asked, rank, number, capfd):
    """It left the job stopped for ever if it came while torch was imported."""
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_PROCID", rank)
    monkeypatch.setattr(train_command, "run_main", lambda main: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stopped:
        command()
    assert stopped.value.code == os.EX_TEMPFAIL
    assert asked.exists() == (rank == "0" and number == signal.SIGUSR1)
    assert capfd.readouterr().err == f"stopped by {number.name} outside of training; the same command resumes\n"


def test_without_scontrol_the_run_still_stops(data, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Stopped) as stopped:
        train(data._replace(train=SignalAt(data.train, 6, signal.SIGUSR1)), tmp_path / "run")
    assert stopped.value.code == os.EX_TEMPFAIL
    assert "cannot requeue job 1234" in capfd.readouterr().err


def test_the_first_signal_counts_and_handlers_are_restored():
    def mine(number, frame):
        raise AssertionError

    before, interrupt = signal.signal(signal.SIGUSR1, mine), signal.getsignal(signal.SIGINT)
    try:
        signals = StopSignals()
        with signals.handled():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)  # the first of its kind
        assert signals.received == signal.SIGUSR1
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_stop_signal_after_the_command_ends_the_process_without_a_traceback(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", "no_such_key=1"])
    try:
        with pytest.raises(Exception, match="no_such_key"):
            command()
        assert {signal.getsignal(number) for number in before} == {signal.SIG_DFL}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
