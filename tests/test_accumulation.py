"""Steps in parts: the gradients of the whole step, and the fewest parts that fit into memory."""

import contextlib
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sppnet.backbones import build_backbone
from sppnet.classify.accumulation import fewest_parts, loss_in_parts
from sppnet.classify.advice import check_batch_size
from sppnet.classify.recipe import Recipe
from sppnet.network import SPPNet


def make_network(dropout=0.0):
    torch.manual_seed(0)
    network = SPPNet(build_backbone("zf5", width=0.05, normalization="none"), (2, 1), 3, hidden=8, dropout=dropout)
    return network.train()


@pytest.mark.parametrize(("images", "parts"), [(8, 1), (8, 2), (8, 8), (7, 2), (7, 3), (5, 4), (1, 4), (11, 10)])
def test_the_gradients_and_the_loss_are_those_of_the_whole_step(images, parts):
    network = make_network()
    torch.manual_seed(1)
    pixels, labels = 50 * torch.randn(images, 3, 48, 48), torch.randint(3, (images,))
    whole = F.cross_entropy(network(pixels), labels, label_smoothing=0.1)
    gradients = torch.autograd.grad(whole, list(network.parameters()))
    sizes = []

    def loss_of(some, of_them):
        sizes.append(len(some))
        return F.cross_entropy(network(some), of_them, label_smoothing=0.1)

    loss = loss_in_parts(loss_of, pixels, labels, parts)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert sum(sizes) == images
    assert max(sizes) == -(-images // parts)


def test_every_part_draws_its_own_masks_of_dropout():
    torch.manual_seed(0)
    masks = []

    def loss_of(some, labels):
        masks.append(F.dropout(torch.ones(100)))
        return some.sum()

    loss_in_parts(loss_of, torch.ones(6, requires_grad=True), torch.ones(6), 3)
    assert len({tuple(mask.tolist()) for mask in masks}) == 3


def test_no_part_is_differentiated_under_autocast():
    forward, backward = [], []

    def loss_of(some, labels):
        forward.append(torch.is_autocast_enabled("cpu"))
        loss = some.sum()
        loss.register_hook(lambda gradient: backward.append(torch.is_autocast_enabled("cpu")))
        return loss

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_in_parts(loss_of, torch.ones(6, requires_grad=True), torch.ones(6), 3)
    loss.backward()
    assert (forward, backward) == ([True] * 3, [False] * 3)


class SmallMemory(nn.Module):
    """A backbone that runs out of memory for more than `most` images, as a GPU does."""

    def __init__(self, backbone, most):
        super().__init__()
        self.backbone, self.most = backbone, most
        self.norm = nn.BatchNorm2d(3)
        self.smallest_input = backbone.smallest_input

    def forward(self, images):
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.backbone(self.norm(images))


@pytest.mark.parametrize(("most", "parts"), [(100, 1), (12, 1), (11, 2), (6, 2), (5, 4), (3, 4)])
def test_the_fewest_parts_that_fit_are_found_and_nothing_is_changed(most, parts):
    network = make_network(dropout=0.5)
    network.backbone = SmallMemory(network.backbone, most)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    assert fewest_parts(network, 12, 48, contextlib.nullcontext) == parts
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_attempt_has_memory_beside_it_for_three_values_per_weight(monkeypatch):
    network, made, reserved = make_network(), [], []
    empty_like = torch.empty_like

    def noted(tensor):
        memory = empty_like(tensor)
        made.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(torch, "empty_like", noted)
    network.fc8.register_forward_hook(
        lambda *_: reserved.append(sum(memory.numel() for ref in made if (memory := ref()) is not None))
    )
    fewest_parts(network, 4, 48, contextlib.nullcontext)
    assert reserved == [3 * sum(weights.numel() for weights in network.parameters())]
    assert all(ref() is None for ref in made)


def test_what_cannot_be_split_further_is_refused():
    network = make_network()
    network.backbone = SmallMemory(network.backbone, 2)
    message = r"^trainer\.accumulate=auto: 3 of the 12 images of a step do not fit .*; lower recipe\.batch_size"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        fewest_parts(network, 12, 48, contextlib.nullcontext)


def test_parts_must_divide_the_images_of_each_device():
    recipe = Recipe(epochs=1, batch_size=12, learning_rate=0.1, momentum=0, weight_decay=0, warmup_epochs=0)
    for processes, accumulate in ((1, 1), (1, 4), (1, "12"), (2, 3), (2, "auto"), (1, "auto")):
        check_batch_size(recipe, processes, 50, 50, accumulate)
    message = r"^trainer\.accumulate=4: must divide the 6 images of a step on each device \(recipe\.batch_size=12\)$"
    with pytest.raises(ValueError, match=message):
        check_batch_size(recipe, 2, 50, 50, 4)
