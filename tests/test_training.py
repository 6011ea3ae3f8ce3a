"""Training runs: the input of the network, compilation, and errors in one of several processes."""

import os
import socket
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from conftest import jpeg, make_image_folder
from forks import exit_code, start_process
from sppnet.classify.machine import Machine
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes
from sppnet.classify.training import train_classifier
from sppnet.data.sources import open_data


def train(folder, run, sizes, compiled=False, epochs=4, seen=None, workers=0, cache=0, data=None, **options):
    """Trains; appends every input of the network in training to the list `seen`."""
    recipe = Recipe(
        epochs=epochs,
        batch_size=4,
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.0,
        warmup_epochs=0,
        dropout=0,
        **options,
    )
    plan = TrainingPlan(
        architecture="zf5",
        backbone_options={"width": 0.05, "normalization": "within_channel"},
        levels=[3, 2, 1],
        hidden=8,
        sizes=Sizes(**sizes),
        source="folder",
        data_options={"root": str(folder)},
        recipe=recipe,
        machine=Machine(accelerator="cpu", precision="32-true", workers=workers, compile=compiled, cache=cache),
        seed=0,
    )
    data = data or plan.open_data()
    network = plan.build_network(data.classes)
    if seen is not None:
        network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    return train_classifier(plan, network, data, run)


@pytest.mark.slow
def test_two_sizes_compile_two_graphs_of_the_network_and_two_of_its_input(tmp_path):
    folder = make_image_folder(tmp_path / "images", train=5, val=3)
    torch.compiler.reset()
    counters.clear()
    with torch.compiler.set_stance("default", force_backend="aot_eager"):  # generates no code, which would take long
        compiled = train(folder, tmp_path / "compiled", {"cycle": [64, 48]}, compiled=True)
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]
    eager = train(folder, tmp_path / "eager", {"cycle": [64, 48]}, compiled=False)
    losses = [[epoch.train_loss for epoch in result.history] for result in (compiled, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_a_compiled_run_learns_what_an_eager_one_does(tmp_path):
    folder = make_image_folder(tmp_path / "images", train=5, val=3)
    torch.compiler.reset()
    counters.clear()
    results = [train(folder, tmp_path / str(on), {"cycle": [48]}, compiled=on, epochs=2) for on in (True, False)]
    assert counters["stats"]["unique_graphs"] == 2  # of the network and of its input
    compiled, eager = ([epoch.train_loss for epoch in result.history] for result in results)
    assert compiled == pytest.approx(eager, rel=1e-3)


def test_many_sizes_are_not_compiled(tmp_path):
    folder = make_image_folder(tmp_path / "images", train=5, val=3)
    with pytest.raises(ValueError, match=r"^trainer.compile=true: this run trains at 17 sizes.*at most 4"):
        train(folder, tmp_path / "run", {"uniform": [48, 64], "seed": 0}, compiled=True, epochs=9)
    torch.compiler.reset()
    counters.clear()
    result = train(folder, tmp_path / "run", {"uniform": [48, 64], "seed": 0}, compiled=None, epochs=9)
    assert len({epoch.size for epoch in result.history}) > 4
    assert counters["stats"]["unique_graphs"] == 0


def test_every_epoch_trains_at_its_size(tmp_path):
    """And the history records it; the first size of the cycle comes first."""
    folder, seen = make_image_folder(tmp_path / "images", train=4, val=1), []
    result = train(folder, tmp_path / "run", {"cycle": [64, 48, 56]}, epochs=4, seen=seen)
    sizes = [images.shape[-2:] for images in seen]
    assert sizes == [(side, side) for side in (64, 64, 48, 48, 56, 56, 64, 64)]
    assert [epoch.size for epoch in result.history] == [64, 48, 56, 64]


@pytest.mark.parametrize("sizes", [{"cycle": [64, 48, 56]}, {"uniform": [48, 64], "multiple": 8, "seed": 1}])
def test_every_batch_trains_at_its_size(tmp_path, sizes):
    folder, seen = make_image_folder(tmp_path / "images", train=10, val=1), []
    schedule = Sizes(**sizes, every="batch")
    result = train(folder, tmp_path / "run", sizes | {"every": "batch"}, epochs=2, seen=seen)
    expected = [schedule.of_step(epoch, step) for epoch in range(2) for step in range(5)]
    assert [images.shape[-2:] for images in seen] == [(side, side) for side in expected]
    assert len(set(expected)) == 3
    assert [epoch.size for epoch in result.history] == [None, None]


def test_the_network_sees_images_minus_the_means_red_first_with_colours_shifted_along_alexnets_axes(tmp_path):
    """arXiv:1406.4729v4, §3.1: "the color altering in [3]", which adds the same to all pixels of an image."""
    red = make_image_folder(tmp_path / "images", train=4, val=1)
    for file in (red / "train").rglob("*.jpg"):
        file.write_bytes(jpeg(np.full((64, 64, 3), (200, 100, 50), dtype=np.uint8)))
    plain, shifted = [], []
    train(red, tmp_path / "plain", {"cycle": [64]}, epochs=1, seen=plain, color=False)
    train(red, tmp_path / "shifted", {"cycle": [64]}, epochs=1, seen=shifted, color=True)
    plain, shifted = torch.cat(plain), torch.cat(shifted)
    expected = torch.tensor([200 - 123.675, 100 - 116.28, 50 - 103.53])
    assert (plain - expected[:, None, None]).abs().max() < 3  # JPEG's rounding
    shift = shifted - plain
    assert shift.std(dim=(2, 3)).max() < 0.01
    assert len({tuple(image.tolist()) for image in shift.mean(dim=(2, 3))}) == 8
    assert shift.abs().max() > 1
    # The axis of the largest eigenvalue is nearly grey: most of every shift lies on it.
    grey = shift.mean(dim=(1, 2, 3)).abs()
    assert grey.mean() > 2 * (shift.mean(dim=(2, 3)) - shift.mean(dim=(1, 2, 3))[:, None]).abs().mean()


def test_erased_pixels_are_0_in_the_input_of_the_network(tmp_path):
    folder, seen = make_image_folder(tmp_path / "images", train=4, val=1), []
    for file in (folder / "train").rglob("*.jpg"):
        file.write_bytes(jpeg(np.full((64, 64, 3), (200, 100, 50), dtype=np.uint8)))
    train(folder, tmp_path / "run", {"cycle": [64]}, epochs=1, seen=seen, color=False, erasing=1.0)
    erased = torch.cat(seen)[:, 2].abs() <= 0.5  # the mean colour, rounded; the other pixels are 53 below it
    assert all(10 < image.sum() < 64 * 64 - 10 for image in erased)
    assert (torch.cat(seen).abs().amax(dim=1)[erased] <= 0.5).all()


def test_about_half_of_the_images_are_mirrored_unless_the_recipe_says_none(tmp_path):
    folder = make_image_folder(tmp_path / "images", train=8, val=1)
    left_is_bright = np.zeros((64, 64, 3), dtype=np.uint8)
    left_is_bright[:, :32] = 200
    for file in (folder / "train").rglob("*.jpg"):
        file.write_bytes(jpeg(left_is_bright))

    def mirrored(**options):
        seen = []
        train(folder, tmp_path / str(options), {"cycle": [64]}, epochs=1, seen=seen, color=False, **options)
        left, right = torch.cat(seen).mean(dim=(1, 2)).split(32, dim=1)
        return (right.mean(dim=1) > left.mean(dim=1)).sum()

    assert 3 < mirrored() < 13
    assert mirrored(mirror=False) == 0


def test_the_cores_are_shared_among_the_processes_of_the_run_and_not_among_all_gpus(tmp_path, monkeypatch):
    class Readers:
        """Images; every read leaves a file named after the process that made it."""

        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def read(self, index):
            (tmp_path / "readers" / str(os.getpid())).touch()
            return self.images.read(index)

        def __getattr__(self, name):
            return getattr(self.images, name)

    (tmp_path / "readers").mkdir()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = open_data("folder", root=str(make_image_folder(tmp_path / "images", train=6, val=1)))
    data = data._replace(train=Readers(data.train))
    train(None, tmp_path / "run", {"cycle": [48]}, epochs=1, workers=None, data=data)
    assert len(list((tmp_path / "readers").iterdir())) == 3


def train_one_of_two(rank, port, folder, run, message):
    """Trains as one of two processes, the second of which has a loss that is not finite; writes the error to a file."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ.update(address, NODE_RANK="0", LOCAL_RANK=str(rank))
    warnings.simplefilter("ignore")
    plan = TrainingPlan(
        architecture="zf5",
        backbone_options={"width": 0.05, "normalization": "none"},
        levels=[2, 1],
        hidden=8,
        sizes=Sizes(cycle=[48]),
        source="folder",
        data_options={"root": str(folder)},
        seed=0,
        recipe=Recipe(epochs=1, batch_size=4, learning_rate=0.01, momentum=0.9, weight_decay=0.0, warmup_epochs=0),
        machine=Machine(accelerator="cpu", devices=2, strategy="ddp", precision="32-true", workers=0),
    )
    data = plan.open_data()
    network = plan.build_network(data.classes)
    if rank == 1:
        network.register_forward_hook(lambda module, inputs, scores: scores * float("nan"))
    try:
        train_classifier(plan, network, data, run)
    except ValueError as error:
        message.write_text(str(error))
        os._exit(3)  # without telling the other process


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_of_two_processes_ends_both(tmp_path):
    folder = make_image_folder(tmp_path / "images", train=5, val=3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    messages = [tmp_path / "0.txt", tmp_path / "1.txt"]
    processes = [
        start_process(partial(train_one_of_two, rank, port, folder, tmp_path / "run", messages[rank]))
        for rank in (0, 1)
    ]
    assert [exit_code(process) for process in processes] == [3, 3]
    for file in messages:
        assert file.read_text().startswith("the loss is not finite any more, at the latest in epoch 1, step 0, ")
    assert not list(Path(tmp_path / "run").rglob("*.ckpt"))
