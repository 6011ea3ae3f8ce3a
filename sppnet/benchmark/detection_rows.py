"""Detection among the rows of the table: SPP-net's way beside R-CNN's, and the pooling of windows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from torch import Tensor

from sppnet.benchmark.bench import Bench
from sppnet.benchmark.comparisons import Comparison, Goal, Measurement, Row, Works, largest_parts
from sppnet.benchmark.detection import (
    PRECISIONS,
    STAGES,
    TOTAL,
    BothWays,
    DetectionSettings,
    TimedWays,
    fastest_batch,
    propose,
    read_image,
    time_at_scales,
)
from sppnet.benchmark.detection_report import FIVE_SCALES, goal
from sppnet.benchmark.timing import on_one_thread, thread_count
from sppnet.detect.maps import WindowRules
from sppnet.detect.proposals import Dense
from sppnet.network import SPPNet
from sppnet.runtime.names import counted

_COMPARED = ("convolutions", TOTAL)
_POOLED = (100, 1900)  # windows; the grid has a few less than 2,000


def measurements(bench: Bench) -> Iterator[Measurement]:
    """Yields both ways in every precision that suits the device, then the pooling of windows on a CPU."""
    image = DetectedImage(bench)
    for precision in image.settings(image.scales[0]).precisions_on(bench.device.type):
        yield Ways(image, precision)
    if bench.device.type == "cpu":
        for count in _POOLED:
            name = f"pooling {count:,} windows by bins: torchvision's roi_pool"
            yield Comparison(name, Goal(None, None), partial(image.pooling, count))


@dataclass(frozen=True, eq=False)
class DetectedImage:
    """A drawn image of 500 x 375, a grid of windows, and the network."""

    bench: Bench
    most_windows: int = 2000
    scales: tuple[tuple[int, ...], ...] = ((688,), FIVE_SCALES)  # of SPP-net's maps, each measured

    def settings(self, scales: tuple[int, ...]) -> DetectionSettings:
        """Returns what is measured at some scales."""
        windows = [self.most_windows]
        return DetectionSettings(windows=windows, scales=list(scales), precisions=None, threads=1, image=None)

    @cached_property
    def pixels(self) -> Tensor:
        """The image: uint8 (3, h, w)."""
        return read_image(self.settings(self.scales[0]))

    @cached_property
    def windows(self) -> np.ndarray:
        """The grid: int64 (K, 4)."""
        return propose(self.pixels, Dense(), "image")[: self.most_windows]

    @cached_property
    def network(self) -> SPPNet:
        """ZF-5 with random weights, for tests."""
        return self.bench.network().eval()

    def ways(self, scales: tuple[int, ...], precision: str) -> BothWays:
        """Returns both ways at some scales in one of PRECISIONS."""
        return BothWays(self.network, self.pixels, WindowRules(scales=scales), PRECISIONS[precision])

    def pooling(self, count: int) -> Works:
        """Returns pooling `count` windows, or all of fewer, from the map of one scale, and the same by `roi_pool`."""
        by_bins, _, by_roi_pool = self.ways(self.scales[0], "float32").poolings(self.windows).works(count)
        return Works(on_one_thread(by_bins), on_one_thread(by_roi_pool))


@dataclass(frozen=True)
class Ways:
    """SPP-net's way beside R-CNN's in one precision: the rows of all scales, for each of which R-CNN's way runs once.

    R-CNN's way has its fastest batches.
    """

    image: DetectedImage
    precision: str

    @property
    def weight(self) -> float:
        """R-CNN's way takes half as long in bf16."""
        return 12.0 if self.precision == "float32" else 7.0

    @property
    def name(self) -> str:
        """What is measured, for the line of progress."""
        return f"detection, {self.precision}"

    def rows(self, device: str, rounds: int, seconds: float) -> list[Row]:
        """Measures both ways once in every round, however long that takes."""
        image = self.image
        scales = [image.ways(scales, self.precision) for scales in image.scales]
        with thread_count(1):
            batch_size = fastest_batch(scales[0], image.windows)
            timed = time_at_scales(
                scales, image.windows, precision=self.precision, batch_size=batch_size, rounds=rounds
            )
        return [
            self._row(one, ways.rules.scales, stage, device)
            for ways, one in zip(scales, timed, strict=True)
            for stage in _COMPARED
        ]

    def _row(self, timed: TimedWays, scales: tuple[int, ...], stage: str, device: str) -> Row:
        name = f"detection, {counted(len(scales), 'scale')}, {self.precision}, {stage}: R-CNN's way"
        least = goal(self.image.settings(scales), timed, stage, device)
        row = Row(name, least, timed.ratio(stage), f"{timed.batch_size} windows at once")
        if row.is_reached is False:
            medians = {part: timed.ratio(part).ours for part in STAGES}
            row = row._replace(bound=largest_parts(medians))
        return row
