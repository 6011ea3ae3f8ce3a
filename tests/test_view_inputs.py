"""What views are computed from: crops and whole images."""

import pytest
import torch

from sppnet.classify.view_inputs import ViewInputs, has_crops, whole_scales
from sppnet.classify.views import ViewProtocol
from sppnet.data.inputs import loader_batch_size
from sppnet.geometry import POSITIONS
from test_scorer import MANY, TEN


def test_whole_scales_hold_each_scale_once():
    assert whole_scales(ViewProtocol(**MANY, full_scales=[72, 200])) == [64, 72, 95, 200]
    assert whole_scales(ViewProtocol(**TEN, full_scales=[95])) == [95]


@pytest.mark.parametrize("protocol", [TEN, {**TEN, "full_scales": [95]}, {**MANY, "full_scales": [72]}])
def test_inputs_are_the_crops_if_any_then_the_whole_images(protocol):
    protocol = ViewProtocol(**protocol)
    tensors = ViewInputs(protocol)(torch.randint(256, (3, 70, 93), dtype=torch.uint8))
    assert {tensor.dtype for tensor in tensors} == {torch.uint8}
    if has_crops(protocol):
        assert tensors.pop(0).shape == (5, 64, 64, 3)
    assert [min(whole.shape[:2]) for whole in tensors] == whole_scales(protocol)


def test_a_loader_batch_holds_up_to_eight_images_and_four_megabytes():
    def size(**protocol):
        return loader_batch_size(ViewInputs(ViewProtocol(**protocol)).pixels)

    assert size(scales=[256], positions=["center"]) == 8
    ten = list(POSITIONS)[:5]
    assert size(scales=[256], positions=ten) == 5
    assert size(scales=[256, 512], positions=ten, maps=True) == 3
    assert size(full_scales=[4096]) == 1
