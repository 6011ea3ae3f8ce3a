"""What is compiled, and how often."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from conftest import make_image_folder
from sppnet.backbones import build_backbone
from sppnet.classify.recipe import Machine, Recipe
from sppnet.classify.schedules import size_of_epoch
from sppnet.classify.training import train_classifier
from sppnet.datasets import open_data
from sppnet.network import SPPNet


def train(folder, run, sizes, compiled, epochs=4):
    recipe = Recipe(
        epochs=epochs, batch_size=4, learning_rate=0.01, momentum=0.9, weight_decay=0.0, warmup_epochs=0, color=True
    )
    machine = Machine(accelerator="cpu", precision="32-true", workers=0, compile=compiled)
    torch.manual_seed(0)
    backbone = build_backbone("zf5", width=0.05, normalization="within_channel")
    network = SPPNet(backbone, (3, 2, 1), 2, hidden=8, dropout=0)
    return train_classifier(
        network,
        open_data("folder", root=str(folder)),
        recipe=recipe,
        machine=machine,
        crop_side=64,
        size_of_epoch=partial(size_of_epoch, **sizes),
        seed=0,
        data_name="folder",
        run=run,
    )


@pytest.mark.slow
def test_two_sizes_are_two_graphs_of_the_network_and_two_of_its_input(tmp_path):
    folder = make_image_folder(tmp_path / "images", train=5, val=3)
    torch.compiler.reset()
    counters.clear()
    compiled = train(folder, tmp_path / "compiled", {"cycle": [64, 48]}, compiled=True)
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]
    eager = train(folder, tmp_path / "eager", {"cycle": [64, 48]}, compiled=False)
    losses = [[epoch["train_loss"] for epoch in result["history"]] for result in (compiled, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_many_sizes_are_not_compiled(tmp_path):
    folder = make_image_folder(tmp_path / "images", train=5, val=3)
    with pytest.raises(ValueError, match=r"^trainer.compile=true: this run trains at [5-9] sizes.*at most 4"):
        train(folder, tmp_path / "run", {"uniform": [48, 64], "seed": 0}, compiled=True, epochs=9)
    torch.compiler.reset()
    counters.clear()
    result = train(folder, tmp_path / "run", {"uniform": [48, 64], "seed": 0}, compiled=None, epochs=9)
    assert len({epoch["size"] for epoch in result["history"]}) > 4
    assert counters["stats"]["unique_graphs"] == 0
