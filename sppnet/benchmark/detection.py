"""The windows of one image by SPP-net's way and by R-CNN's, timed stage by stage; and the pooling of windows by itself.

SPP-net computes the maps of the image once and pools every window from them. R-CNN warps every window to 224 x 224 and
passes it through the same network.

Letters: K windows, d values of fc7.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sppnet.benchmark.images import drawn_pixels
from sppnet.benchmark.poolings import Poolings, TimedPooling, time_pooling
from sppnet.benchmark.timing import Laps, Ratio, thread_count
from sppnet.data.images import decode_image, read_image_file
from sppnet.detect.detector import layer_features
from sppnet.detect.maps import (
    WindowCells,
    WindowRules,
    check_scales,
    find_cells,
    image_maps,
    map_of,
    pool_windows_at_scales,
    resized,
)
from sppnet.detect.proposals import Proposer
from sppnet.detect.rcnn import warped_batches
from sppnet.network import SPPNet
from sppnet.runtime.machine import bf16_is_fast, core_count, keep_freed_memory
from sppnet.runtime.names import check_names

STAGES = ("input", "convolutions", "pooling", "fully connected")
TOTAL = "total"
PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16}

_BATCH_SIZES = (16, 32, 64, 128)  # of R-CNN's way, to choose the fastest
_MOST_WINDOWS = 100_000


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """What is measured of detection. Raises ValueError for values out of range.

    windows: numbers of windows of the image, each measured by itself.
    scales: shorter sides in pixels for SPP-net's way.
    precisions: names of PRECISIONS; None: float32, and bf16 if the hardware multiplies bf16.
    threads: of torch on the CPU.
    image: an image file; None draws an image of 500 x 375 pixels.
    """

    windows: list[int]
    scales: list[int]
    precisions: list[str] | None
    threads: int
    image: str | None

    def __post_init__(self) -> None:
        if not self.windows or min(self.windows) < 1 or max(self.windows) > _MOST_WINDOWS:
            raise ValueError(f"windows={self.windows}: must be numbers from 1 to {_MOST_WINDOWS:,}, as in [200,2000]")
        WindowRules(scales=tuple(self.scales))  # checks them
        if self.precisions is not None:
            check_names("precisions", self.precisions, PRECISIONS)
            if not self.precisions:
                raise ValueError(f"precisions=[]: must be null or some of {', '.join(PRECISIONS)}")
        if not 1 <= self.threads <= core_count():
            raise ValueError(f"threads={self.threads}: must be from 1 to {core_count()} on this machine")

    def precisions_on(self, device: str) -> list[str]:
        """Returns the precisions to measure on "cpu" or "cuda"."""
        return self.precisions or (["float32", "bf16"] if bf16_is_fast(device) else ["float32"])


def read_image(settings: DetectionSettings) -> Tensor:
    """Returns the image to measure: uint8 (3, h, w)."""
    if settings.image is None:
        return torch.from_numpy(drawn_pixels(np.random.default_rng(0))).permute(2, 0, 1)
    path = str(Path(settings.image).expanduser())
    return decode_image(read_image_file(path, path), path)


def propose(image: Tensor, proposer: Proposer, name: str) -> np.ndarray:
    """Returns the proposals of an image, int64 (K, 4): the best ones first or, if they are not ranked, at random."""
    windows = proposer(image, name).astype(np.int64)
    return windows if proposer.ranked else np.random.default_rng(0).permutation(windows)


@dataclass(frozen=True, eq=False)
class BothWays:
    """Both ways from the windows of an image to their features of fc7.

    network: in eval mode, on its device.
    image: uint8 (3, h, w).
    rules: the scales of SPP-net's maps.
    autocast: the dtype of convolutions and fully connected layers, None for float32.
    """

    network: SPPNet
    image: Tensor
    rules: WindowRules
    autocast: torch.dtype | None

    @property
    def device(self) -> str:
        """The type of the device, "cpu" or "cuda"."""
        return self.network.fc8.weight.device.type

    def cells(self, windows: np.ndarray) -> WindowCells:
        """Finds the cells of windows (K, 4) in SPP-net's maps."""
        height, width = self.image.shape[1:]
        return find_cells(windows, (height, width), self.network.backbone, self.rules)

    def poolings(self, windows: np.ndarray) -> Poolings:
        """Returns ways to pool windows (K, 4) from the map of the first scale."""
        first = self.rules.scales[:1]
        (maps,) = image_maps(self.network, self.image, first, autocast=self.autocast)
        one_scale = BothWays(self.network, self.image, WindowRules(scales=first), self.autocast)
        return Poolings(maps, one_scale.cells(windows).cells, self.network.pyramid.levels)

    def spp(self, windows: np.ndarray) -> tuple[Tensor, dict[str, float]]:
        """Computes the features of windows (K, 4) by SPP-net's way: (K, d), and the seconds of STAGES and TOTAL."""
        laps = Laps(STAGES)
        with self._precision():
            pixels = resized(self.image, self.rules.scales)
            laps.end("input")
            maps = [map_of(self.network, one, mirrored=False, autocast=self.autocast) for one in pixels]
            laps.end("convolutions")
            head = partial(self._fully_connected, laps)
            features = pool_windows_at_scales(maps, self.cells(windows), self.network.pyramid.levels, head)
            laps.end("pooling")
        return features, _with_total(laps)

    def rcnn(self, windows: np.ndarray, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        """Computes the features of windows (K, 4) by R-CNN's way, so many in each pass; returns what `spp` does."""
        laps, features = Laps(STAGES), []
        with self._precision():
            for images in warped_batches(self.network, self.image, windows, batch_size=batch_size):
                laps.end("input")
                maps = self.network.maps(images)
                laps.end("convolutions")
                features.append(self._fully_connected(laps, self.network.pool(maps)))
            joined = torch.cat(features)
            laps.end("fully connected")
        return joined, _with_total(laps)

    def _fully_connected(self, laps: Laps, pooled: Tensor) -> Tensor:
        laps.end("pooling")
        features = layer_features(self.network, pooled, ["fc7"])
        laps.end("fully connected")
        return features

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Around a whole image, so that autocast converts each weight once on either side."""
        with torch.no_grad(), torch.autocast(self.device, self.autocast, enabled=self.autocast is not None):
            yield


def _with_total(laps: Laps) -> dict[str, float]:
    return laps.seconds | {TOTAL: sum(laps.seconds.values())}


class TimedWays(NamedTuple):
    """The seconds of both ways for some windows, round by round, by stage."""

    windows: int
    different: int  # windows that SPP-net pools and classifies, once equal (scale, cells) are merged
    precision: str
    batch_size: int  # of R-CNN's way
    spp: list[dict[str, float]]
    rcnn: list[dict[str, float]]

    def ratio(self, stage: str) -> Ratio:
        """How many times as long R-CNN's way took for one of STAGES or TOTAL."""
        ours, theirs = ([seconds[stage] for seconds in rounds] for rounds in (self.spp, self.rcnn))
        rounds = [b / a for a, b in zip(ours, theirs, strict=True)]
        return Ratio(rounds, statistics.median(ours), statistics.median(theirs))


def fastest_batch(ways: BothWays, windows: np.ndarray) -> int:
    """Returns the number of windows per pass with which R-CNN's way is fastest, from the first 128 of `windows`."""
    some = windows[: max(_BATCH_SIZES)]
    ways.rcnn(some[: min(_BATCH_SIZES)], min(_BATCH_SIZES))  # to warm up
    sizes = [size for size in _BATCH_SIZES if size <= len(some)] or [len(some)]
    return min(sizes, key=lambda size: ways.rcnn(some, size)[1][TOTAL])


def time_ways(ways: BothWays, windows: np.ndarray, *, precision: str, batch_size: int, rounds: int) -> TimedWays:
    """Times both ways for windows (K, 4). In every round R-CNN's way runs between two runs of SPP-net's.

    Of the two, which other load on the machine affects like R-CNN's one, the mean counts.
    """
    return time_at_scales([ways], windows, precision=precision, batch_size=batch_size, rounds=rounds)[0]


def time_at_scales(
    scales: Sequence[BothWays], windows: np.ndarray, *, precision: str, batch_size: int, rounds: int
) -> list[TimedWays]:
    """Times both ways as `time_ways` does, for ways that differ in the scales of SPP-net's maps only.

    R-CNN's way, which has no scales, runs once per round for all of them.
    """
    for ways in scales:
        ways.spp(windows)  # to warm up
    spp: list[list[dict[str, float]]] = [[] for _ in scales]
    rcnn = []
    for _ in range(rounds):
        before = [ways.spp(windows)[1] for ways in scales]
        rcnn.append(scales[0].rcnn(windows, batch_size)[1])
        after = [ways.spp(windows)[1] for ways in scales]
        for times, first, second in zip(spp, before, after, strict=True):
            times.append({stage: (first[stage] + second[stage]) / 2 for stage in first})
    return [
        TimedWays(len(windows), len(ways.cells(windows)), precision, batch_size, times, rcnn)
        for ways, times in zip(scales, spp, strict=True)
    ]


class DetectionTimes(NamedTuple):
    """All that is measured of detection on one device, "cpu" or "cuda"."""

    device: str
    ways: list[TimedWays]
    pooling: list[TimedPooling]  # none on a GPU, where windows are pooled by `roi_pool`


def measure_detection(
    network: SPPNet, image: Tensor, windows: np.ndarray, settings: DetectionSettings, *, rounds: int, seconds: float
) -> DetectionTimes:
    """Measures both ways for all numbers of windows and precisions of the settings, and the pooling of windows.

    Args:
        network: on its device; its weights may be random.
        image: uint8 (3, h, w).
        windows: int64 (K, 4). Numbers of the settings beyond K stand for K.
        settings: what to measure.
        rounds: of every comparison.
        seconds: of measuring each pooling in each round.

    Raises ValueError for a network without a pyramid or without fc7, and for scales that do not suit it.
    """
    network.eval()
    if network.hidden is None:
        raise ValueError("hidden=null: detection is measured up to fc7, which a linear classifier does not have")
    check_scales(network, settings.scales)
    rules, ways = WindowRules(scales=tuple(settings.scales)), []
    keep_freed_memory()  # as detection does
    with thread_count(settings.threads):
        both = BothWays(network, image, rules, None)
        for name in settings.precisions_on(both.device):
            both = BothWays(network, image, rules, PRECISIONS[name])
            batch_size = fastest_batch(both, windows)
            for count in settings.windows:
                timed = time_ways(both, windows[:count], precision=name, batch_size=batch_size, rounds=rounds)
                print(f"{timed.windows} windows, {name}: {timed.ratio(TOTAL).median:.1f}", file=sys.stderr, flush=True)
                ways.append(timed)
        pooling = list(time_pooling(both.poolings(windows), rounds, seconds)) if both.device == "cpu" else []
    keep_freed_memory(False)
    return DetectionTimes(both.device, ways, pooling)
