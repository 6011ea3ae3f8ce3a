"""Tables 9 to 12 of the paper from saved detections, beside the paper's numbers where the detectors compare."""

from collections.abc import Sequence

import numpy as np

from sppnet.results.comparisons import percent
from sppnet.results.detection_cells import add_classes, add_rows, interval_notes, mean_cells, protocol_text, scales_text
from sppnet.results.detection_combinations import CombinedDetectors, combine_tests, combined_detectors
from sppnet.results.detector_runs import DetectorTest, TestedRow, by_protocol, by_row
from sppnet.results.missing import detection_command
from sppnet.results.page import Page
from sppnet.results.paper_detection import (
    DETECTION_TABLES,
    EXPERIMENTS,
    FIVE_SCALES,
    N_TEST,
    N_TRAIN,
    ONE_SCALE,
    SCALES_TEXT,
    TABLE11,
    TABLE11_ROWS,
    TABLE11_TITLE,
    TABLE12,
    TABLE12_ROW,
    TABLE12_TITLE,
    VOC_CLASSES,
    ClassPrecisions,
    DetectionTable,
)
from sppnet.results.paper_transfer import LENGTHS
from sppnet.results.runs import Run


def detection_table_page(name: str, tests: Sequence[DetectorTest], runs: Sequence[Run]) -> Page:
    """Makes the page of one of DETECTION_TABLES.

    Only detectors like the paper's, on VOC 2007, are beside the paper's numbers. All others are in tables of their own.

    Args:
        runs: in which commands for missing numbers look for the network.
    """
    table = DETECTION_TABLES[name]
    page = Page(table.title)
    rows = by_row(tests)
    ours = [row for row in rows if _is_papers(row)]

    page.text("Mean average precision on VOC 2007 test in %, the paper's by recall at 11 points beside ours.")
    headers = ["row"]
    for words in ("1 scale", "5 scales"):
        headers += [f"{words}: paper", "ours, 11 points (95 % interval)", "all points"]
    cells = [line for row_name in table.one_scale for line in _table_lines(table, row_name, ours)]
    page.table([*headers, f"R-CNN with {table.rcnn}: paper"], cells)
    _add_missing(page, list(table.one_scale), ours, runs)
    if ours:
        page.heading(f"Ours: {protocol_text(ours)}")
        add_rows(page, ours)
    _add_others(page, [row for row in rows if row not in ours])
    return page


def _table_lines(table: DetectionTable, name: str, ours: Sequence[TestedRow]) -> list[list[str]]:
    """Returns the lines of a row of the paper: more than one if ours has several detectors of it."""
    sides = [[row for row in ours if row.name == name and row.scales == scales] for scales in (ONE_SCALE, FIVE_SCALES)]
    lines = []
    for i in range(max(1, *map(len, sides))):
        cells = [name]
        for side, paper in zip(sides, (table.one_scale, table.five_scales), strict=True):
            cells += [f"{paper[name]:.1f}" if i == 0 else "", *(mean_cells(side[i]) if i < len(side) else ["-", "-"])]
        lines.append([*cells, f"{table.by_rcnn[name]:.1f}" if i == 0 else ""])
    return lines


def table11_page(tests: Sequence[DetectorTest], runs: Sequence[Run]) -> Page:
    """Makes the page of Table 11: average precision by class. Arguments as of `detection_table_page`."""
    page = Page(TABLE11_TITLE)
    rows = by_row(tests)
    ours = [row for row in rows if _is_papers(row)]
    shown = [row for row in ours if row.name in TABLE11_ROWS]

    page.text("Average precision on VOC 2007 test in %, by recall at 11 points.")
    lines = [_class_cells(f"ours {row.name}, {scales_text(row.scales)}", row) for row in shown]
    page.table(_CLASS_HEADERS, [*_paper_cells(TABLE11), *lines])
    for line in interval_notes(shown):
        page.text(line)
    _add_missing(page, TABLE11_ROWS, ours, runs)
    _add_others(page, [row for row in rows if row not in ours])
    return page


def table12_page(tests: Sequence[DetectorTest], runs: Sequence[Run], combine: Sequence[str] = ()) -> Page:
    """Makes the page of Table 12: two networks and their combination.

    Args:
        combine: detections to combine, each as `combined_detectors` takes them; without any, those of ftfc7_bb are
            combined if there are two networks of one setting.

    Raises ValueError if there are detections, but none of a second network.
    """
    combinations = [combined_detectors(text, tests) for text in combine] or _pairs_of_networks(tests)
    ours = [one for one in combinations if all(map(_is_papers, one.parts))]
    page = Page(TABLE12_TITLE)
    page.text("Average precision on VOC 2007 test in %, by recall at 11 points, of fc7 fine-tuned with box regression.")

    cells = _paper_cells(TABLE12)
    for one in ours:
        cells += [_class_cells(f"ours ({i}), {part.name}", part) for i, part in enumerate(one.parts, start=1)]
        cells.append(_class_cells("ours, combination", one.row))
    page.table(_CLASS_HEADERS, cells)
    for one in combinations:
        page.heading(f"{'VOC 2007' if one in ours else 'Other detectors'}: {protocol_text([one.row])}")
        add_rows(page, one.parts, [one])
        numbered = [f"{part.name} ({i})" for i, part in enumerate(one.parts, start=1)]
        add_classes(page, [*one.parts, one.row], [*numbered, "combination"])
    if not combinations:
        _add_missing(page, [TABLE12_ROW], [], runs)
        page.text("The table combines two of them, with networks that were trained with different seeds.")
    return page


def _pairs_of_networks(tests: Sequence[DetectorTest]) -> list[CombinedDetectors]:
    """Combines what Table 12 combines wherever there are exactly two networks of one setting.

    Raises ValueError if there are detections, and nowhere two networks.
    """
    rows = [row for row in by_row(tests) if row.name == TABLE12_ROW]
    pairs = [row for row in rows if len({checkpoint for checkpoint, _ in row.runs}) == len(row.runs) == 2]
    if tests and not pairs:
        counts = ", ".join(f"{len(row.runs)} in {row.tests[0].path}" for row in rows) or "none"
        raise ValueError(
            f"table12: needs {TABLE12_ROW} of two networks that differ in seed only, found {counts}; "
            "or name two with combine=A+B"
        )
    return [combine_tests(row.tests) for row in pairs]


# The paper's numbers beside ours.

_CLASS_HEADERS = ["method", "mAP", *VOC_CLASSES]


def _is_papers(row: TestedRow) -> bool:
    """Whether a detector is like the paper's, trained and tested on the paper's numbers of images and its classes."""
    about, network = row.about, row.about["network"]
    like = network["on_imagenet"] and (network["name"], network["variant"]) == ("zf5", "single")
    of_width = all(about["lengths"].get(layer) == LENGTHS["zf5"][layer] for layer in ("pool5", "fc6", "fc7"))
    if not like or not of_width or row.scales not in SCALES_TEXT or about["n_train"] != N_TRAIN:
        return False
    return sorted(row.classes) == sorted(VOC_CLASSES) and len(row.counts) == N_TEST


def _paper_cells(methods: dict[str, ClassPrecisions]) -> list[list[str]]:
    return [[name, f"{one.mean:.1f}", *(f"{value:.1f}" for value in one.of_class)] for name, one in methods.items()]


def _class_cells(label: str, row: TestedRow) -> list[str]:
    """Returns the cells of ours under _CLASS_HEADERS."""
    values = dict(zip(row.classes, row.class_means(), strict=True))
    return [
        label,
        percent(row.mean()),
        *("" if np.isnan(values[name]) else percent(values[name]) for name in VOC_CLASSES),
    ]


def _add_missing(page: Page, names: Sequence[str], ours: Sequence[TestedRow], runs: Sequence[Run]) -> None:
    """Adds a command for every set of scales that lacks rows of these names."""
    lines = []
    for scales, experiment in EXPERIMENTS.items():
        tested = {row.name for row in ours if row.scales == scales}
        if missing := [name for name in names if name not in tested]:
            lines.append(f"{SCALES_TEXT[scales]}: {', '.join(missing)}: {detection_command(experiment, runs)}")
    if lines:
        page.text("Not run yet, with the command that does it:")
    for line in lines:
        page.text(line)


def _add_others(page: Page, rows: Sequence[TestedRow]) -> None:
    """Adds a section for every data set of detectors that cannot be beside the paper's."""
    for block in by_protocol(rows):
        page.heading(f"Other detectors: {protocol_text(block)}")
        add_rows(page, block)
        add_classes(page, block)
