"""Draws simple objects: their outlines, textures and masks; and data sets of such drawings on first use.

Points and centres are (x, y), y downwards. Objects are laid out around (0, 0), reaching to about 1 in each direction.
`size` is (H, W) in pixels, a mask (H, W) float32 in 0..1, a colour (3, 1, 1) float32 in 0..255. Images are (3, H, W)
float32 until they are finished: NumPy is several times faster with the long side last.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw


class Part(NamedTuple):
    """A rounded box around (x, y); a hole is cut out of the parts before it."""

    x: float
    y: float
    half_width: float
    half_height: float
    hole: bool = False


def _dots(*centers: tuple[float, float]) -> list[Part]:
    return [Part(x, y, 0.28, 0.28) for x, y in centers]


def _bars(crossing: float) -> list[Part]:
    """An upright bar, and one across it at the height `crossing`."""
    return [Part(0, 0, 0.17, 0.9), Part(0, crossing, 0.85, 0.17)]


def _ring(dot: float) -> list[Part]:
    """A ring, and a dot at the height `dot` from its centre."""
    return [Part(0, 0, 0.66, 0.66), Part(0, 0, 0.43, 0.43, hole=True), Part(0, dot, 0.21, 0.21)]


LAYOUTS = {
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
CLASSES = tuple(sorted(LAYOUTS))

_ROTATION = math.radians(15)  # at most, in either direction
LEAST_CONTRAST = 70  # of 255, between the mean brightness of object and background
_OVERSIZE = 2  # masks are drawn larger by this factor, then averaged down: smooth edges

# The object: outlines of its parts in the units of the layout.


class Outline(NamedTuple):
    """The outline of a part or of a hole, as a polygon."""

    points: np.ndarray  # (64, 2)
    hole: bool


def deform(parts: Sequence[Part], generator: np.random.Generator) -> list[Outline]:
    """The outlines of the parts, each moved a little, then all bent, stretched, sheared and rotated together."""
    exponent = generator.uniform(2.2, 6)
    waves = generator.uniform(-1, 1, (3, 5)) * [2.5, 2.5, math.pi, 0.06, 0.06]
    linear = _linear_map(generator)
    outlines = []
    for part in parts:
        points = _superellipse(part, exponent) + generator.uniform(-0.04, 0.04, 2)
        outlines.append(Outline(_bend(points, waves) @ linear.T, part.hole))
    return outlines


def _superellipse(part: Part, exponent: float) -> np.ndarray:
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


# The image.


def random_color(generator: np.random.Generator) -> np.ndarray:
    """(3, 1, 1), each channel from 20 to 235."""
    return generator.uniform(20, 235, (3, 1, 1)).astype(np.float32)


def textured(color: np.ndarray, strength: float, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
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


def blend(image: np.ndarray, paint: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with `paint` over it where `mask` is 1, mixed where it is between 0 and 1."""
    return image + mask * (paint - image)


def fillings(outlines: Sequence[Outline], size: tuple[int, int]) -> np.ndarray:
    """The mask of the parts without their holes."""

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for outline in outlines:
            canvas.polygon((outline.points * _OVERSIZE).ravel().tolist(), fill=0 if outline.hole else 255)

    return _mask(draw, size)


def borders(outlines: Sequence[Outline], thickness: float, size: tuple[int, int]) -> np.ndarray:
    """The mask of lines along the outlines, `thickness` pixels to either side."""

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for outline in outlines:
            closed = np.concatenate([outline.points, outline.points[:2]]) * _OVERSIZE
            canvas.line(closed.ravel().tolist(), fill=255, width=round(2 * thickness * _OVERSIZE))

    return _mask(draw, size)


def clutter(size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
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


# The folder of files.


def draw_once(root: Path, kind: str, settings: dict[str, int], draw: Callable[[Path], None]) -> Path:
    """Draws a data set into the folder `root`, unless it is there; returns `root`.

    The folder gets its name when it is complete, so that several processes may ask for it at once.

    Args:
        root: the folder.
        kind: of the data set; KIND.json in the folder holds its settings.
        settings: all that decides the files, with a version.
        draw: draws all files into the folder that it is given.

    Raises ValueError if `root` holds anything else.
    """
    if _is_drawn(root, kind, settings):
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
        tree = Path(folder, root.name)
        draw(tree)
        (tree / f"{kind}.json").write_text(json.dumps(settings) + "\n")
        try:
            tree.rename(root)
        except OSError:  # another process was faster: its folder is used if it holds the same
            if not _is_drawn(root, kind, settings):
                raise
    return root


def _is_drawn(root: Path, kind: str, settings: dict[str, int]) -> bool:
    """Whether `root` holds the data set of these settings. ValueError if it holds anything else."""
    if not os.path.lexists(root):
        return False
    expected = json.dumps(settings)
    try:
        drawn = " ".join((root / f"{kind}.json").read_text(errors="replace").split())[:200]
    except OSError:
        drawn = f"no readable {kind}.json"
    if drawn == expected:
        return True
    raise ValueError(f"{root} holds {drawn}, not {kind} of {expected}: choose another folder or delete this one")
