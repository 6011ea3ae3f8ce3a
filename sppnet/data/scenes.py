"""The data set `scenes`: the classes of `shapes`, several in an image, with boxes: for detection without a download.

Scenes are drawn in the layout of PASCAL VOC. Letters: (H, W) pixels of height and width.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sppnet.data.annotations import AnnotatedObject, Annotation, annotation_xml
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
from sppnet.data.images import read_image_size
from sppnet.data.objects import AnnotatedImages, DetectionSplits, Objects, objects_fingerprint
from sppnet.data.voc_objects import voc_objects
from sppnet.runtime.machine import core_count
from sppnet.runtime.progress import Progress

_VERSION = 1  # increase it with every change to the images: a folder of another version is refused
_SIDES = (200, 320)  # pixels, height and width
_MOST_OBJECTS = 4
_EXTENT = (60, 160)  # pixels: longer side of an object without its border
_MOST_OVERLAP = 0.1  # intersection of two boxes as a share of the smaller one: an IoU of at most 0.053
_TRIES = 50  # places that are tried for an object before it is left out
_QUALITY = 88  # of the JPEG files
_SPLITS = ("train", "test")  # the order that numbers them


def scenes(
    *, root: str, train: int = 60, test: int = 60, seed: int = 0, classes: list[str] | None = None
) -> DetectionSplits:
    """`train` and `test` scenes of 1 to 4 objects of the ten classes of `shapes`, drawn into `root` on first use.

    `classes` selects the classes whose objects are found in the scenes, in the order of their labels.

    Raises ValueError if `root` holds anything else, for train < 10, because every class needs a scene, for test < 1,
    and for an unknown class.
    """
    if train < len(CLASSES) or test < 1:
        raise ValueError(f"train={train}, test={test}: must be at least {len(CLASSES)}, one per class, and at least 1")

    def draw(folder: Path) -> None:
        for split, count in (("train", train), ("test", test)):
            write_voc(Scenes(split, count, seed), folder, split)

    settings = {"version": _VERSION, "train": train, "test": test, "seed": seed}
    folder = draw_once(Path(root), "scenes", settings, draw)
    return voc_objects(root=str(folder), train_split="train", test_split="test", classes=classes)


class Scene(NamedTuple):
    """An image and the objects in it."""

    pixels: np.ndarray  # uint8 RGB (H, W, 3)
    objects: Objects  # boxes are whole pixels, tight around all that was drawn


def draw_scene(seed: int, index: int, split: str = "train") -> Scene:
    """Draws a scene; it depends only on the arguments.

    Sides are 200 to 320 pixels, H != W. There are 1 to 4 objects; no object hides a pixel of another one, and their
    boxes share at most 10 % of the smaller one. The first object is of the class `index` modulo 10.
    """
    background, drawn, noise = _plan(seed, index, split)
    boxes = np.array([one.box for one in drawn], np.float64)
    labels = np.array([one.label for one in drawn], np.int64)
    return Scene(_painted(background, drawn, noise), Objects(boxes, labels, np.zeros(len(drawn), bool)))


@dataclass(frozen=True)
class Scenes:
    """The scenes of a split, drawn and encoded as JPEG on each read."""

    split: str  # "train" or "test"
    count: int
    seed: int = 0
    classes: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{self.split}_{index:05d}.jpg"

    def read(self, index: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(draw_scene(self.seed, index, self.split).pixels).save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()

    def objects(self, index: int) -> Objects:
        return draw_scene(self.seed, index, self.split).objects

    def fingerprint(self) -> str:
        return objects_fingerprint(self)


def write_voc(images: AnnotatedImages, folder: Path, split: str) -> None:
    """Writes images and their objects in the layout of PASCAL VOC; `voc_objects` reads back the same objects.

    Image files keep their content and the last part of their names. Boxes of whole pixels come back exactly.

    Args:
        images: the images, JPEG or PNG.
        folder: is made, or extended by another split, which must have other names.
        split: the name of the list ImageSets/Main/SPLIT.txt.

    Raises ValueError for another suffix than .jpg, .jpeg and .png, and for a name that is there already.
    """
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = [Path(images.name(i)) for i in range(len(images))]

    def write(index: int) -> None:
        name = names[index]
        annotation_file, image_file = folder / "Annotations" / f"{name.stem}.xml", folder / "JPEGImages" / name.name
        if name.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            raise ValueError(f"{name}: must be named .jpg, .jpeg or .png, as VOC's reader expects")
        if annotation_file.exists():
            raise ValueError(f"{name}: an image with the name {name.stem} is there already")
        image_file.write_bytes(images.read(index))
        height, width = read_image_size(str(image_file), str(name))
        annotation = Annotation(width, height, _named_objects(images, index))
        annotation_file.write_bytes(annotation_xml(name.name, annotation))

    with ThreadPoolExecutor(core_count()) as pool, Progress(f"writing {split}", len(images)) as progress:
        for _ in pool.map(write, range(len(images))):
            progress.add(1)
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name.stem}\n" for name in names))


def _named_objects(images: AnnotatedImages, index: int) -> tuple[AnnotatedObject, ...]:
    objects = images.objects(index)
    return tuple(
        AnnotatedObject(images.classes[label], (x0, y0, x1, y1), bool(difficult), truncated=False)
        for (x0, y0, x1, y1), label, difficult in zip(
            objects.boxes.tolist(), objects.labels, objects.difficult, strict=True
        )
    )


# Drawing. Paint is (3, H, W) float32 or one colour (3, 1, 1), a mask (H, W) float32 in 0..1.


class _DrawnObject(NamedTuple):
    label: int
    box: tuple[int, int, int, int]  # tight around all pixels of the masks
    layers: list[tuple[np.ndarray, np.ndarray]]  # paint and mask, from the bottom
    pixels: np.ndarray  # bool (H, W): where any mask is above 0


def _plan(seed: int, index: int, split: str) -> tuple[np.ndarray, list[_DrawnObject], np.ndarray]:
    """The background (3, H, W), the objects, and the noise (H, W) of a scene."""
    generator = np.random.default_rng([seed, _SPLITS.index(split), index])
    size = _scene_size(generator)
    back_color, front_colors = _contrasting_colors(int(generator.integers(1, _MOST_OBJECTS + 1)), generator)
    background = textured(back_color, 50, size, generator)
    background = blend(background, random_color(generator), clutter(size, generator))

    drawn: list[_DrawnObject] = []
    for number, front_color in enumerate(front_colors):
        label = index % len(CLASSES) if number == 0 else int(generator.integers(len(CLASSES)))
        for _ in range(_TRIES):
            one = _object(label, front_color, size, generator)
            if _fits(one, drawn):
                drawn.append(one)
                break
    noise = np.float32(generator.uniform(0, 4)) * generator.standard_normal(size, dtype=np.float32)
    return background, drawn, noise


def _painted(background: np.ndarray, drawn: Sequence[_DrawnObject], noise: np.ndarray) -> np.ndarray:
    """The finished image: uint8 (H, W, 3)."""
    image = background
    for one in drawn:
        for paint, mask in one.layers:
            image = blend(image, paint, mask)
    return np.ascontiguousarray(np.clip(image + noise, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _scene_size(generator: np.random.Generator) -> tuple[int, int]:
    """A random (H, W) of different sides."""
    while True:
        height, width = generator.integers(_SIDES[0], _SIDES[1] + 1, 2).tolist()
        if height != width:
            return height, width


def _contrasting_colors(count: int, generator: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Random colours of the background and of `count` objects: all lighter, four times out of five, or all darker."""
    sign = 1 if generator.random() < 0.8 else -1
    while True:
        back, *fronts = (random_color(generator) for _ in range(count + 1))
        if all(sign * (front - back).mean() >= LEAST_CONTRAST for front in fronts):
            return back, fronts


def _object(label: int, color: np.ndarray, size: tuple[int, int], generator: np.random.Generator) -> _DrawnObject:
    """An object of random form, extent and place, inside the image."""
    extent = generator.uniform(*_EXTENT)
    thickness = generator.uniform(0.015, 0.05) * extent if generator.random() < 0.5 else 0.0
    outlines = _placed(deform(LAYOUTS[CLASSES[label]], generator), extent, thickness, size, generator)

    layers = [(textured(color, 40, size, generator), fillings(outlines, size))]
    if thickness:
        layers.insert(0, (random_color(generator), borders(outlines, thickness, size)))
    pixels = np.any([mask > 0 for _, mask in layers], axis=0)
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return _DrawnObject(label, box, layers, pixels)


def _placed(
    outlines: Sequence[Outline], extent: float, margin: float, size: tuple[int, int], generator: np.random.Generator
) -> list[Outline]:
    """The outlines in pixels: `extent` long, anywhere in the image, at least `margin` and a pixel from its sides."""
    points = np.concatenate([outline.points for outline in outlines])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = extent / (high - low).max()

    corner = margin + 1 + generator.uniform(0, 1, 2) * (size[::-1] - scale * (high - low) - 2 * (margin + 1))
    return [Outline(scale * (outline.points - low) + corner, outline.hole) for outline in outlines]


def _fits(one: _DrawnObject, others: Sequence[_DrawnObject]) -> bool:
    """Whether an object hides nothing of the others, and its box shares little with theirs."""
    return not any((one.pixels & other.pixels).any() or _shared(one.box, other.box) > _MOST_OVERLAP for other in others)


def _shared(box: Sequence[int], other: Sequence[int]) -> float:
    """The intersection of two boxes as a share of the smaller one."""
    width = max(0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0, min(box[3], other[3]) - max(box[1], other[1]))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box, other)]
    return width * height / min(areas)
