"""The functions on batches, against definitions written out and torchvision."""

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from sppnet.data import batches
from sppnet.data.batches import (
    COLOR_STANDARD_DEVIATION,
    alter_color,
    mirror,
    resize_batch,
    to_network_input,
    training_input,
)


def test_mirror_turns_left_and_right_of_flagged_images_only():
    images_ = torch.arange(2 * 3 * 2 * 3).reshape(2, 3, 2, 3)
    mirrored = mirror(images_, torch.tensor([False, True]))
    assert torch.equal(mirrored[0], images_[0])
    assert mirrored[1, 0].tolist() == [row[::-1] for row in images_[1, 0].tolist()]
    assert mirror(images_.to(torch.uint8), torch.tensor([True, True])).dtype == torch.uint8


def test_color_shift_is_constant_per_image_and_zero_changes_nothing():
    batch = torch.rand(2, 3, 4, 5) * 255
    altered = alter_color(batch, torch.tensor([[0.0, 0, 0], [0.1, -0.2, 0.3]]))
    assert torch.equal(altered[0], batch[0])
    # rows of the eigenvectors times amounts * eigenvalues, by hand
    red = 255 * (-0.5675 * 0.1 * 0.2175 + 0.7192 * -0.2 * 0.0188 + 0.4009 * 0.3 * 0.0045)
    blue = 255 * (-0.5836 * 0.1 * 0.2175 - 0.6948 * -0.2 * 0.0188 + 0.4203 * 0.3 * 0.0045)
    shift = altered[1] - batch[1]
    torch.testing.assert_close(shift[0], torch.full((4, 5), red), atol=1e-4, rtol=0)
    torch.testing.assert_close(shift[2], torch.full((4, 5), blue), atol=1e-4, rtol=0)


def test_color_shifts_have_the_covariance_of_the_constants():
    generator = torch.Generator().manual_seed(0)
    amounts = torch.randn(50_000, 3, generator=generator) * COLOR_STANDARD_DEVIATION
    shifts = alter_color(torch.zeros(50_000, 3, 1, 1), amounts).flatten(1) / 255
    values = torch.tensor([0.2175, 0.0188, 0.0045])
    vectors = torch.tensor(batches._EIGENVECTORS)
    expected = vectors @ torch.diag((COLOR_STANDARD_DEVIATION * values) ** 2) @ vectors.T
    torch.testing.assert_close(torch.cov(shifts.T), expected, rtol=0.02, atol=2e-6)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), rtol=0, atol=2e-3)


@pytest.mark.parametrize("size", [180, 224, 300])
def test_batch_resize_is_torchvisions(size):
    batch = torch.rand(2, 3, 224, 224) * 255
    expected = reference.resize(batch, [size, size], antialias=True)
    torch.testing.assert_close(resize_batch(batch, size), expected)
    assert (resize_batch(batch, size) is batch) == (size == 224)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_network_input_is_the_same_in_every_memory_format(dtype):
    batch, scale = (torch.rand(2, 3, 5, 7) * 255).to(dtype), ((120, 118, 110), (58, 57, 59))
    expected = to_network_input(batch, *scale)
    result = to_network_input(batch.contiguous(memory_format=torch.channels_last), *scale)
    assert torch.equal(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_network_input():
    batch = torch.tensor([0, 100, 200], dtype=torch.uint8).reshape(1, 3, 1, 1)
    result = to_network_input(batch, mean=(128, 100, 50), std=[1, 2, 3])
    assert result.dtype == torch.float32
    assert result.flatten().tolist() == [-128, 0, 50]
    assert to_network_input(batch.bfloat16(), [0, 0, 0], [1, 1, 1]).dtype == torch.float32


@pytest.mark.parametrize("color", [None, torch.tensor([[0.1, 0.0, -0.2], [0.0, 0.3, 0.0]])])
def test_training_input_is_mirrored_altered_resized_and_scaled_in_channels_last(color):
    crops = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mirrored, scale = torch.tensor([True, False]), ((120, 118, 110), (58, 57, 59))
    expected = crops.float()
    expected[0] = expected[0].flip(-1)
    if color is not None:
        expected = alter_color(expected, color)
    expected = to_network_input(resize_batch(expected, 11), *scale)
    result = training_input(crops.permute(0, 2, 3, 1), mirrored, color, 11, *scale)
    torch.testing.assert_close(result, expected)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_gradients_reach_the_pixels():
    batch = (torch.rand(2, 3, 8, 8, dtype=torch.float64) * 255).requires_grad_()

    def network_input(batch):
        altered = alter_color(mirror(batch, torch.tensor([True, False])), torch.full((2, 3), 0.1))
        return to_network_input(resize_batch(altered, 5), [120, 118, 110], [58, 57, 59])

    network_input(batch).sum().backward()
    assert batch.grad is not None
    assert (batch.grad > 0).all()
