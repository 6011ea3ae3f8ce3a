"""Tensors on the wrong device and waits for the device, on a pretended GPU: training, scoring, detection and the rest.

Waits are counted by the place in the code that waits. A place that is not in the expected counts must not wait.
"""

import pytest
import torch
import torch.nn.functional as F
import yaml
from torchvision.ops import nms

from conftest import make_image_folder
from pretend_gpu import pretended_gpu
from sppnet.backbones import build_backbone
from sppnet.classify.machine import Machine
from sppnet.classify.plan import TrainingPlan
from sppnet.classify.recipe import Recipe
from sppnet.classify.schedules import Sizes
from sppnet.classify.scorer import Scorer
from sppnet.classify.training import train_classifier
from sppnet.classify.view_inputs import ViewInputs
from sppnet.classify.views import ViewProtocol, in_pixels
from sppnet.data.inputs import Inputs
from sppnet.detect.detector import detect_image
from sppnet.detect.finetuning import Finetuner
from sppnet.detect.finetuning_windows import FinetuneSettings
from sppnet.network import SPPNet
from sppnet.transfer.features import FeatureExtractor
from sppnet.use.explain import explain_image
from test_configs import CONFIGS
from test_detect_image import made_detector

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="torch pretends a GPU only if it is built for CUDA; it needs no driver"
)
BF16 = torch.bfloat16


@pytest.fixture
def gpu():
    with pretended_gpu() as gpu:
        yield gpu


def made_network(architecture="zf5", levels=(3, 2, 1), hidden=8):
    torch.manual_seed(0)
    options = {"name": "test_resnet"} if architecture == "timm" else {"width": 0.05}
    backbone = build_backbone(architecture, **options)
    side = None if levels else 64
    return SPPNet(backbone, levels, 4, hidden=hidden, dropout=0.0, initialization="fan_in", input_side=side)


def random_image(height=60, width=80):
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# What is found.


def waiting_loss(scores, labels):
    loss = F.cross_entropy(scores, labels)
    return loss if loss.item() > 0 else None


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda values: values.sum().item(), "_local_scalar_dense"),
        (lambda values: bool((values > 0).any()), "_local_scalar_dense"),
        (lambda values: values.tolist(), "_to_copy"),
        (lambda values: values.cpu(), "_to_copy"),
        (lambda values: torch.ones(2, 4).copy_(values), "copy_"),
        (lambda values: values.nonzero(), "nonzero"),
        (lambda values: values[values > 0], "index"),
        (lambda values: values[torch.tensor([0, 1])], "index"),
        (lambda values: values.unique(), "_unique2"),
        (lambda values: torch.tensor([1.0, 2.0], device=values.device), "_to_copy"),
        (lambda values: torch.ones(3).to(values.device, non_blocking=True), "_to_copy"),
        (lambda values: waiting_loss(values, values[:, 0].long()), "_local_scalar_dense"),
    ],
)
def test_a_wait_is_found(gpu, function, operation):
    values = torch.ones(2, 4, device="cuda")
    function(values)
    assert [place.rpartition(": ")[2] for place in gpu.take_waits()] == [operation]


def test_what_does_not_wait_is_not_reported(gpu):
    values, host = torch.ones(2, 4, device="cuda"), torch.arange(2).pin_memory()
    labels = host.to("cuda", non_blocking=True)
    values[labels] += torch.full((2, 1), 3.0, device="cuda") * 2
    loss = F.cross_entropy(values.requires_grad_(), labels)
    loss.backward()
    assert torch.where(values > 3, values, 0.0).device.type == "cuda"
    assert gpu.take_waits() == {}
    assert values.grad.cpu().abs().sum() > 0


class Misplaced(torch.nn.Module):
    """Has a tensor that is no buffer, and that nothing moves to the device."""

    def __init__(self):
        super().__init__()
        self.mean = torch.ones(3, 1, 1)

    def forward(self, images):
        return images - self.mean


def step_of_weights_that_stayed_on_the_cpu(values):
    weights = [values[0, 0].clone().requires_grad_(), torch.ones(4, 4, requires_grad=True)]
    weights[0].grad, weights[1].grad = values[0, 1], torch.ones(4, 4)
    torch._fused_sgd_(
        [w.detach() for w in weights],
        [w.grad for w in weights],
        [],
        weight_decay=0.0,
        momentum=0.0,
        lr=0.1,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=True,
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda values: Misplaced().cuda()(values),
        lambda values: torch.cat([values, torch.ones(2, 3, 4, 4)]),
        lambda values: F.linear(values, torch.ones(5, 4)),
        lambda values: values.add_(torch.ones(4)),
        lambda values: torch.ones(4)[values[0, 0, 0].long()],
        lambda values: nms(values[0, 0], torch.ones(4), 0.5),
        step_of_weights_that_stayed_on_the_cpu,
    ],
)
def test_tensors_on_two_devices_are_refused(gpu, function):
    with pytest.raises(RuntimeError, match=r"two (different )?devices"):
        function(torch.ones(2, 3, 4, 4, device="cuda"))


# The network.


NETWORKS = [
    ("zf5", (6, 3, 2, 1), None),
    ("zf5", None, 8),
    ("convnet5", (3, 2), 8),
    ("overfeat5", (2, 1), None),
    ("overfeat7", (1,), 8),
    ("timm", (2, 1), 8),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: f"{network[0]}-{network[1]}-{network[2]}")
def test_a_step_of_every_network_waits_for_nothing_and_is_that_of_the_cpu(gpu, network):
    def step(device):
        trained = made_network(*network).to(device)
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(device)
        labels = torch.tensor([0, 3]).to(device)
        gpu.take_waits()
        with torch.autocast(device, BF16):
            loss = F.cross_entropy(trained(images), labels)
        loss.backward()
        assert gpu.take_waits() == {}
        return float(loss.detach()), float(torch.nn.utils.get_total_norm([p.grad for p in trained.parameters()]))

    assert step("cuda") == pytest.approx(step("cpu"), rel=0.02)


# Training.


def made_plan(folder, *, accumulate=1, **options):
    recipe = {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.01}
    return TrainingPlan(
        architecture="zf5",
        backbone_options={"width": 0.05},
        levels=[3, 2, 1],
        hidden=8,
        sizes=Sizes(cycle=[64, 48]),
        source="folder",
        data_options={"root": str(folder)},
        recipe=Recipe(**recipe, warmup_epochs=0, initialization="fan_in", input_std=[58.0] * 3, **options),
        machine=Machine(accelerator="gpu", precision="bf16-mixed", compile=False, workers=0, accumulate=accumulate),
        seed=0,
    )


ALL_OPTIONS = {
    "optimizer": "adamw",
    "optimizer_options": {"fused": True},
    "clip_gradient_norm": 1.0,
    "label_smoothing": 0.1,
    "class_weights": True,
    "mixup": 0.2,
    "cutmix": 1.0,
    "ema_decay": 0.9,
    "accumulate": 2,
}
PARAMETERS = 16

# Of two epochs of two steps, each with a validation of one batch. A wait in every step would count 4 times.
TRAINING_WAITS = {
    # At the first step, as at every fiftieth.
    "sppnet.classify.classifier.Classifier.training_step: _local_scalar_dense": 1,
    "sppnet.classify.classifier.Classifier.on_before_optimizer_step: _local_scalar_dense": 1,
    # At the first step, at the end of an epoch, and before it is saved.
    "sppnet.classify.finite.not_finite: _to_copy": 1 + 2 + 2,
    # Pictures of the first batch of each size, and of the filters after an epoch.
    "sppnet.classify.tensorboard.true_colors: _to_copy": 2,
    "sppnet.classify.tensorboard.RunLog.on_train_batch_start: _to_copy": 2,
    "sppnet.classify.tensorboard.RunLog.on_train_epoch_end: _to_copy": 2,
    # At the ends of epochs and validations.
    "sppnet.classify.classifier.Classifier.on_train_batch_end: _local_scalar_dense": 2,
    "sppnet.classify.classifier.Classifier.on_validation_epoch_end: _to_copy": 2,
    "sppnet.classify.classifier.Classifier.on_validation_epoch_end: _local_scalar_dense": 2,
    # At the start: weights move to the GPU, and Lightning looks at the loaders. At the end: weights and what the
    # optimizer remembers move back.
    "sppnet.classify.classifier.Classifier.on_train_start: _to_copy": 1,
    "lightning_fabric.utilities.device_dtype_mixin._DeviceDtypeModuleMixin.to: _to_copy": PARAMETERS,
    "pytorch_lightning.utilities.data.has_len_all_ranks: _to_copy": 3,
    "pytorch_lightning.utilities.data.has_len_all_ranks: _local_scalar_dense": 6,
    "lightning_fabric.utilities.apply_func.move_data_to_device: _to_copy": PARAMETERS,
    "lightning_fabric.utilities.device_dtype_mixin._DeviceDtypeModuleMixin.cpu: _to_copy": PARAMETERS,
}
WAITS_OF_ALL_OPTIONS = {
    "sppnet.classify.averaging.WeightAverage.to: _to_copy": PARAMETERS,
    # The weights of the classes move with the network. AdamW remembers two tensors per weight.
    "lightning_fabric.utilities.device_dtype_mixin._DeviceDtypeModuleMixin.to: _to_copy": PARAMETERS + 1,
    "lightning_fabric.utilities.apply_func.move_data_to_device: _to_copy": 2 * PARAMETERS,
    "lightning_fabric.utilities.device_dtype_mixin._DeviceDtypeModuleMixin.cpu: _to_copy": PARAMETERS + 1,
}


@pytest.mark.filterwarnings("ignore:The `srun` command is available")  # where there is SLURM
@pytest.mark.parametrize(
    ("options", "more_waits"), [({}, {}), (ALL_OPTIONS, WAITS_OF_ALL_OPTIONS)], ids=["plain", "all options"]
)
def test_training_waits_at_the_first_step_and_at_the_ends_of_epochs_only(gpu, tmp_path, options, more_waits):
    """The whole training: loader, Lightning's loops, callbacks, logs, checkpoints and validation."""
    plan = made_plan(make_image_folder(tmp_path / "images", train=4, val=2), **options)
    data = plan.open_data()
    result = train_classifier(plan, plan.build_network(data.classes), data, tmp_path / "run")
    assert [epoch.n for epoch in result.history] == [4, 4]
    waits = gpu.take_waits()
    waits.pop("sppnet.classify.classifier.Classifier.mean_loss: _local_scalar_dense", None)  # a line every 30 seconds
    assert waits == TRAINING_WAITS | more_waits


def test_fine_tuning_a_detector_waits_in_no_step(gpu):
    network = made_network(levels=(2, 1))
    tuner = Finetuner(network, FinetuneSettings(), seed=0).cuda()
    tuner.on_train_start()
    tuner.on_validation_epoch_start()
    batch = (torch.rand(4, network.pooled_length).cuda(), torch.arange(4).cuda())
    gpu.take_waits()
    tuner.training_step(batch, 0).backward()
    tuner.validation_step(batch, 0)
    assert gpu.take_waits() == {}


# Testing.


PROTOCOLS = {file.stem: yaml.safe_load(file.read_text()) for file in sorted((CONFIGS / "views").glob("*.yaml"))}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_scoring_waits_for_the_result_and_once_for_each_map_whose_windows_are_pooled(gpu, name):
    protocol = ViewProtocol(**in_pixels(PROTOCOLS[name], 40))
    batch = [Inputs(i, ViewInputs(protocol)(random_image())) for i in range(2)]
    on_cpu = Scorer(made_network(levels=(2, 1)).eval(), protocol, pixels=10**6, autocast=BF16)(batch)
    scorer = Scorer(made_network(levels=(2, 1)).eval().cuda(), protocol, pixels=10**6, autocast=BF16)
    gpu.take_waits()
    scores = scorer(batch)

    expected = {"sppnet.classify.scorer.Scorer.__call__: _to_copy": 1}
    if protocol.maps:  # whether the values of a map are finite decides how its windows are pooled
        maps = len(protocol.scales) * (1 + protocol.mirrored)
        expected["sppnet.pyramid.pool_windows: _local_scalar_dense"] = maps
    assert gpu.take_waits() == expected
    assert torch.allclose(scores, on_cpu, atol=0.02)


OF_BOXES = {
    "sppnet.detect.suppression.detect: nonzero": 1,
    "sppnet.detect.detector.BoxRegressors.__call__: _to_copy": 1,
    # Suppression, before and after the boxes are moved.
    "torchvision.ops.boxes._batched_nms_coordinate_trick: _to_copy": 2,
    "torchvision.ops.boxes.nms: torchvision::nms": 2,
    "sppnet.detect.suppression.suppressed: index": 2,
}
OF_MAPS = {
    "sppnet.detect.maps.map_of: _local_scalar_dense": 2,  # whether the map of each scale is finite
    "sppnet.pyramid.pool_windows: _local_scalar_dense": 1,  # for each scale with windows
}


@pytest.mark.parametrize(("warped", "expected"), [(False, OF_BOXES | OF_MAPS), (True, OF_BOXES)])
def test_detection_waits_for_its_maps_and_boxes_and_not_for_each_class(gpu, warped, expected):
    def detected(device):
        detector = made_detector(warped=warped)
        detector.network.to(device)
        gpu.take_waits()
        return detect_image(detector, random_image(70, 93), autocast=BF16)

    on_cpu, found = detected("cpu"), detected("cuda")
    assert gpu.take_waits() == expected
    assert len(found.labels.unique()) > 1
    for ours, theirs in zip(found, on_cpu, strict=True):
        assert ours.device.type == "cuda"
        assert torch.allclose(ours.cpu(), theirs, atol=0.1)


def test_features_wait_once_for_each_layer(gpu):
    layers = ["conv3", "pool5", "fc7"]
    batch = [Inputs(i, [random_image().permute(1, 2, 0).contiguous()]) for i in range(2)]
    network = made_network().eval().cuda()
    extractor = FeatureExtractor(network, layers=layers, view="full", scale=60, aligned=True, autocast=BF16)
    gpu.take_waits()
    assert {layer: len(rows) for layer, rows in extractor(batch).items()} == dict.fromkeys(layers, 2)
    assert gpu.take_waits() == {"sppnet.transfer.features._normalized: _to_copy": len(layers)}


def test_explaining_waits_for_its_numbers(gpu):
    on_cpu = explain_image(made_network().eval(), random_image(), "image", layer="conv3")
    network = made_network().eval().cuda()
    gpu.take_waits()
    explained = explain_image(network, random_image(), "image", layer="conv3")
    assert gpu.take_waits() == {
        "sppnet.use.responses._check_finite: _to_copy": 1,
        "sppnet.use.responses.response_maps: _to_copy": 1,
        "sppnet.use.evidence.predicted_class: _local_scalar_dense": 1,
        "sppnet.use.evidence.class_evidence: _local_scalar_dense": 2 + len(network.pyramid.levels),
        "sppnet.use.evidence.class_evidence: _to_copy": 2,
    }
    assert explained.evidence.total == pytest.approx(on_cpu.evidence.total)
