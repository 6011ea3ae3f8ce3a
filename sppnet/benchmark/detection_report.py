"""The page and the record of a benchmark of detection."""

from collections.abc import Sequence
from typing import Any

from sppnet.benchmark.detection import STAGES, TOTAL, DetectionSettings, DetectionTimes, TimedWays
from sppnet.benchmark.poolings import TimedPooling
from sppnet.results.page import Page

# The lowest acceptable ratios on one thread of a CPU, for 2,000 windows: by stage, scales and precision.
FIVE_SCALES = (480, 576, 688, 864, 1200)
_GOALS: dict[tuple[str, tuple[int, ...], str], float] = {
    ("convolutions", (688,), "float32"): 100,
    ("convolutions", (688,), "bf16"): 100,
    ("convolutions", FIVE_SCALES, "float32"): 19,
    ("convolutions", FIVE_SCALES, "bf16"): 19,
    (TOTAL, (688,), "float32"): 20,
    (TOTAL, (688,), "bf16"): 45,
}
_GOAL_WINDOWS = 1900  # a grid has a few windows less than 2,000

_COMPARED = ("convolutions", "fully connected", TOTAL)


def goal(settings: DetectionSettings, timed: TimedWays, stage: str, device: str) -> float | None:
    """Returns the lowest acceptable ratio of a stage; None where there is no goal."""
    if device != "cpu" or settings.threads != 1 or timed.windows < _GOAL_WINDOWS:
        return None
    return _GOALS.get((stage, tuple(settings.scales), timed.precision))


def detection_page(title: str, settings: DetectionSettings, times: DetectionTimes) -> Page:
    """Makes the page of both ways: their seconds, their ratios against the goals, and the pooling of windows."""
    page, device, ways = Page(title), times.device, times.ways
    page.text(
        f"One image at {_scales(settings.scales)} by SPP-net's way, and its windows warped to 224 x 224 by R-CNN's, "
        f"through the same network up to fc7; {_where(settings, device)}. Medians over {len(ways[0].spp)} rounds in "
        "one process, in turn. Proposals are not in the times."
    )
    page.table(["windows", "precision", "seconds", *STAGES, TOTAL], [row for timed in ways for row in _seconds(timed)])
    left = {timed.windows: f"{timed.different:,} of {timed.windows:,}" for timed in ways}
    page.text(f"SPP-net pools and classifies windows of the same scale and cells once: {'; '.join(left.values())}.")

    ratios = [_ratio(settings, timed, stage, device) for timed in ways for stage in _COMPARED]
    page.table(["windows", "precision", "stage", "times as fast", "rounds", "goal", "reached"], ratios)

    if times.pooling:
        page.text(f"Windows pooled by their bins, from one map of scale {settings.scales[0]}, beside two other ways:")
        headers = [
            "windows",
            "ms",
            "times as fast as `pool_windows`",
            "rounds",
            "as torchvision's `roi_pool`",
            "rounds",
        ]
        page.table(headers, [_pooling(timed) for timed in times.pooling])
    return page


def detection_record(settings: DetectionSettings, times: DetectionTimes) -> dict[str, Any]:
    """Returns the same as plain values."""
    ways = []
    for timed in times.ways:
        ratios = {stage: timed.ratio(stage) for stage in (*STAGES, TOTAL)}
        ways.append(
            {
                **timed._asdict(),
                "ratios": {stage: {"ratio": ratio.median, **ratio._asdict()} for stage, ratio in ratios.items()},
                "goals": {stage: goal(settings, timed, stage, times.device) for stage in _COMPARED},
            }
        )

    pooling = [
        {"windows": one.windows, "pool_windows": one.pool_windows._asdict(), "roi_pool": one.roi_pool._asdict()}
        for one in times.pooling
    ]
    return {"device": times.device, "ways": ways, "pooling": pooling}


def _scales(scales: Sequence[int]) -> str:
    return f"scale{'s' * (len(scales) > 1)} {', '.join(map(str, scales))}"


def _where(settings: DetectionSettings, device: str) -> str:
    return f"{settings.threads} thread{'s' * (settings.threads > 1)}" if device == "cpu" else "on a GPU"


def _seconds(timed: TimedWays) -> list[list[str]]:
    """The rows of both ways: the median seconds of each stage."""
    ratios = [timed.ratio(stage) for stage in (*STAGES, TOTAL)]
    sides = {
        "SPP-net": [ratio.ours for ratio in ratios],
        f"R-CNN, {timed.batch_size} at once": [ratio.reference for ratio in ratios],
    }
    return [
        [f"{timed.windows:,}", timed.precision, name, *(f"{seconds:.3g}" for seconds in side)]
        for name, side in sides.items()
    ]


def _ratio(settings: DetectionSettings, timed: TimedWays, stage: str, device: str) -> list[str]:
    ratio, least = timed.ratio(stage), goal(settings, timed, stage, device)
    rounds = f"{min(ratio.rounds):.1f} to {max(ratio.rounds):.1f}"
    reached = "" if least is None else "yes" if ratio.median >= least else "no"
    shown = "" if least is None else f"{least:.0f}"
    return [f"{timed.windows:,}", timed.precision, stage, f"{ratio.median:.1f}", rounds, shown, reached]


def _pooling(timed: TimedPooling) -> list[str]:
    cells = [f"{timed.windows:,}", f"{1000 * timed.pool_windows.ours:.1f}"]
    for ratio in (timed.pool_windows, timed.roi_pool):
        cells += [f"{ratio.median:.2f}", f"{min(ratio.rounds):.2f} to {max(ratio.rounds):.2f}"]
    return cells
