"""What views are computed from: crops and whole images, handed over by loader processes in one tensor."""

import pytest
import torch

from sppnet.classify.view_inputs import Inputs, ViewInputs, loader_batch_size, pack, unpack, whole_scales
from sppnet.classify.views import ViewProtocol
from sppnet.geometry import POSITIONS
from test_scorer import MANY, TEN, random_images


def test_whole_scales_hold_each_scale_once():
    assert whole_scales(ViewProtocol(**MANY, full_scales=[72, 200])) == [64, 72, 95, 200]
    assert whole_scales(ViewProtocol(**TEN, full_scales=[95])) == [95]


def test_inputs_are_crops_or_whole_images():
    inputs = ViewInputs(random_images([(70, 93)]), ViewProtocol(**TEN, full_scales=[95]))[0]
    assert isinstance(inputs, Inputs)
    assert inputs.crops.shape == (5, 64, 64, 3)
    assert [whole.shape for whole in inputs.whole] == [(95, 126, 3)]
    assert inputs.crops.dtype == torch.uint8


@pytest.mark.parametrize("protocol", [TEN, MANY, {**TEN, "full_scales": [95, 64]}])
def test_inputs_are_unpacked_as_they_were_packed_in_one_tensor(protocol):
    dataset = ViewInputs(random_images(), ViewProtocol(**protocol))
    sent = [dataset[i] for i in range(3)]
    packed = pack(sent)
    assert packed.pixels.dtype == torch.uint8
    received = unpack(packed)
    packed.pixels.zero_()  # images that wait keep no shared memory
    for before, after in zip(sent, received, strict=True):
        assert after.image_index == before.image_index
        assert (before.crops is None) == (after.crops is None)
        assert before.crops is None or torch.equal(before.crops, after.crops)
        assert all(torch.equal(a, b) for a, b in zip(before.whole, after.whole, strict=True))


def test_a_loader_batch_holds_up_to_eight_images_and_four_megabytes():
    center = {"positions": ["center"]}
    assert loader_batch_size(ViewProtocol(scales=[256], **center)) == 8
    ten = list(POSITIONS)[:5]
    assert loader_batch_size(ViewProtocol(scales=[256], positions=ten)) == 5
    assert loader_batch_size(ViewProtocol(scales=[256, 512], positions=ten, maps=True)) == 3
    assert loader_batch_size(ViewProtocol(full_scales=[4096])) == 1
