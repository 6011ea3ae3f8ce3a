"""Tables of detectors: how detectors, means and gains are written, and the notes below them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sppnet.results.comparisons import gain_text, percent
from sppnet.results.detection_combinations import CombinedDetectors
from sppnet.results.detector_runs import Gain, TestedRow, gain, row_before
from sppnet.results.network_records import numbered_labels, record_label, record_training
from sppnet.results.page import Page
from sppnet.results.paper_detection import SCALES_TEXT


def add_rows(page: Page, rows: Sequence[TestedRow], combinations: Sequence[CombinedDetectors] = ()) -> None:
    """Adds a table of rows of one protocol with their gains over the rows before them, and notes about it.

    Args:
        rows: the rows.
        combinations: of some of them, as rows below with their gains over each part.
    """
    labels = detector_labels(rows)
    headers = ["network", "trained on", "scales", "row", "runs", "mAP in %, 11 points (95 % interval)", "all points"]
    cells, gains = [], []
    for row, label in zip(rows, labels, strict=True):
        before = row_before(row, rows)
        gained = None if before is None else gain(row, before)
        of_gain = ["", ""] if before is None or gained is None else [gain_cell(gained), before.name]
        cells.append([*_texts(row, label), *mean_cells(row), *of_gain])
        gains += [gained] if gained else []
    for combination in combinations:
        over = gains_over_parts(combination)
        gains += over
        texts = _texts(combination.row, combined_label(combination))
        cells.append([*texts, *mean_cells(combination.row), ", ".join(map(gain_cell, over)), "each part"])

    page.table([*headers, "gain", "over"], cells)
    for line in [*interval_notes(rows, gains), *combination_notes(combinations), *_detector_notes(rows, labels)]:
        page.text(line)


def _texts(row: TestedRow, label: str) -> list[str]:
    """Returns the first cells of a row: what it is."""
    network = row.about["network"]
    return [label, record_training(network), scales_text(row.scales), row.name, f"{len(row.runs)}"]


def mean_cells(row: TestedRow) -> list[str]:
    """Returns the cells of the 11-point mean average precision with its interval, and of that by all points.

    Both are "-" without objects that count.
    """
    if not row.counts.any():
        return ["-", "-"]
    low, high = row.interval()
    return [f"{percent(row.mean())} ({percent(low)} to {percent(high)})", percent(row.all_points())]


def gain_cell(one: Gain) -> str:
    """Formats a gain in % with its interval."""
    return gain_text(one.value, one.low, one.high)


def gains_over_parts(combination: CombinedDetectors) -> list[Gain]:
    """Returns the gain of a combination over each of its parts, on the same images."""
    whole = next(iter(combination.row.tests))
    gains = []
    for part in combination.parts:
        (key,) = part.runs
        gains.append(gain(TestedRow({key: whole}), part))
    return [one for one in gains if one is not None]


def combined_label(combination: CombinedDetectors) -> str:
    """Names the networks of a combination, once where all have the same name."""
    labels = [record_label(part.about["network"]) for part in combination.parts]
    return f"{len(labels)} x {labels[0]}" if len(set(labels)) == 1 else " + ".join(labels)


def scales_text(scales: tuple[int, ...]) -> str:
    """Names scales: as the paper does, or by the sides in pixels."""
    return SCALES_TEXT.get(scales, ", ".join(map(str, scales)))


def proposals_text(proposals: dict[str, Any]) -> str:
    """Names a way to propose windows, with its settings."""
    return ", ".join(f"{value}" if key == "proposer" else f"{key} {value}" for key, value in proposals.items())


def recall_text(recalls: Sequence[dict[str, Any]]) -> str:
    """Says how many objects windows overlap well enough, from the entry `recall` of `Detections.about`."""
    shares = [f"{percent(one['share'])} % ({percent(one['low'])} to {percent(one['high'])})" for one in recalls]
    parts = [f"{share} by {one['threshold']:g} or more" for share, one in zip(shares, recalls, strict=True)]
    return f"of {recalls[0]['objects']:,} objects, windows overlap {', '.join(parts)}"


def row_names(rows: Sequence[TestedRow]) -> list[str]:
    """Names rows beside each other, with their scales and networks only where these differ."""
    labels, scales = detector_labels(rows), [scales_text(row.scales) for row in rows]
    names = []
    for row, *parts in zip(rows, scales, labels, strict=True):
        differing = [text for text, all_texts in zip(parts, (scales, labels), strict=True) if len(set(all_texts)) > 1]
        names.append(", ".join([row.name, *differing]))
    return names


def protocol_text(rows: Sequence[TestedRow]) -> str:
    """Describes the data of rows of one protocol."""
    about, counts = rows[0].about, rows[0].counts
    images = f"{about['n_train']:,} training and {len(counts):,} test images"
    return f"{about['data_text']}: {counts.shape[1]} classes, {images}, {counts.sum():,} objects"


def detector_labels(rows: Sequence[TestedRow]) -> list[str]:
    """Names the networks of rows, with a number where detectors of several settings have the same name and scales."""
    names = []
    for row in rows:
        network = row.about["network"]
        names.append((record_label(network), record_training(network), scales_text(row.scales)))
    return numbered_labels(names, [row.setting for row in rows])


def add_classes(page: Page, rows: Sequence[TestedRow], names: Sequence[str] | None = None) -> None:
    """Adds a table of 11-point average precision by class, a column per row, the highest of the last row first.

    Args:
        rows: of one protocol.
        names: of the columns; by default `row_names`.
    """
    values = [row.class_means() for row in rows]
    counts = rows[0].counts.sum(axis=0)
    cells = []
    for label in np.argsort(-np.nan_to_num(values[-1], nan=-1), kind="stable"):
        numbers = ["" if np.isnan(of_class[label]) else percent(of_class[label]) for of_class in values]
        cells.append([rows[0].classes[label], f"{counts[label]:,}", *numbers])
    mean = ", means over runs" if any(len(row.runs) > 1 for row in rows) else ""
    page.text(f"By class: 11-point average precision in %{mean}.")
    page.table(["class", "objects", *(row_names(rows) if names is None else names)], cells)


def interval_notes(rows: Sequence[TestedRow], gains: Sequence[Gain] = ()) -> list[str]:
    """Says what the intervals cover."""
    if not rows:
        return []
    words = {len(row.runs) > 1 for row in rows} | {one.runs > 1 for one in gains}
    several = "over images and training runs where there are several runs" + ", else over images only" * (
        len(words) > 1
    )
    covers = several if True in words else "over images only, for these trained detectors"
    paired = " Gains are on the same images, drawn in pairs." if gains else ""
    return [
        f"Intervals: 95 %, by a bootstrap, {covers}.{paired} Average precision as in VOC: an object is found at an "
        "overlap of 0.5, difficult ones are ignored. 11 points: the paper's; all points: the area under the curve."
    ]


def combination_notes(combinations: Sequence[CombinedDetectors]) -> list[str]:
    """Says what combinations are."""
    if not combinations:
        return []
    return [
        "Combinations: the detections of all parts with their scores; of those of a class that overlap, the one with "
        "the highest score stays. Each part has suppressed its own before. Gains over each part are in this order."
    ]


def _detector_notes(rows: Sequence[TestedRow], labels: Sequence[str]) -> list[str]:
    """Describes every network and its windows in words."""
    texts = dict.fromkeys(
        f"{label}, {scales_text(row.scales)}: {row.about['network']['text']}; windows: "
        + proposals_text(row.about["proposals"])
        for row, label in zip(rows, labels, strict=True)
    )
    return [f"Detectors: {'. '.join(texts)}."] if texts else []
