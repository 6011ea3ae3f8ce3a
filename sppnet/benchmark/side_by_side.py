"""Our implementations against plain PyTorch, torchvision and timm, timed alternately in one process."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sppnet.benchmark import detection_rows, epochs, exported, loading, steps, transfer, views
from sppnet.benchmark.bench import Bench
from sppnet.benchmark.comparisons import Measurement, Row
from sppnet.runtime.progress import clock, duration

# In the order of the page. Each function yields what is measured of its group.
GROUPS: dict[str, Callable[[Bench], Iterator[Measurement]]] = {
    "step": steps.comparisons,
    "loading": loading.comparisons,
    "epoch": epochs.measurements,
    "views": views.comparisons,
    "transfer": transfer.comparisons,
    "export": exported.comparisons,
    "detection": detection_rows.measurements,
}
_PRIOR = 5
_SLOWEST_CALL = 2.5  # seconds of a usual call on two cores: a round of a comparison takes at least that on each side


class Measured(NamedTuple):
    """The rows of one group."""

    group: str
    rows: list[Row]


def measure(
    bench: Bench, groups: Sequence[str], rounds: int, seconds: float, report: Callable[[str], None]
) -> list[Measured]:
    """Measures groups of GROUPS in their order, and reports a line before the first one and after each measurement."""
    planned = [(group, each) for group in GROUPS if group in groups for each in GROUPS[group](bench)]
    weights = [each.weight for _, each in planned]
    expected = 2 * (rounds + 2) * max(seconds, _SLOWEST_CALL)  # seconds of an ordinary one
    report(f"{len(planned)} measurements: about {duration(sum(weights) * expected)} on two cores")

    measured = {group: Measured(group, []) for group, _ in planned}
    started = time.perf_counter()
    for place, (group, each) in enumerate(planned, start=1):
        rows = each.rows(bench.device.type, rounds, seconds)
        measured[group].rows.extend(rows)
        # What was expected counts like some measurements: the first one alone says little.
        each_takes = (time.perf_counter() - started + _PRIOR * expected) / (sum(weights[:place]) + _PRIOR)
        left = each_takes * sum(weights[place:])
        for row in rows:
            report(f"{place} of {len(planned)}, {clock(left)} left  {row.name}: {row.ratio.median:.2f}")
    return list(measured.values())
