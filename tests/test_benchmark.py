"""The references compute what ours compute; verdicts follow from rates; both commands run. No timing is tested."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from conftest import make_image_folder
from sppnet.backbones import build_backbone
from sppnet.benchmark.exported import Exported, whole_network
from sppnet.benchmark.images import draw_images
from sppnet.benchmark.references import PlainPyramid, plain_loader, plain_zf5
from sppnet.benchmark.report import advice, judge, stages_page
from sppnet.benchmark.stages import FORWARD, LOADER, Stage, TrainingSetup, input_name, step_name, total_name
from sppnet.benchmark.timing import Ratio, compare
from sppnet.classify.machine import Machine
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes
from sppnet.data.sources import open_data
from sppnet.network import SPPNet
from sppnet.pyramid import SpatialPyramidPool
from sppnet.use.export import onnx_model, trace_module


def test_plain_modules_are_zf5_with_the_same_loss_and_gradients():
    torch.manual_seed(0)
    ours = SPPNet(build_backbone("zf5", normalization="across_channels"), num_classes=7, hidden=64, dropout=0)
    plain = plain_zf5(7, hidden=64, dropout=0)
    with torch.no_grad():
        for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
            theirs.copy_(mine)
    images, labels = 50 * torch.randn(2, 3, 96, 81), torch.tensor([1, 4])
    losses = [F.cross_entropy(network(images), labels) for network in (ours, plain)]
    torch.testing.assert_close(*losses)
    gradients = [
        torch.autograd.grad(loss, network.parameters()) for loss, network in zip(losses, (ours, plain), strict=True)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, 3, 2, 1), (5, 1)])
def test_plain_pyramid_is_the_pyramid(levels):
    maps = torch.randn(2, 3, 13, 11)
    assert torch.equal(PlainPyramid(levels)(maps), SpatialPyramidPool(levels)(maps))


def test_the_plain_loader_yields_the_network_input(tmp_path):
    root = tmp_path / "grey"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        Image.fromarray(np.full((300, 280, 3), 100, np.uint8)).save(root / name / "0.png")
    ((images, labels),) = plain_loader(root, batch_size=2, workers=0, mean=(90, 100, 110), std=(1, 2, 4))
    assert images.shape == (2, 3, 224, 224)
    torch.testing.assert_close(images[0, :, 5, 7], torch.tensor([10, 0, -2.5]), atol=1e-4, rtol=0)
    assert sorted(labels.tolist()) == [0, 1]


def test_images_are_drawn_in_two_classes(tmp_path):
    data = open_data("folder", root=str(draw_images(tmp_path, 6, 37, 50)))
    assert (len(data.train), len(data.val), data.classes) == (6, 2, ("class0", "class1"))
    with Image.open(tmp_path / "train" / "class0" / "2.jpg") as image:
        assert image.size == (50, 37)
        assert np.asarray(image).std() > 20


def test_links_take_the_place_of_images_beyond_the_distinct_ones(tmp_path):
    data = open_data("folder", root=str(draw_images(tmp_path, 6, 30, 40, distinct=4)))
    assert len(data.train) == 6
    files = [(tmp_path / "train" / f"class{i % 2}" / f"{i}.jpg").read_bytes() for i in range(6)]
    assert files[4:] == files[:2]
    assert len(set(files)) == 4


def test_a_ratio_is_measured_in_alternating_rounds():
    calls = []
    ratio = compare(lambda: calls.append("ours"), lambda: calls.append("reference"), rounds=3, seconds=1e-9)
    assert calls == [*["ours", "reference"] * 5]  # to warm up, to count, three rounds
    assert len(ratio.rounds) == 3
    assert Ratio([3.0, 1.0, 2.0], 1.0, 2.0).median == 2.0


def setup(tmp_path, **machine):
    recipe = Recipe(epochs=10, batch_size=128, learning_rate=0.01, momentum=0.9, weight_decay=0, warmup_epochs=0)
    root = make_image_folder(tmp_path / "images", train=100, val=50)
    plan = TrainingPlan(
        architecture="zf5", backbone_options={}, levels=[2, 1], hidden=8, sizes=Sizes(cycle=[224, 180]),
        source="folder", data_options={"root": str(root)}, recipe=recipe, machine=Machine(**machine), seed=0,
    )  # fmt: skip
    return TrainingSetup(plan, plan.open_data())


def stages(loader, steps=(100, 200), inputs=1e9, total=80, forward=400):
    sizes = (224, 180)
    return [
        Stage(LOADER, loader, "4 workers"),
        *(Stage(input_name(size), inputs, "cpu") for size in sizes),
        *(Stage(step_name(size), rate, "cpu") for size, rate in zip(sizes, steps, strict=True)),
        *(Stage(total_name(size), total, "this machine") for size in sizes),
        Stage(FORWARD, forward, "cpu", testing=True),
    ]


def test_the_slower_side_is_the_bottleneck_and_times_follow_from_the_rates(tmp_path):
    job = setup(tmp_path)
    computing = judge(job, stages(loader=1000))
    assert computing.bottleneck == "computing"
    assert computing.computing == pytest.approx(2 / (1 / 100 + 1 / 200))  # as many images at either size
    assert computing.efficiency == pytest.approx(80 / 133.33, rel=1e-3)
    assert computing.epoch_seconds == pytest.approx(200 / 80 + 100 / 400)
    assert computing.run_seconds == pytest.approx(10 * computing.epoch_seconds)
    loading = judge(job, stages(loader=90))
    assert loading.bottleneck == "loading"
    seldom = dataclasses.replace(job.plan, machine=Machine(validate_every=5))
    every_fifth = judge(job._replace(plan=seldom), stages(loader=1000))
    assert every_fifth.run_seconds == pytest.approx(10 * 200 / 80 + 2 * 100 / 400)

    def say(verdict, **known):
        return " ".join(advice(job, verdict, **({"prepared": False, "workers": 4, "cores": 4, "gpu": False} | known)))

    assert "prepare_data.py" in say(loading)
    assert "trainer.workers=8" in say(loading, prepared=True, cores=8)
    assert "more cores" in say(loading, prepared=True)
    assert "a GPU" in say(computing)
    assert "recipe.batch_size=256" in say(computing, gpu=True)
    text = stages_page("machine", job, stages(loader=1000), computing, ["luck"]).markdown()
    assert "Bottleneck: the device (loader 1,000 images/s, device 133)" in text
    assert "An epoch of 200 images" in text


def test_an_exported_network_computes_what_it_is_compared_with():
    backbone = build_backbone("zf5", width=0.05, normalization="none")
    exported = whole_network(SPPNet(backbone, (1,), 3, hidden=8, initialization="fan_in", input_std=(60, 60, 60)))
    ours, reference, _ = exported.works()
    for found, expected in zip(ours(), reference(), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)


def test_the_operators_of_an_exported_module_are_those_that_take_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = trace_module(nn.Sequential(nn.ReLU(), nn.Conv2d(8, 256, 5)), torch.zeros(2, 8, 9, 11), free=(0, 2, 3))
    model = onnx_model(program, ("maps", "result")).SerializeToString()
    exported = Exported(model, [np.ones((1, 8, 96, 97), np.float32)], lambda: None)
    (convolution, share), *others = re.findall(r"(\w+) (\d+) %", exported.operators())
    assert convolution == "Conv"
    assert "Relu" in dict(others)
    assert int(share) > 60
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_page_of_stages(tmp_path, run_here):
    root = make_image_folder(tmp_path / "images", train=8, val=2)
    arguments = [f"data.root={root}", "data=folder", "recipe=fast", "trainer=cpu", "backbone.width=0.05", "hidden=16"]
    small = ["recipe.epochs=2", "recipe.batch_size=4", "sizes=alternate", "seconds=0.01", "recipe.warmup_epochs=0"]
    done = run_here("benchmark", *arguments, *small, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    names = [stage["name"] for stage in records["stages"]]
    assert {"decode", LOADER, step_name(224), step_name(180), total_name(180), "test by multi_view"} <= set(names)
    assert all(stage["images_per_second"] > 0 for stage in records["stages"])
    assert records["bottleneck"] in ("loading", "computing")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
