"""Random crops, RandAugment, TrivialAugment and RandomErasing of a recipe, as torchvision.transforms.v2 draws them.

Loader workers apply them to one image after the other. Mirroring and colours follow on the device, for whole batches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from sppnet.classify.recipe import Recipe
from sppnet.data.images import resize


class Augmentation:
    """Crops and alters one image as a recipe says, with random numbers that depend on a seed only.

    Pixels that a transform leaves empty or erases get the mean colour, rounded: 0 in the input of the network, before
    the colours are altered. Shears and rotations interpolate bilinearly.

    Args:
        recipe: crop_area, crop_aspect, rand_augment, trivial_augment and erasing decide.
        side: of the crops in pixels.
        mean: red, green, blue, in 0..255.
    """

    def __init__(self, recipe: Recipe, *, side: int, mean: Sequence[float]) -> None:
        self.side = side
        self.random_crop: v2.RandomResizedCrop | None = None
        if recipe.crop_area is not None:
            self.random_crop = v2.RandomResizedCrop(side, tuple(recipe.crop_area), tuple(recipe.crop_aspect))

        fill = [float(round(value)) for value in mean]
        moved: dict[str, Any] = {"interpolation": v2.InterpolationMode.BILINEAR, "fill": fill}
        self.transforms: list[v2.Transform] = []
        if recipe.rand_augment is not None:
            self.transforms.append(v2.RandAugment(magnitude=recipe.rand_augment, **moved))
        if recipe.trivial_augment:
            self.transforms.append(v2.TrivialAugmentWide(**moved))
        if recipe.erasing:
            self.transforms.append(v2.RandomErasing(recipe.erasing, value=fill))

    @classmethod
    def of(cls, recipe: Recipe, *, side: int, mean: Sequence[float]) -> "Augmentation | None":
        """Returns the augmentation of a recipe, None if the recipe asks for nothing of this."""
        augmentation = cls(recipe, side=side, mean=mean)
        return augmentation if augmentation.random_crop or augmentation.transforms else None

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """Returns an image as the recipe alters it: uint8 (3, h, w) -> uint8 (3, side, side).

        Args:
            image: decoded, of any size, if there is a `random_crop`; otherwise (3, side, side).
            seed: of all random numbers, which are those after `torch.manual_seed(seed)`. Torch's generators keep their
                state.
        """
        with _seeded(seed):
            if self.random_crop is not None:
                image = self._cut(image, self.random_crop.make_params([image]))
            for transform in self.transforms:
                image = transform(image)
        return image

    def _cut(self, image: Tensor, window: dict[str, int]) -> Tensor:
        """Cuts a window out of an image and resizes it: the pixels of v2.RandomResizedCrop in 0.6 of its time."""
        rows = slice(window["top"], window["top"] + window["height"])
        columns = slice(window["left"], window["left"] + window["width"])
        return resize(image[:, rows, columns], (self.side, self.side))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's generator of the CPU in the block, and restores its state. `torch.manual_seed` also seeds GPUs."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
