"""Checkpoint files: written atomically, the last two kept, damaged and malicious ones refused."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from conftest import without_rights
from sppnet.lightning_checkpoints import LAST, PREVIOUS, AtomicCheckpointIO, newest_checkpoint, recorded_precision


def test_a_checkpoint_may_lack_its_precision(tmp_path):
    save(tmp_path, 1.0)
    assert recorded_precision(tmp_path / LAST) is None


def save(folder, value, files=None):
    files = files or AtomicCheckpointIO()
    files.save_checkpoint({"value": torch.full((1000,), value)}, folder / LAST)


def value(path):
    return float(torch.load(path, weights_only=True)["value"][0])


def test_the_last_two_checkpoints_are_kept(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    files = AtomicCheckpointIO()
    for i in range(3):
        save(tmp_path, float(i), files)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert (value(tmp_path / LAST), value(tmp_path / PREVIOUS)) == (2, 1)
    assert newest_checkpoint(tmp_path) == tmp_path / LAST


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
    files = AtomicCheckpointIO()
    save(tmp_path, 1.0, files)
    save(tmp_path, 2.0, files)
    damage(tmp_path / LAST)
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged \(.+\); resuming from .*previous\.ckpt"):
        assert newest_checkpoint(tmp_path) == tmp_path / PREVIOUS
    damage(tmp_path / PREVIOUS)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged .*previous\.ckpt is damaged .*delete"):
        newest_checkpoint(tmp_path)


def test_a_damaged_checkpoint_does_not_replace_the_intact_one(tmp_path):
    files = AtomicCheckpointIO()
    save(tmp_path, 1.0, files)
    save(tmp_path, 2.0, files)
    cut(tmp_path / LAST)
    files = AtomicCheckpointIO()
    files.load_checkpoint(tmp_path / PREVIOUS)
    save(tmp_path, 3.0, files)
    assert (value(tmp_path / LAST), value(tmp_path / PREVIOUS)) == (3, 1)
    files = AtomicCheckpointIO()
    files.load_checkpoint(tmp_path / LAST)
    save(tmp_path, 4.0, files)
    assert (value(tmp_path / LAST), value(tmp_path / PREVIOUS)) == (4, 3)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    save(tmp_path, 1.0)
    (tmp_path / LAST).rename(tmp_path / PREVIOUS)
    assert newest_checkpoint(tmp_path) == tmp_path / PREVIOUS


def test_a_full_disk_leaves_the_checkpoint_as_it_is(tmp_path):
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


def test_a_folder_without_permission_leaves_the_checkpoint_as_it_is(tmp_path, monkeypatch):
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


def test_a_malicious_checkpoint_runs_no_code(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state_dict": Malicious()}, tmp_path / LAST)
    with pytest.raises(ValueError, match="damaged"):
        newest_checkpoint(tmp_path)
    assert not (tmp_path / "owned").exists()
