"""Stopped anywhere and started again, a run ends as if nothing had been; damaged files cost one checkpoint."""

import dataclasses
import os
import resource
import signal
import threading
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import make_image_folder, without_rights
from sppnet.classify import training
from sppnet.classify.checkpoints import (
    LAST,
    PREVIOUS,
    CheckpointFiles,
    Checkpoints,
    Stopped,
    newest_whole,
    recorded_precision,
)
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.recipe import Machine, Recipe
from sppnet.classify.schedules import Sizes
from sppnet.classify.training import train_classifier
from sppnet.data.sources import open_data, select_images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_data("folder", root=str(make_image_folder(tmp_path_factory.mktemp("data"), train=9, val=3)))


@dataclasses.dataclass(frozen=True)
class SignalAt:
    """Images, the `reads`-th of which tells the process to stop."""

    images: object
    reads: int
    signal: int = signal.SIGTERM
    done: list = dataclasses.field(default_factory=list)

    def __len__(self):
        return len(self.images)

    def read(self, index):
        self.done.append(index)
        if len(self.done) == self.reads:
            os.kill(os.getpid(), self.signal)
        return self.images.read(index)

    def __getattr__(self, name):
        return getattr(self.images, name)


def train(data, run, workers=0, learning_rate=0.02, epochs=3, batch_size=4, precision="32-true", **machine):
    """Three epochs of four steps, at 64, 48 and 64 pixels, with dropout."""
    fixed = {
        "epochs": epochs,
        "batch_size": batch_size,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup_epochs": 1,
        "color": True,
    }
    recipe = Recipe(learning_rate=learning_rate, **fixed)
    plan = TrainingPlan(
        architecture="zf5",
        backbone_options={"width": 0.05, "normalization": "none"},
        levels=[3, 2, 1],
        hidden=8,
        sizes=Sizes(cycle=[64, 48]),
        source="folder",
        data_options={},
        recipe=recipe,
        machine=Machine(accelerator="cpu", precision=precision, workers=workers, **machine),
        seed=0,
    )
    return train_classifier(plan, plan.build_network(data.classes), data, run)


def outcome(run, result):
    """What has to be the same, bit for bit: weights, optimizer, and metrics without the clock's."""
    checkpoint = torch.load(run / "checkpoints" / LAST, weights_only=True)
    history = [dataclasses.replace(epoch, seconds=None, images_per_second=0) for epoch in result.history]
    return {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"], "history": history}


def assert_same(one, other):
    flat, others = (torch.utils._pytree.tree_flatten(tree) for tree in (one, other))
    assert flat[1] == others[1]
    for a, b in zip(flat[0], others[0], strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    return outcome(run, train(data, run))


# An epoch reads 16 images to train and 6 to validate.
@pytest.mark.parametrize("reads", [1, 6, 13, 16, 17, 27, 41])
def test_stopped_at_any_image_and_started_again_it_ends_the_same(data, whole, tmp_path, reads, capfd):
    with pytest.raises(Stopped) as stopped:
        train(data._replace(train=SignalAt(data.train, reads)), tmp_path)
    assert stopped.value.code == os.EX_TEMPFAIL
    step = min(4 * -(-reads // 16), -(-reads // 4))
    assert (
        f"stopped by SIGTERM; {tmp_path}/checkpoints/last.ckpt is of epoch {-(-reads // 16)}, step {step}; the same"
        in (capfd.readouterr().err)
    )
    assert not (tmp_path / "result.json").exists()
    assert_same(outcome(tmp_path, train(data, tmp_path)), whole)


@pytest.mark.parametrize("reads", [1, 6, 8, 18])
@pytest.mark.parametrize("times", [1, 2])
def test_stopped_in_validation_it_loses_nothing_and_validates_anew(data, whole, tmp_path, reads, times, capfd):
    epoch = -(-reads // 6)
    for at in (reads, 4)[:times]:
        with pytest.raises(Stopped):
            train(data._replace(val=SignalAt(data.val, at)), tmp_path)
        assert f"last.ckpt is of epoch {epoch}, step {4 * epoch}; the same" in capfd.readouterr().err
    assert_same(outcome(tmp_path, train(data, tmp_path)), whole)


def test_a_validation_that_fails_keeps_its_epoch(data, whole, tmp_path):
    class Damaged(SignalAt):
        def read(self, index):
            return b"" if index == 4 else self.images.read(index)

        def name(self, index):
            return "a.jpg" if index == 4 else self.images.name(index)

    with pytest.raises(
        ValueError, match=r"a\.jpg: the file is empty; repair it, or leave it out by prepare_data.py excl"
    ):
        train(data._replace(val=Damaged(data.val, 0)), tmp_path)
    result = train(data, tmp_path)
    assert torch.load(tmp_path / "checkpoints" / PREVIOUS, weights_only=True)["global_step"] == 8
    assert_same(outcome(tmp_path, result), whole)


def test_told_before_the_first_step_it_stops_there(data, whole, tmp_path, capfd):
    before = signal.getsignal(signal.SIGTERM)

    class Opened(SignalAt):
        def __len__(self):
            if not self.done and signal.getsignal(signal.SIGTERM) is not before:
                self.done.append(None)
                os.kill(os.getpid(), signal.SIGTERM)
            return len(self.images)

    with pytest.raises(Stopped) as stopped:
        train(data._replace(train=Opened(data.train, -1)), tmp_path)
    assert stopped.value.code == os.EX_TEMPFAIL
    assert "nothing is saved yet" in capfd.readouterr().err
    assert_same(outcome(tmp_path, train(data, tmp_path)), whole)


# Of three epochs the second and third, or the third alone, are validated.
@pytest.mark.parametrize(("every", "validated"), [(2, [2, 3]), (10, [3])])
def test_the_last_epoch_is_always_validated_also_when_it_was_stopped(data, tmp_path, every, validated):
    result = train(data, tmp_path / "whole", validate_every=every)
    assert [epoch.epoch for epoch in result.history if epoch.n is not None] == validated
    expected = outcome(tmp_path / "whole", result)
    for reads in (32, 33, 48):
        run = tmp_path / str(reads)
        with pytest.raises(Stopped):
            train(data._replace(train=SignalAt(data.train, reads)), run, validate_every=every)
        assert_same(outcome(run, train(data, run, validate_every=every)), expected)
    for reads in (1, 6 * len(validated)):
        run = tmp_path / f"validation{reads}"
        with pytest.raises(Stopped):
            train(data._replace(val=SignalAt(data.val, reads)), run, validate_every=every)
        assert_same(outcome(run, train(data, run, validate_every=every)), expected)


def test_a_resumed_run_keeps_its_precision_on_a_machine_with_another_default(data, whole, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(training, "bf16_is_fast", lambda device: False)
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 6)), tmp_path, precision=None)
    monkeypatch.setattr(training, "bf16_is_fast", lambda device: True)
    capfd.readouterr()
    result = train(data, tmp_path, precision=None)
    assert "it was trained in 32-true and continues in 32-true\n" in capfd.readouterr().out
    assert result.precision == "32-true"
    assert_same(outcome(tmp_path, result), whole)


def test_a_precision_that_is_asked_for_wins_over_that_of_the_checkpoint(data, tmp_path, capfd):
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 6)), tmp_path)
    result = train(data, tmp_path, precision="bf16-mixed")
    assert "it was trained in 32-true and continues in bf16-mixed, as asked\n" in capfd.readouterr().out
    assert result.precision == "bf16-mixed"
    assert recorded_precision(tmp_path / "checkpoints" / LAST) == "bf16-mixed"


def test_a_checkpoint_without_a_precision_takes_that_of_the_machine(tmp_path):
    save(tmp_path, 1.0)
    assert recorded_precision(tmp_path / LAST) is None


def test_a_batch_larger_than_the_training_set_is_refused_before_anything_is_written(data, tmp_path):
    message = r"^recipe\.batch_size=19: must be at most 18, the number of training images$"
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path / "run", batch_size=19)
    assert not (tmp_path / "run").exists()


def test_it_may_be_stopped_again_and_again_and_loaded_by_any_number_of_workers(data, whole, tmp_path):
    for workers, reads in ((0, 5), (0, 10), (0, 9)):
        with pytest.raises(Stopped):
            train(data._replace(train=SignalAt(data.train, reads)), tmp_path, workers)
    assert_same(outcome(tmp_path, train(data, tmp_path, workers=2)), whole)


@pytest.mark.parametrize("left", [17, 5])
def test_data_that_has_changed_is_refused_unless_that_is_wanted(data, tmp_path, left):
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 11)), tmp_path)
    names = [data.train.name(i) for i in range(18)]
    fewer = data._replace(train=select_images(data, "train", names[: 18 - left]))
    with pytest.raises(ValueError, match=r"^the data has changed since .*trainer\.allow_changed_data=true"):
        train(fewer, tmp_path)
    result = train(fewer, tmp_path, allow_changed_data=True)
    assert (result.training_images, len(result.history)) == (left, 3)


def test_a_loss_that_is_no_number_stops_it_and_is_not_saved(data, tmp_path):
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 6)), tmp_path)
    before = (tmp_path / "checkpoints" / LAST).read_bytes()
    message = (
        r"not finite any more, at the latest in epoch 1, step \d, size 64, rate 1e\+30, gradient norm .*learning_rate"
    )
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path, learning_rate=1e30)
    assert (tmp_path / "checkpoints" / LAST).read_bytes() == before


@pytest.mark.slow
def test_a_loss_that_stays_where_guessing_is_warns_once(data, tmp_path):
    with pytest.warns(
        UserWarning, match=r"^the loss after 50 epochs is 0\.69\d; guessing gives 0\.693: is .*rate"
    ) as said:
        train(data, tmp_path, learning_rate=1e-9, epochs=52)
    assert len([warning for warning in said if "guessing" in str(warning.message)]) == 1


def test_deterministic_training_is_the_same_twice(data, tmp_path):
    try:
        one, other = (outcome(tmp_path / name, train(data, tmp_path / name, deterministic=True)) for name in "ab")
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(one, other)


def test_ctrl_c_exits_as_interrupted(data, tmp_path, capfd):
    with pytest.raises(Stopped) as stopped:
        train(data._replace(train=SignalAt(data.train, 6, signal.SIGINT)), tmp_path)
    assert stopped.value.code == 130
    said = capfd.readouterr().err
    assert "SIGINT: stopping after this step; Ctrl-C again stops at once" in said
    assert "stopped by SIGINT" in said


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({"SLURM_JOB_ID": "1234"}, "1234"),
        ({"SLURM_JOB_ID": "1236", "SLURM_ARRAY_JOB_ID": "1234", "SLURM_ARRAY_TASK_ID": "2"}, "1234_2"),
    ],
)
def test_slurm_is_asked_to_requeue(data, tmp_path, monkeypatch, environment, job):
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 6, signal.SIGUSR1)), tmp_path / "run")
    assert (tmp_path / "asked").read_text() == f"requeue {job}\n"


def test_without_scontrol_it_stops_all_the_same(data, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Stopped) as stopped:
        train(data._replace(train=SignalAt(data.train, 6, signal.SIGUSR1)), tmp_path / "run")
    assert stopped.value.code == os.EX_TEMPFAIL
    assert "cannot requeue job 1234" in capfd.readouterr().err


def test_the_first_signal_decides_and_handlers_are_put_back(tmp_path):
    def mine(number, frame):
        raise AssertionError

    before, interrupt = signal.signal(signal.SIGUSR1, mine), signal.getsignal(signal.SIGINT)
    try:
        checkpoints = Checkpoints(tmp_path, steps=None, minutes=None)
        with checkpoints.stopping_on_signals():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)  # the first of its kind
        assert checkpoints.signal == signal.SIGUSR1
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGUSR1, before)


def save(folder, value, files=None):
    files = files or CheckpointFiles()
    files.save_checkpoint({"value": torch.full((1000,), value)}, folder / LAST)


def value(path):
    return float(torch.load(path, weights_only=True)["value"][0])


def test_the_last_two_checkpoints_are_kept(tmp_path):
    assert newest_whole(tmp_path) is None
    files = CheckpointFiles()
    for i in range(3):
        save(tmp_path, float(i), files)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert (value(tmp_path / LAST), value(tmp_path / PREVIOUS)) == (2, 1)
    assert newest_whole(tmp_path) == tmp_path / LAST


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, empty, flip_a_bit])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path, damage):
    files = CheckpointFiles()
    save(tmp_path, 1.0, files)
    save(tmp_path, 2.0, files)
    damage(tmp_path / LAST)
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged \(.+\); resuming from .*previous\.ckpt"):
        assert newest_whole(tmp_path) == tmp_path / PREVIOUS
    damage(tmp_path / PREVIOUS)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged .*previous\.ckpt is damaged .*delete"):
        newest_whole(tmp_path)


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_whole_one(tmp_path):
    files = CheckpointFiles()
    save(tmp_path, 1.0, files)
    save(tmp_path, 2.0, files)
    cut(tmp_path / LAST)
    files = CheckpointFiles()
    files.load_checkpoint(tmp_path / PREVIOUS)
    save(tmp_path, 3.0, files)
    assert (value(tmp_path / LAST), value(tmp_path / PREVIOUS)) == (3, 1)
    files = CheckpointFiles()
    files.load_checkpoint(tmp_path / LAST)
    save(tmp_path, 4.0, files)
    assert (value(tmp_path / LAST), value(tmp_path / PREVIOUS)) == (4, 3)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    save(tmp_path, 1.0)
    (tmp_path / LAST).rename(tmp_path / PREVIOUS)
    assert newest_whole(tmp_path) == tmp_path / PREVIOUS


def test_a_disk_that_is_full_keeps_what_is_there(tmp_path):
    """A limit on the size of files fails as a full disk does: after some bytes have been written."""
    save(tmp_path, 1.0)
    before = (tmp_path / LAST).read_bytes()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match=r"cannot write a checkpoint \(.+\); .*last\.ckpt is still the one before"):
            save(tmp_path, 2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    assert (tmp_path / LAST).read_bytes() == before


def test_a_folder_that_may_not_be_written_keeps_what_is_there(tmp_path, monkeypatch):
    save(tmp_path, 1.0)
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o555)
    try:
        with (
            without_rights(),
            pytest.raises(OSError, match=r"cannot write a checkpoint \(Permission denied\); last\.ckpt is still"),
        ):
            save(Path(), 2.0)
    finally:
        tmp_path.chmod(0o755)
    assert value(tmp_path / LAST) == 1


def test_a_malicious_checkpoint_runs_nothing(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state_dict": Malicious()}, tmp_path / LAST)
    with pytest.raises(ValueError, match="damaged"):
        newest_whole(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(("classes", "images"), [(("cat",), 1), (("cat",), 6), (("cat", "dog"), 1)])
def test_one_image_and_one_class_are_enough(tmp_path, classes, images):
    folder = make_image_folder(tmp_path / "images", classes, train=images, val=1)
    result = train(open_data("folder", root=str(folder)), tmp_path / "run", batch_size=min(4, images * len(classes)))
    assert (result.training_images, result.num_classes) == (images * len(classes), len(classes))
    assert result.n == len(classes)
    if len(classes) == 1:
        assert result.top1_error == 0


@dataclasses.dataclass(frozen=True)
class Watched:
    """Images; every read notes how much memory, how many open files and how many threads this process has."""

    images: object
    notes: list = dataclasses.field(default_factory=list)

    def __len__(self):
        return len(self.images)

    def read(self, index):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.notes.append(
            (pages * resource.getpagesize() / 1e6, len(os.listdir("/proc/self/fd")), threading.active_count())
        )
        return self.images.read(index)

    def __getattr__(self, name):
        return getattr(self.images, name)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's accounts")
@pytest.mark.filterwarnings("ignore:the loss after")  # of two images nothing is learned
def test_three_hundred_epochs_take_no_more_than_one_hundred(tmp_path, capsys):
    folder = make_image_folder(tmp_path / "images", train=1, val=1)
    data = open_data("folder", root=str(folder))
    watched = Watched(data.train)
    result = train(data._replace(train=watched), tmp_path / "run", epochs=300, batch_size=2)
    assert len(result.history) == 300
    notes = watched.notes[::2]  # two images an epoch
    (memory, files, threads), (memory_then, files_then, threads_then) = notes[299], notes[99]
    assert memory - memory_then < 20
    assert (files, threads) == (files_then, threads_then)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [LAST, PREVIOUS]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert len(events.Scalars("val/top1_error_percent")) == 300
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" left")]
    left = [clock.split(":") for clock in (line.split()[-2] for line in lines)]
    assert all(60 * int(minutes) + int(seconds) < 300 for minutes, seconds in left)
    assert left[-1] == ["0", "00"]
