"""The data set `shapes`: images of simple objects whose class is their layout, drawn as JPEG files on first use.

There are ten classes in three families: three dots, two bars, a ring with a dot. The classes of a family have the same
parts and differ only in where the parts are. Colour, texture, scale, place and deformation have the same distributions
for every class, so a small patch can reveal only the family, not the class. Rotation is small enough to keep "above"
above, and every class is closed under mirroring left to right, because training mirrors.

Points and centres are (x, y), y downwards. Objects are laid out around (0, 0), reaching to about 1 in each direction.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from sppnet.runtime.machine import core_count


class _Part(NamedTuple):
    """A rounded box around (x, y); a hole is cut out of the parts before it."""

    x: float
    y: float
    half_width: float
    half_height: float
    hole: bool = False


def _dots(*centers: tuple[float, float]) -> list[_Part]:
    return [_Part(x, y, 0.28, 0.28) for x, y in centers]


def _bars(crossing: float) -> list[_Part]:
    """An upright bar, and one across it at the height `crossing`."""
    return [_Part(0, 0, 0.17, 0.9), _Part(0, crossing, 0.85, 0.17)]


def _ring(dot: float) -> list[_Part]:
    """A ring, and a dot at the height `dot` from its centre."""
    return [_Part(0, 0, 0.66, 0.66), _Part(0, 0, 0.43, 0.43, hole=True), _Part(0, dot, 0.21, 0.21)]


_LAYOUTS = {
    "bars_across_bottom": _bars(0.73),
    "bars_across_middle": _bars(0),
    "bars_across_top": _bars(-0.73),
    "dots_column": _dots((0, -0.72), (0, 0), (0, 0.72)),
    "dots_one_over_two": _dots((0, -0.45), (-0.5, 0.4), (0.5, 0.4)),
    "dots_row": _dots((-0.72, 0), (0, 0), (0.72, 0)),
    "dots_two_over_one": _dots((0, 0.45), (-0.5, -0.4), (0.5, -0.4)),
    "ring_dot_above": _ring(-1),
    "ring_dot_below": _ring(1),
    "ring_dot_inside": _ring(0),
}
CLASSES = tuple(sorted(_LAYOUTS))

_VERSION = 1  # increase it with every change to the images: a folder of another version is refused
_SHORTER_SIDE = (100, 220, 400)  # pixels: least, most frequent, greatest
_LONGEST_ASPECT = 2.0
_EXTENT = (0.3, 0.9)  # longer side of the object's bounding box, as a fraction of the shorter side of the image
_ROTATION = math.radians(15)  # at most, in either direction
_LEAST_CONTRAST = 70  # of 255, between the mean brightness of object and background
_OVERSIZE = 2  # masks are drawn larger by this factor, then averaged down: smooth edges
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
    if _is_drawn(root, settings):
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
        tree = Path(folder, root.name)
        _draw_tree(tree, {"train": train, "val": val}, seed)
        (tree / "shapes.json").write_text(json.dumps(settings) + "\n")
        try:
            tree.rename(root)
        except OSError:  # another process was faster: its folder is used if it holds the same
            if not _is_drawn(root, settings):
                raise
    return root


def draw_example(label: int, generator: np.random.Generator) -> np.ndarray:
    """Draws one image of the class `CLASSES[label]`: uint8 RGB (H, W, 3), its shorter side 100 to 400 pixels."""
    size = _image_size(generator)
    back_color, front_color = _contrasting_colors(generator)
    outlines = _place(_deform(_LAYOUTS[CLASSES[label]], generator), size, generator)

    image = _blend(_textured(back_color, 50, size, generator), _random_color(generator), _clutter(size, generator))
    if generator.random() < 0.5:
        thickness = generator.uniform(0.01, 0.03) * min(size)
        image = _blend(image, _random_color(generator), _borders(outlines, thickness, size))
    image = _blend(image, _textured(front_color, 40, size, generator), _fillings(outlines, size))
    image += np.float32(generator.uniform(0, 4)) * generator.standard_normal(size, dtype=np.float32)
    return np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8).transpose(1, 2, 0))


# The folder of files.


def _is_drawn(root: Path, settings: dict[str, int]) -> bool:
    """Whether `root` holds the data set of these settings. ValueError if it holds anything else."""
    if not os.path.lexists(root):
        return False
    expected = json.dumps(settings)
    try:
        drawn = " ".join((root / "shapes.json").read_text(errors="replace").split())[:200]
    except OSError:
        drawn = "no readable shapes.json"
    if drawn == expected:
        return True
    raise ValueError(f"{root} holds {drawn}, not shapes of {expected}: choose another folder or delete this one")


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


# The object: outlines of its parts, first in the units of the layout, then in pixels.


class _Outline(NamedTuple):
    """The outline of a part or of a hole, as a polygon."""

    points: np.ndarray  # (64, 2)
    hole: bool


def _deform(parts: Sequence[_Part], generator: np.random.Generator) -> list[_Outline]:
    """The outlines of the parts, each moved a little, then all bent, stretched, sheared and rotated together."""
    exponent = generator.uniform(2.2, 6)
    waves = generator.uniform(-1, 1, (3, 5)) * [2.5, 2.5, math.pi, 0.06, 0.06]
    linear = _linear_map(generator)
    outlines = []
    for part in parts:
        points = _superellipse(part, exponent) + generator.uniform(-0.04, 0.04, 2)
        outlines.append(_Outline(_bend(points, waves) @ linear.T, part.hole))
    return outlines


def _superellipse(part: _Part, exponent: float) -> np.ndarray:
    """(64, 2) points around the part: an ellipse at exponent 2, closer to a box for larger exponents."""
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rounded = np.sign(circle) * np.abs(circle) ** (2 / exponent)
    return rounded * [part.half_width, part.half_height] + [part.x, part.y]


def _bend(points: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """(P, 2) points moved by plane waves, each (frequency in x, in y, phase, amplitude in x, in y)."""
    phases = points @ waves[:, :2].T + waves[:, 2]
    return points + np.sin(phases) @ waves[:, 3:]


def _linear_map(generator: np.random.Generator) -> np.ndarray:
    """(2, 2): a stretch, then a shear, then a rotation."""
    stretch = math.exp(generator.uniform(-0.2, 0.2))
    shear = generator.uniform(-0.15, 0.15)
    angle = generator.uniform(-_ROTATION, _ROTATION)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return rotation @ [[1, shear], [0, 1]] @ [[stretch, 0], [0, 1 / stretch]]


def _place(outlines: Sequence[_Outline], size: tuple[int, int], generator: np.random.Generator) -> list[_Outline]:
    """The outlines in pixels: scaled to a random extent, near the middle of the image and inside it."""
    points = np.concatenate([outline.points for outline in outlines])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = generator.uniform(*_EXTENT) * min(size) / (high - low).max()

    middle = np.array(size[::-1]) / 2
    # In a long image, only near the middle: views cut out a square, which would often miss an object at the far end.
    room = np.minimum(2 * middle, 1.1 * min(size)) - scale * (high - low)
    offset = middle - scale * (low + high) / 2 + generator.uniform(-0.4, 0.4, 2) * room
    return [_Outline(scale * outline.points + offset, outline.hole) for outline in outlines]


# The image: `size` is (H, W) in pixels, a mask (H, W) float32 in 0..1, a colour (3, 1, 1) float32 in 0..255. Images
# are (3, H, W) float32 until they are finished: NumPy is several times faster with the long side last.


def _image_size(generator: np.random.Generator) -> tuple[int, int]:
    """A random (H, W), landscape or portrait, more often nearly square than long."""
    shorter = math.exp(generator.triangular(*np.log(_SHORTER_SIDE)))
    longer = shorter * _LONGEST_ASPECT ** generator.triangular(0, 0, 1)
    height, width = (shorter, longer) if generator.random() < 0.5 else (longer, shorter)
    return round(height), round(width)


def _random_color(generator: np.random.Generator) -> np.ndarray:
    """(3, 1, 1), each channel from 20 to 235."""
    return generator.uniform(20, 235, (3, 1, 1)).astype(np.float32)


def _contrasting_colors(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random colours of background and object. The object is the lighter one four times out of five.

    If it were so half the time, a small network would have twice the error after 20 epochs: 16 instead of 8 % (one
    seed each).
    """
    lighter = generator.random() < 0.8
    while True:
        back, front = _random_color(generator), _random_color(generator)
        contrast = (front - back).mean()
        if abs(contrast) >= _LEAST_CONTRAST and (contrast > 0) == lighter:
            return back, front


def _textured(color: np.ndarray, strength: float, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """(3, H, W): the colour, varied along one random direction in RGB by about `strength` at most."""
    change = generator.uniform(-strength, strength, (3, 1, 1)) * generator.uniform(0.2, 1)
    return color + change.astype(np.float32) * _pattern(size, generator)


def _pattern(size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """(H, W) float32 in about -1..1: a gradient or clouds, blotches, stripes or checks."""
    kind = generator.choice(["clouds", "blotches", "stripes", "checks"])
    if kind in ("clouds", "blotches"):
        clouds = _clouds(size, generator)
        return clouds if kind == "clouds" else np.tanh(6 * clouds)
    angle = generator.uniform(0, math.pi)
    stripes = _stripes(angle, size, generator)
    return stripes if kind == "stripes" else stripes * _stripes(angle + math.pi / 2, size, generator)


def _clouds(size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Value noise, smooth between the points of a random grid; the coarsest grid gives a gradient."""
    cells = generator.integers(2, 14)
    grid = generator.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize(size[::-1], Image.Resampling.BICUBIC))


def _stripes(angle: float, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Waves across `angle` in radians, from soft to hard, 3 to 20 of them along the shorter side."""
    frequency = 2 * math.pi * math.exp(generator.uniform(math.log(3), math.log(20))) / min(size)
    rows = np.arange(size[0], dtype=np.float32)[:, None] * np.float32(frequency * math.sin(angle))
    columns = np.arange(size[1], dtype=np.float32) * np.float32(frequency * math.cos(angle))
    return np.tanh(np.float32(generator.uniform(1, 5)) * np.sin(rows + columns))


def _blend(image: np.ndarray, paint: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with `paint` over it where `mask` is 1, mixed where it is between 0 and 1."""
    return image + mask * (paint - image)


def _fillings(outlines: Sequence[_Outline], size: tuple[int, int]) -> np.ndarray:
    """The mask of the parts without their holes."""

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for outline in outlines:
            canvas.polygon((outline.points * _OVERSIZE).ravel().tolist(), fill=0 if outline.hole else 255)

    return _mask(draw, size)


def _borders(outlines: Sequence[_Outline], thickness: float, size: tuple[int, int]) -> np.ndarray:
    """The mask of lines along the outlines, `thickness` pixels to either side."""

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for outline in outlines:
            closed = np.concatenate([outline.points, outline.points[:2]]) * _OVERSIZE
            canvas.line(closed.ravel().tolist(), fill=255, width=round(2 * thickness * _OVERSIZE))

    return _mask(draw, size)


def _clutter(size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """The mask of up to 12 specks and strokes, smaller and fainter than the parts of an object."""
    unit = min(size) * _OVERSIZE

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for _ in range(generator.integers(13)):
            x, y = generator.uniform(0, 1, 2) * size[::-1] * _OVERSIZE
            across, down = generator.uniform(-0.1, 0.1, 2) * unit
            fill = int(generator.integers(60, 220))
            if generator.random() < 0.5:
                canvas.ellipse((x, y, x + abs(across) / 2, y + abs(down) / 2), fill=fill)
            else:
                canvas.line((x, y, x + across, y + down), fill=fill, width=round(0.012 * unit))

    return _mask(draw, size)


def _mask(draw: Callable[[ImageDraw.ImageDraw], None], size: tuple[int, int]) -> np.ndarray:
    """The mask that `draw` draws in white, antialiased."""
    image = Image.new("L", (size[1] * _OVERSIZE, size[0] * _OVERSIZE))
    draw(ImageDraw.Draw(image))
    return np.asarray(image.reduce(_OVERSIZE), dtype=np.float32) / 255
