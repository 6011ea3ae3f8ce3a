"""Random crops and augmentation of training images: what torchvision's transforms give after the same seed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from sppnet.classify.augmentation import Augmentation
from sppnet.classify.loading import TrainingCrops, shorter_side_for
from sppnet.classify.recipe import Recipe
from sppnet.data.images import crop, decode_image, resize_shorter_side
from sppnet.geometry import CROP_POSITIONS
from test_loading import Files, noise

MEAN = [123.675, 116.28, 103.53]
FILL = [124.0, 116.0, 104.0]
CHOICES = {
    "crop": {"crop_area": [0.2, 0.9], "crop_aspect": [0.5, 2.0]},
    "rand_augment": {"rand_augment": 12},
    "trivial_augment": {"trivial_augment": True},
    "erasing": {"erasing": 0.7},
    "all": {"crop_area": [0.08, 1.0], "rand_augment": 30, "erasing": 0.5},
}


def recipe(**options):
    fixed = {"epochs": 1, "batch_size": 4, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    return Recipe(**fixed, warmup_epochs=0, **options)


def augmentation(side=32, **options):
    return Augmentation.of(recipe(**options), side=side, mean=MEAN)


def torchvisions(
    side=32, crop_area=None, crop_aspect=(0.75, 1.3333), rand_augment=None, trivial_augment=False, erasing=0
):
    """The transforms as a user of torchvision would write them."""
    bilinear = {"interpolation": v2.InterpolationMode.BILINEAR, "fill": FILL}
    chosen = []
    if crop_area is not None:
        chosen.append(v2.RandomResizedCrop(side, scale=crop_area, ratio=crop_aspect, antialias=True))
    if rand_augment is not None:
        chosen.append(v2.RandAugment(num_ops=2, magnitude=rand_augment, **bilinear))
    if trivial_augment:
        chosen.append(v2.TrivialAugmentWide(**bilinear))
    if erasing:
        chosen.append(v2.RandomErasing(p=erasing, value=FILL))
    return v2.Compose(chosen)


def pixels(height, width, seed=0):
    """An image as it is decoded: channels last in memory."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).permute(2, 0, 1)


def test_nothing_is_done_unless_the_recipe_asks_for_it():
    assert augmentation() is None
    assert augmentation(crop_aspect=[0.5, 2.0]) is None
    for options in CHOICES.values():
        assert augmentation(**options) is not None


@given(
    st.sampled_from([(1, 1), (1, 400), (7, 13), (10, 11), (32, 32), (300, 41), (64, 96)]),
    st.sampled_from([1, 7, 32]),
    st.sampled_from([[0.08, 1.0], [0.5, 0.5], [1.0, 1.0]]),
    st.integers(0, 2**63 - 1),
)
def test_a_random_crop_is_that_of_torchvision(size, side, area, seed):
    image = pixels(*size)
    ours = augmentation(side, crop_area=area, crop_aspect=[0.75, 1.3333])(image, seed)
    torch.manual_seed(seed)
    theirs = torchvisions(side, area)(image)
    assert ours.dtype == torch.uint8
    assert ours.shape == theirs.shape == (3, side, side)
    # One is the rounding of processors on which torch resizes bytes of the two memory formats differently.
    assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("options", [CHOICES[name] for name in CHOICES if name != "crop"], ids=str)
def test_an_augmentation_is_that_of_torchvision_and_leaves_its_generator(options):
    image, done, theirs = pixels(32, 32), augmentation(**options), torchvisions(**options)
    altered = 0
    for seed in range(25):
        torch.manual_seed(seed)
        expected = theirs(image)
        torch.manual_seed(99)
        before, state = image.clone(), torch.get_rng_state()
        assert torch.equal(done(image, seed), expected)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(image, before)  # it may be the memory of a store
        altered += not torch.equal(expected, image)
    assert 10 <= altered <= 25


def test_an_item_draws_position_mirroring_and_colour_and_then_the_seed_of_torchvision():
    images, options = noise(3, height=50, width=70), CHOICES["all"]
    plain = TrainingCrops(images, side=32, seed=5)
    altered = TrainingCrops(images, side=32, seed=5, augmentation=augmentation(**options))
    for key in ((0, 2), (7, 1), (7, 1, 1)):
        random = np.random.default_rng([5, *key])
        position, mirrored = CROP_POSITIONS[random.integers(5)], bool(random.integers(2))
        color = torch.from_numpy(random.normal(0.0, 0.1, 3).astype(np.float32))
        decoded = decode_image(images.read(key[1]), "")
        expected = crop(resize_shorter_side(decoded, shorter_side_for(32)), 32, position)
        assert torch.equal(plain[key]["image"].permute(2, 0, 1), expected)

        torch.manual_seed(int(random.integers(2**63)))
        expected = torchvisions(**options)(decoded)
        item = altered[key]
        assert (item["image"].permute(2, 0, 1).int() - expected.int()).abs().max() <= 1
        for drawn in (item, plain[key]):
            assert drawn["mirrored"] == mirrored
            assert torch.equal(drawn["color"], color)


def test_without_random_crops_the_five_positions_are_augmented():
    image = pixels(64, 96)
    images = Files([b""])
    images.read = lambda index: _png(image)
    altered = TrainingCrops(images, side=32, seed=0, augmentation=augmentation(erasing=1.0))
    plain = TrainingCrops(images, side=32, seed=0)
    for epoch in range(5):
        one, other = altered[epoch, 0]["image"], plain[epoch, 0]["image"]
        erased = (one != other).any(dim=2)
        assert 0 < erased.float().mean() < 0.5
        assert torch.equal(one[erased], torch.tensor(FILL, dtype=torch.uint8).expand(int(erased.sum()), 3))


def _png(image):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(file, "PNG")
    return file.getvalue()


def test_repetitions_of_an_image_in_an_epoch_are_cropped_differently():
    crops = TrainingCrops(noise(2), side=32, seed=0, augmentation=augmentation(crop_area=[0.2, 1.0]))
    items = [crops[3, 1, repetition] for repetition in (0, 1, 2, 1)]
    shown = [item["image"].flatten() for item in items]
    assert torch.equal(shown[1], shown[3])
    assert len({tuple(one.tolist()) for one in shown}) == 3
    assert len({item["label"] for item in items}) == 1


def test_areas_and_aspects_of_the_crops_are_those_of_the_recipe():
    """By the share of a ramp that a crop shows, without the seams of its resizing."""
    row, column = np.mgrid[0:200, 0:200]
    image = torch.from_numpy(np.stack([column, row, 0 * row], axis=0).astype(np.uint8))
    done = augmentation(50, crop_area=[0.1, 0.3], crop_aspect=[0.5, 2.0])
    areas, aspects = [], []
    for seed in range(200):
        red, green = done(image, seed)[:2].float()
        width, height = (red[0, -1] - red[0, 0]) * 50 / 49, (green[-1, 0] - green[0, 0]) * 50 / 49
        areas.append(float(width * height) / 200**2)
        aspects.append(float(width / height))
    assert 0.09 < min(areas) < 0.12 < 0.28 < max(areas) < 0.32
    assert 0.47 < min(aspects) < 0.55 < 1.8 < max(aspects) < 2.1
    assert abs(np.mean(np.log(aspects))) < math.log(1.15)
