"""The data set `shapes`: images of simple objects whose class is their layout, drawn as JPEG files on first use.

There are ten classes in three families: three dots, two bars, a ring with a dot. The classes of a family have the same
parts and differ only in where the parts are. Colour, texture, scale, place and deformation have the same distributions
for every class, so a small patch can reveal only the family, not the class. Rotation is small enough to keep "above"
above, and every class is closed under mirroring left to right, because training mirrors.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from sppnet.data.drawing import (
    CLASSES,
    LAYOUTS,
    LEAST_CONTRAST,
    Outline,
    blend,
    borders,
    clutter,
    deform,
    draw_once,
    fillings,
    random_color,
    textured,
)
from sppnet.runtime.machine import core_count

_VERSION = 1  # increase it with every change to the images: a folder of another version is refused
_SHORTER_SIDE = (100, 220, 400)  # pixels: least, most frequent, greatest
_LONGEST_ASPECT = 2.0
_EXTENT = (0.3, 0.9)  # longer side of the object's bounding box, as a fraction of the shorter side of the image
_QUALITY = 88  # of the JPEG files


def generate_shapes(root: Path, *, train: int = 2000, val: int = 500, seed: int = 0) -> Path:
    """Draws the data set as `root`/train/CLASS/*.jpg and `root`/val/CLASS/*.jpg, unless it exists; returns `root`.

    An image depends only on (seed, split, index). The folder gets its name when it is complete, so that several
    processes may ask for it at once.

    Args:
        root: the folder.
        train: images to train on, shared evenly among the classes.
        val: images to validate on, likewise.
        seed: of everything that is random.

    Raises ValueError if `root` holds anything else, or if a split has fewer images than there are classes.
    """
    if min(train, val) < len(CLASSES):
        raise ValueError(f"train={train}, val={val}: each must be at least {len(CLASSES)}, one image per class")

    settings = {"version": _VERSION, "train": train, "val": val, "seed": seed}
    return draw_once(root, "shapes", settings, lambda tree: _draw_tree(tree, {"train": train, "val": val}, seed))


def draw_example(label: int, generator: np.random.Generator) -> np.ndarray:
    """Draws one image of the class `CLASSES[label]`: uint8 RGB (H, W, 3), its shorter side 100 to 400 pixels."""
    size = _image_size(generator)
    back_color, front_color = _contrasting_colors(generator)
    outlines = _place(deform(LAYOUTS[CLASSES[label]], generator), size, generator)

    image = blend(textured(back_color, 50, size, generator), random_color(generator), clutter(size, generator))
    if generator.random() < 0.5:
        thickness = generator.uniform(0.01, 0.03) * min(size)
        image = blend(image, random_color(generator), borders(outlines, thickness, size))
    image = blend(image, textured(front_color, 40, size, generator), fillings(outlines, size))
    image += np.float32(generator.uniform(0, 4)) * generator.standard_normal(size, dtype=np.float32)
    return np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0))


# The folder of files.


def _draw_tree(tree: Path, counts: dict[str, int], seed: int) -> None:
    """Draws the files. `counts` has the number of images of each split, in the order that numbers the splits."""
    for split in counts:
        for name in CLASSES:
            (tree / split / name).mkdir(parents=True)

    def draw(split: str, split_number: int, index: int) -> None:
        label = index % len(CLASSES)
        image = draw_example(label, np.random.default_rng([seed, split_number, index]))
        path = tree / split / CLASSES[label] / f"{index:05d}.jpg"
        Image.fromarray(image).save(path, quality=_QUALITY)

    jobs = [(split, n, index) for n, split in enumerate(counts) for index in range(counts[split])]
    # Threads are enough: NumPy and Pillow release the interpreter's lock. Processes would have to be forked beside
    # PyTorch's threads, or to import the calling script again.
    with ThreadPoolExecutor(core_count()) as pool:
        drawn = pool.map(draw, *zip(*jobs, strict=True))
        for _ in tqdm(drawn, "drawing shapes", total=len(jobs), unit="image", disable=None):
            pass


# The object in pixels.


def _place(outlines: Sequence[Outline], size: tuple[int, int], generator: np.random.Generator) -> list[Outline]:
    """The outlines in pixels: scaled to a random extent, near the middle of the image and inside it."""
    points = np.concatenate([outline.points for outline in outlines])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = generator.uniform(*_EXTENT) * min(size) / (high - low).max()

    middle = np.array(size[::-1]) / 2
    # In a long image, only near the middle: views cut out a square, which would often miss an object at the far end.
    room = np.minimum(2 * middle, 1.1 * min(size)) - scale * (high - low)
    offset = middle - scale * (low + high) / 2 + generator.uniform(-0.4, 0.4, 2) * room
    return [Outline(scale * outline.points + offset, outline.hole) for outline in outlines]


# The image: `size` is (H, W) in pixels, a mask (H, W) float32 in 0..1, a colour (3, 1, 1) float32 in 0..255. Images
# are (3, H, W) float32 until they are finished: NumPy is several times faster with the long side last.


def _image_size(generator: np.random.Generator) -> tuple[int, int]:
    """A random (H, W), landscape or portrait, more often nearly square than long."""
    shorter = math.exp(generator.triangular(*np.log(_SHORTER_SIDE)))
    longer = shorter * _LONGEST_ASPECT ** generator.triangular(0, 0, 1)
    height, width = (shorter, longer) if generator.random() < 0.5 else (longer, shorter)
    return round(height), round(width)


def _contrasting_colors(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random colours of background and object. The object is the lighter one four times out of five.

    If it were so half the time, a small network would have twice the error after 20 epochs: 16 instead of 8 % (one
    seed each).
    """
    lighter = generator.random() < 0.8
    while True:
        back, front = random_color(generator), random_color(generator)
        contrast = (front - back).mean()
        if abs(contrast) >= LEAST_CONTRAST and (contrast > 0) == lighter:
            return back, front
