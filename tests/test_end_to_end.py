"""The command line as users type it: training at two sizes, killed, resumed and finished; and what can go wrong."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from conftest import make_image_folder, run_process, started_process
from sppnet.network import load_network

PROJECT = Path(__file__).parent.parent
SCRIPT = [sys.executable, str(PROJECT / "scripts" / "train.py")]
SMALL = [
    *("data=folder", "recipe=fast", "trainer=cpu", "trainer.precision=32-true", "trainer.workers=0"),
    *("backbone.width=0.05", "hidden=16", "sizes.cycle=[64,48]"),
    *("recipe.epochs=3", "recipe.batch_size=4", "recipe.warmup_epochs=0"),
]


def train(*overrides, cwd, **environment):
    """Runs scripts/train.py in a process of its own in the folder `cwd`, away from a terminal."""
    return run_process([*SCRIPT, *overrides], cwd=cwd, env=os.environ | environment)


def kill_after_epoch(epoch, *overrides, cwd):
    """Starts scripts/train.py and sends SIGKILL when the line of `epoch` appears."""
    with started_process([*SCRIPT, *overrides], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for line in process.stdout:
            if line.startswith(f"epoch {epoch}/"):
                process.kill()
                return
        raise AssertionError(process.stderr.read())


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_image_folder(tmp_path_factory.mktemp("data") / "images", train=5, val=3)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path, run_here):
    """The same batches in the same order, split in two: the same counts, and the same losses but for rounding.

    One process validates three batches, the other two.
    """
    root = make_image_folder(tmp_path / "images", ("cat", "dog", "fox"), train=9, val=3)
    arguments = [*SMALL, f"data.root={root}", "recipe.dropout=0"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    results = []
    for name, done in (
        ("one", run_here("train", *arguments, "run=one", cwd=tmp_path)),
        ("two", train(*arguments, "run=two", *two, cwd=tmp_path)),
    ):
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("run directory") == 2
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    for one, other in zip(*(result["history"] for result in results), strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert (other["n"], other["top1_wrong"]) == (9, one["top1_wrong"])


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_as_an_undisturbed_one(folder, tmp_path, run_here):
    arguments = [*SMALL, f"data.root={folder}"]
    undisturbed = run_here("train", *arguments, "run=undisturbed", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert undisturbed.stderr == ""
    lines = [line for line in undisturbed.stdout.splitlines() if line.startswith("epoch")]
    assert [line.split("size ")[1].split()[0] for line in lines] == ["64", "48", "64"]
    assert "\n  top-1 error" in undisturbed.stdout

    result = json.loads((tmp_path / "undisturbed" / "result.json").read_text())
    assert [epoch["size"] for epoch in result["history"]] == [64, 48, 64]
    assert (result["n"], result["num_classes"], result["training_images"]) == (6, 2, 10)
    assert result["top1_error"] == result["top1_wrong"] / 6
    assert sorted(path.name for path in (tmp_path / "undisturbed").iterdir()) == [
        "checkpoints", "config.yaml", "lock", "result.json", "tensorboard",
    ]  # fmt: skip

    network = load_network(tmp_path / "undisturbed")
    assert network.classes == ("cat", "dog")
    assert network(torch.zeros(1, 3, 70, 91)).shape == (1, 2)

    kill_after_epoch(2, *arguments, "run=killed", cwd=tmp_path)
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed = run_here("train", *arguments, "run=killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from killed/checkpoints/last.ckpt" in resumed.stdout
    assert resumed.stdout.count("epoch 1/3") + resumed.stdout.count("epoch 2/3") <= 1
    one, other = weights(tmp_path / "undisturbed"), weights(tmp_path / "killed")
    assert all(torch.equal(one[name], other[name]) for name in one)

    again = run_here("train", *arguments, "run=killed", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stdout
    assert "epoch 3/3" not in again.stdout


@contextmanager
def training(*overrides, cwd, stderr=subprocess.PIPE):
    """Starts scripts/train.py in a process group of its own, and waits for the line of its first epoch."""
    with started_process([*SCRIPT, *overrides], cwd=cwd, stdout=subprocess.PIPE, stderr=stderr) as process:
        while not (line := process.stdout.readline()).startswith("epoch "):
            assert line, "ended before its first epoch did"
        yield process


@pytest.mark.slow
def test_a_stop_signal_to_it_and_its_workers_saves_and_exits_with_the_code_for_schedulers(folder, tmp_path, run_here):
    command = [*SMALL, "trainer.workers=2", f"data.root={folder}", "recipe.epochs=2000", "run=run"]
    with training(*command, cwd=tmp_path) as process:
        again = run_here("train", *command, cwd=tmp_path)
        assert again.returncode == 2
        assert f"run: process {process.pid} on " in again.stderr
        os.killpg(process.pid, signal.SIGTERM)
        errors = process.communicate()[1]
    assert process.returncode == os.EX_TEMPFAIL
    assert errors.count("SIGTERM: stopping after this step") == 1
    assert errors.strip().splitlines()[-1].startswith("stopped by SIGTERM; run/checkpoints/last.ckpt is of epoch ")
    assert "Traceback" not in errors


@pytest.mark.slow
def test_ctrl_c_saves_even_if_nobody_reads_its_messages(folder, tmp_path):
    """As in `train.py 2>&1 | tee log`, where Ctrl-C ends tee as well."""
    read, write = os.pipe()
    with training(
        *SMALL, f"data.root={folder}", "recipe.epochs=2000", "run=run", cwd=tmp_path, stderr=write
    ) as process:
        os.close(write)
        os.close(read)
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130


@pytest.mark.slow
def test_a_second_ctrl_c_ends_it_at_once(folder, tmp_path):
    overrides = [*SMALL, "recipe.batch_size=10", "backbone.width=1", "sizes.cycle=[224]", "recipe.epochs=2000"]
    with training(*overrides, f"data.root={folder}", "run=run", cwd=tmp_path) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline() == "SIGINT: stopping after this step; Ctrl-C again stops at once\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert "stopped by" not in process.stderr.read()


@pytest.mark.slow
def test_a_stop_signal_before_training_is_reported(folder, tmp_path):
    command = [*SCRIPT, *SMALL, f"data.root={folder}", "run=run"]
    with started_process(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        errors = process.communicate()[1]
    assert process.returncode == os.EX_TEMPFAIL
    assert errors.strip().splitlines()[-1].startswith("stopped by SIGTERM")


@pytest.mark.slow
def test_a_sweep_that_is_stopped_does_not_start_its_next_job(folder, tmp_path):
    with training("-m", "seed=1,2", *SMALL, f"data.root={folder}", "recipe.epochs=2000", cwd=tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == os.EX_TEMPFAIL
    assert len(list((tmp_path / "runs").glob("*-seed*"))) == 1


@pytest.mark.slow
def test_a_full_disk_stops_it_in_one_line(folder, tmp_path, run_here):
    """A limit on the size of files fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        done = run_here("train", *SMALL, f"data.root={folder}", "run=full", cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        "error: full/checkpoints/last.ckpt: cannot write a checkpoint (File too large); there is none yet"
    )
    assert not (tmp_path / "full").exists()


@pytest.mark.slow
def test_an_unreadable_training_image_is_named_and_counted(tmp_path, run_here):
    root = make_image_folder(tmp_path / "images", train=5, val=3)
    (root / "train" / "cat" / "0.jpg").write_bytes(b"")
    arguments = [*SMALL, "trainer.workers=1", f"data.root={root}"]
    stopped = run_here("train", *arguments, "run=stopped", "trainer.max_unreadable=0.01", cwd=tmp_path)
    assert stopped.returncode == 2
    assert "1 of 10 training images cannot be read, more than allowed (0)" in stopped.stderr
    done = run_here("train", *arguments, "run=done", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ("warning: skipping an unreadable training image: train/cat/0.jpg: the file is empty")
    assert json.loads((tmp_path / "done" / "result.json").read_text())["unreadable_training_images"] == 1


@pytest.mark.slow
def test_a_killed_loader_process_stops_it_in_one_line_and_it_resumes(folder, tmp_path):
    command = [*SMALL, "trainer.workers=1", f"data.root={folder}", "run=run"]
    checkpoints = tmp_path / "run" / "checkpoints"
    with training(*command, "recipe.epochs=2000", cwd=tmp_path) as process:
        limit = time.monotonic() + 60
        while not list(checkpoints.glob("*.ckpt")):  # the line of an epoch is printed before it is saved
            assert time.monotonic() < limit
            time.sleep(0.05)
        # The loader processes, of training and of validation, are the only children.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        errors = process.communicate()[1]
    assert process.returncode == 2
    assert errors == (
        "error: a loader process was killed (signal 9), perhaps for lack of memory; use fewer trainer.workers\n"
    )
    assert list(checkpoints.glob("*.ckpt"))  # previous.ckpt only, if it was just being replaced


@pytest.mark.slow
def test_a_sweep_trains_every_combination_into_its_own_directory(folder, tmp_path, run_here):
    arguments = [*SMALL, f"data.root={folder}", "recipe.epochs=1"]
    done = run_here("train", "-m", *arguments, "pooling=spp50,spp30", "backbone=zf5,convnet5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = sorted(path.name.split("-seed")[0] for path in (tmp_path / "runs").iterdir() if path.name != "sweeps")
    assert runs == [f"{b}-{p}-64-48-folder" for b in ("convnet5", "zf5") for p in ("spp30", "spp50")]
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_timm_backbone_trains_with_a_pyramid_at_two_sizes(folder, tmp_path, name, run_here):
    """50 pixels are no multiple of the patches of test_vit, which is made for 160."""
    backbone = ["backbone=timm", f"backbone.name={name}", "sizes.cycle=[64,50]"]
    arguments = [word for word in SMALL if not word.startswith("backbone")]
    done = run_here("train", *arguments, *backbone, f"data.root={folder}", "recipe.epochs=2", "run=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [epoch["size"] for epoch in result["history"]] == [64, 50]
    assert load_network(tmp_path / "run")(torch.zeros(1, 3, 70, 91)).shape == (1, 2)


@pytest.mark.slow
def test_a_network_without_a_pyramid_trains_at_a_size_of_its_own(folder, tmp_path, run_here):
    arguments = [*SMALL, "pooling=none", "sizes.cycle=[64]", "recipe.epochs=1", f"data.root={folder}", "run=run"]
    done = run_here("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no pyramid, 64 pixels only" in done.stdout
    network = load_network(tmp_path / "run")
    assert network.input_side == 64
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def with_class_in_one_split(root):
    (root / "val" / "dog").rename(root / "val" / "wolf")


def with_damaged_validation_image(root):
    (root / "val" / "cat" / "0.jpg").write_bytes(b"\xff\xd8\xff no image")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "change", "message"),
    [
        ([], lambda root: [shutil.rmtree(path) for path in root.glob("*/*")], "images"),
        ([], with_class_in_one_split, "wolf"),
        ([], with_damaged_validation_image, "error: val/cat/0.jpg: "),
        (["trainer.workers=1"], with_damaged_validation_image, "error: val/cat/0.jpg: "),
    ],
)
def test_wrong_data_is_reported_in_one_line(tmp_path, overrides, change, message, run_here):
    root = make_image_folder(tmp_path / "images", train=2, val=2)
    change(root)
    done = run_here("train", *SMALL, f"data.root={root}", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.glob("runs/*/result.json"))


@pytest.mark.slow
def test_a_wrong_experiment_file_is_reported_in_one_line(folder, tmp_path, run_here):
    configs = tmp_path / "configs"
    shutil.copytree(PROJECT / "configs", configs)
    mine = configs / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\nrecipe:\n  epochz: 3\n")
    done = run_here("train", "-cd", str(configs), "experiment=mine", *SMALL, f"data.root={folder}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: recipe.epochz: no such key; did you mean epochs?"
    mine.write_text("# @package _global_\nrecipe: [\n")
    done = run_here("train", "-cd", str(configs), "experiment=mine", *SMALL, f"data.root={folder}", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert 'mine.yaml", line 3' in done.stderr


@pytest.mark.slow
def test_help_fits_a_page_and_names_groups_overrides_and_examples(tmp_path):
    done = train("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("backbone: convnet5", "experiment=demo", "data.root=PATH", "sppnet train -m"):
        assert word in done.stdout
    assert len(done.stdout.splitlines()) <= 40
