"""Proposals: the windows of an image that may hold objects, found by one of four methods.

Letters: h and w pixels of height and width, K windows. Windows are half-open (x0, y0, x1, y1) in pixels from 0.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from sppnet.runtime.names import printable

LONGEST_SIDE = 32_767  # of an image in pixels: windows are kept as int16


class Proposer(Protocol):
    """Proposes windows of one image at a time.

    ranked: whether windows come best first, so that the first ones are kept where there are too many.
    """

    ranked: ClassVar[bool]

    def settings(self) -> dict[str, Any]:
        """Everything besides the image and its name that decides the windows, as plain values."""

    def __call__(self, image: Tensor, name: str = "image") -> np.ndarray:
        """Proposes windows, all different, inside the image: uint8 RGB (3, h, w) -> int16 (K, 4).

        If none are found, the whole image is the window. Raises ValueError with `name` if a side of the image is longer
        than LONGEST_SIDE.
        """


# A grid.

# Windows that have the share s of the image's side are a multiple of s ** _SPACING_POWER apart. With 1, all sizes would
# overlap alike, and nearly all windows would be of the smallest ones; with 0, there would be as many of every size.
_SPACING_POWER = 0.3


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A grid of windows, the same for all images of one size: the `proposals` section. ValueError out of range.

    Widths and heights are those of the image divided by powers of `ratio`, in all pairs of an aspect up to `aspect`.
    Windows of each size are spaced evenly from border to border, as closely as `windows` allows. If even two or three
    for each width and height are too many, the smallest sizes are left out.
    """

    windows: int = 2000  # per image at most
    smallest: float = 0.05  # side of a window, as a share of the longer side of the image
    ratio: float = 1.8  # of each width and height to the next
    aspect: float = 4.0  # longer side of a window divided by its shorter one; the whole image may have more

    ranked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range(self, windows=(1, 1_000_000), smallest=(0.001, 1), ratio=(1.1, 100), aspect=(1, 1000))

    def settings(self) -> dict[str, Any]:
        return {"proposer": "dense", **asdict(self)}

    def __call__(self, image: Tensor, name: str = "image") -> np.ndarray:
        height, width = image.shape[1:]
        sizes = self._sizes(height, width)

        def counts(spacing: float) -> np.ndarray:
            """Numbers of rows and columns for every size: int64 (sizes, 2)."""
            shares = sizes / [height, width]
            return 1 + np.ceil((1 - shares) / (spacing * shares**_SPACING_POWER) - 1e-9).astype(int)

        fitting = counts(1.0).prod(axis=1).cumsum() <= self.windows
        sizes = sizes[: fitting.sum()]  # the whole image, which comes first, always fits
        finest = _smallest(lambda spacing: counts(spacing).prod(axis=1).sum() <= self.windows, 0.001, 1.0)
        grids = [_grid((height, width), size, count) for size, count in zip(sizes, counts(finest), strict=True)]
        return windows_inside(np.rint(np.concatenate(grids)), image, name)

    def _sizes(self, height: int, width: int) -> np.ndarray:
        """The sizes of windows, (height, width) each, from the whole image to the one of the smallest area."""
        shortest = self.smallest * max(height, width)
        pairs = [(h, w) for h in self._sides(height, shortest) for w in self._sides(width, shortest)]
        sizes = np.array([(h, w) for h, w in pairs if (h, w) == (height, width) or max(h / w, w / h) <= self.aspect])
        return sizes[np.argsort(-sizes.prod(axis=1), kind="stable")]

    def _sides(self, longest: int, shortest: float) -> Iterator[float]:
        """Yields `longest`, and its parts by powers of the ratio as far as they are no shorter than `shortest`."""
        side = float(longest)
        yield side
        while (side := side / self.ratio) >= shortest:
            yield side


def _grid(image: tuple[int, int], size: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Windows of a size, (height, width), in so many rows and columns, from border to border: float64 (K, 4)."""
    starts = [np.linspace(0, side - part, count) for side, part, count in zip(image, size, counts, strict=True)]
    y0, x0 = np.meshgrid(*starts, indexing="ij")
    return np.stack([x0, y0, x0 + size[1], y0 + size[0]], axis=-1).reshape(-1, 4)


def _smallest(fits: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest number from `low` to `high` that fits, by bisection; larger ones fit too. `high` is not tried."""
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


# OpenCV.


@dataclass(frozen=True, kw_only=True)
class SelectiveSearch:
    """Selective search (Uijlings et al. 2013) of OpenCV: the `proposals` section.

    Fast mode as in arXiv:1406.4729v4, §4.1: similar regions of the colour spaces HSV and Lab are merged step by step,
    and their bounding boxes are the windows. The authors' segmentations are finer (k = 50 and 100; OpenCV has 150 and
    300). As in their code, windows with a short side are dropped.

    Windows come sorted by their numbers, because OpenCV's order changes from call to call.

    Raises ValueError for settings out of range, and without OpenCV.
    """

    quality: bool = False  # more colour spaces and segmentations: more windows in four times the time
    smallest: int = 20  # side of a window in pixels, after the image is resized
    longest: int = 500  # images with a longer side are resized to it; their windows are scaled back, rounded outward

    ranked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range(self, smallest=(1, LONGEST_SIDE), longest=(16, LONGEST_SIDE))
        _opencv()

    def settings(self) -> dict[str, Any]:
        return {"proposer": "selective_search", **asdict(self), "opencv": _opencv().__version__}

    def __call__(self, image: Tensor, name: str = "image") -> np.ndarray:
        pixels = _resized(image, self.longest)
        search = _opencv().ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(pixels)
        if self.quality:
            search.switchToSelectiveSearchQuality()
        else:
            search.switchToSelectiveSearchFast()

        boxes = np.unique(_corners(search.process()), axis=0)
        return windows_inside(_scaled(_large(boxes, self.smallest), pixels, image), image, name)


@dataclass(frozen=True, kw_only=True)
class EdgeBoxes:
    """EdgeBoxes (Zitnick and Dollar 2014) of OpenCV: the `proposals` section.

    Scores windows by the edges that lie wholly inside them; best first. Edges are those of `_edges`, instead of
    Zitnick and Dollar's learnt ones, whose model is a file of its own.

    Raises ValueError for settings out of range, and without OpenCV.
    """

    windows: int = 2000  # per image at most
    smallest: int = 20  # side of a window in pixels, after the image is resized
    longest: int = 500  # images with a longer side are resized to it; their windows are scaled back, rounded outward

    ranked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range(self, windows=(1, 1_000_000), smallest=(1, LONGEST_SIDE), longest=(16, LONGEST_SIDE))
        _opencv()

    def settings(self) -> dict[str, Any]:
        return {"proposer": "edge_boxes", **asdict(self), "opencv": _opencv().__version__}

    def __call__(self, image: Tensor, name: str = "image") -> np.ndarray:
        pixels = _resized(image, self.longest)
        edge_boxes = _opencv().ximgproc.createEdgeBoxes(maxBoxes=self.windows, minBoxArea=self.smallest**2)
        boxes = _corners(edge_boxes.getBoundingBoxes(*_edges(pixels))[0])
        return windows_inside(_scaled(_large(boxes, self.smallest), pixels, image), image, name)


def _opencv() -> ModuleType:
    """OpenCV with its contributed modules. Raises ValueError naming the extra that installs it."""
    try:
        importlib.import_module("cv2.ximgproc")
        return importlib.import_module("cv2")
    except ImportError as error:
        raise ValueError(
            "selective search and EdgeBoxes need the package opencv-contrib-python-headless: pip install sppnet[detect]"
        ) from error


def _resized(image: Tensor, longest: int) -> np.ndarray:
    """Returns an image as OpenCV takes it, its longer side at most `longest`: (3, h, w) RGB -> (h', w', 3) BGR."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[..., ::-1])
    height, width = pixels.shape[:2]
    if max(height, width) <= longest:
        return pixels
    size = [max(1, round(side * longest / max(height, width))) for side in (width, height)]
    return np.asarray(_opencv().resize(pixels, size, interpolation=_opencv().INTER_AREA))


def _corners(boxes: np.ndarray) -> np.ndarray:
    """OpenCV's boxes (x, y, width, height) as int64 (K, 4) (x0, y0, x1, y1)."""
    corners, sides = np.split(np.asarray(boxes, np.int64).reshape(-1, 4), 2, axis=1)
    return np.concatenate([corners, corners + sides], axis=1)


def _large(boxes: np.ndarray, smallest: int) -> np.ndarray:
    """The boxes whose sides are all at least `smallest`."""
    return boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= smallest]


def _scaled(boxes: np.ndarray, pixels: np.ndarray, image: Tensor) -> np.ndarray:
    """Boxes of the resized `pixels` (h', w', 3) as boxes of the image (3, h, w), rounded outward to whole pixels."""
    (height, width), (resized_height, resized_width) = image.shape[1:], pixels.shape[:2]
    x0, y0, x1, y1 = boxes.T
    # In integers: -(-a // b) rounds a / b up.
    starts = x0 * width // resized_width, y0 * height // resized_height
    ends = -(-x1 * width // resized_width), -(-y1 * height // resized_height)
    return np.stack([*starts, *ends], axis=1)


def _edges(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of an image: uint8 BGR (h, w, 3) -> strength in 0..1 and direction in 0..pi, float32 (h, w) each.

    Sobel's gradient of the smoothed grey image, thinned: 0 where a neighbour across the edge is stronger. Directions
    are across the edges.
    """
    cv2 = _opencv()
    grey = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY).astype(np.float32), (0, 0), 2.0)
    x, y = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    strength, direction = np.hypot(x, y), np.arctan2(y, x) % np.float32(np.pi)

    rows, columns = np.indices(strength.shape, dtype=np.float32)
    across = np.cos(direction), np.sin(direction)
    neighbours = [
        cv2.remap(strength, columns + sign * across[0], rows + sign * across[1], cv2.INTER_LINEAR) for sign in (1, -1)
    ]
    strength[strength < np.maximum(*neighbours)] = 0
    return strength / max(strength.max(), np.float32(1e-6)), direction


# All of them.

# By the names in their settings. Windows may come from a file of the user too: `sppnet.detect.window_files.WindowFile`.
PROPOSERS: dict[str, Callable[..., Proposer]] = {
    "dense": Dense,
    "selective_search": SelectiveSearch,
    "edge_boxes": EdgeBoxes,
}


def saved_proposer(settings: Mapping[str, Any]) -> Proposer:
    """Builds a proposer from what its `settings` returned; another version of OpenCV may propose other windows.

    Raises ValueError for windows from a file of the user, for other settings, and as PROPOSERS do.
    """
    if settings.get("proposer") == "file":
        raise ValueError("proposals: the detector's windows came from a file, which has none for other images")
    try:
        options = {key: value for key, value in settings.items() if key not in ("proposer", "opencv")}
        return PROPOSERS[settings["proposer"]](**options)
    except (KeyError, TypeError) as error:
        raise ValueError(printable(f"proposals={dict(settings)}: not the settings of a proposer")) from error


def chosen_windows(windows: np.ndarray, *, most: int, ranked: bool, seed: int, name: str) -> np.ndarray:
    """Chooses at most `most` of the proposed windows of an image: (K, 4) -> int64 (K', 4).

    Of ranked windows, it chooses the best ones. Of others, which ones depends only on the seed, the name of the image
    and their number; with a smaller `most` they are some of the same. They stay in their order: it decides which of two
    windows on the same cells, whose scores are equal, suppresses the other.
    """
    if ranked:
        return windows[:most].astype(np.int64)
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    order = np.random.default_rng([seed, *digest]).permutation(len(windows))
    return windows[np.sort(order[:most])].astype(np.int64)


def check_range(settings: Any, **ranges: tuple[float, float]) -> None:
    """Raises ValueError for a setting outside of its range."""
    for name, (least, most) in ranges.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            raise ValueError(f"proposals.{name}={value}: must be from {least:,} to {most:,}")


def windows_inside(boxes: np.ndarray, image: Tensor, name: str) -> np.ndarray:
    """Boxes in whole pixels, cut to the image, each once, in the same order: (K, 4) -> int16 (K', 4).

    Returns the whole image if none are left. Raises ValueError if the image is too large.
    """
    height, width = image.shape[1:]
    if max(height, width) > LONGEST_SIDE:
        raise ValueError(
            f"{printable(name)}: {width} x {height} pixels, windows need sides of at most {LONGEST_SIDE:,}"
        )
    windows = boxes.clip(0, [width, height, width, height]).astype(np.int16)
    windows = windows[(windows[:, :2] < windows[:, 2:]).all(axis=1)]
    if not len(windows):
        return np.array([[0, 0, width, height]], np.int16)
    keys = np.ascontiguousarray(windows).view(np.int64)  # four numbers as one, which is faster than rows
    return windows[np.sort(np.unique(keys, return_index=True)[1])]
