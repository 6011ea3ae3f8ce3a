"""Every tested detector: a page of tables, precision-recall curves and pictures."""

from collections.abc import Sequence

import numpy as np

from sppnet.results.comparisons import percent
from sppnet.results.detection_cells import (
    add_classes,
    add_rows,
    proposals_text,
    protocol_text,
    recall_text,
    row_names,
    scales_text,
)
from sppnet.results.detection_combinations import combined_detectors
from sppnet.results.detection_pictures import COLORS_TEXT, KINDS, Picture, pictures_file, read_pictures
from sppnet.results.detector_runs import DetectorTest, TestedRow, by_protocol, by_row, protocol
from sppnet.results.page import Page
from sppnet.results.plots import precision_curves
from sppnet.runtime.checkout import shown_command

_MOST_PANELS = 20  # plots of more classes show the ends only
_MOST_CURVES = 6


def detection_page(tests: Sequence[DetectorTest], combine: Sequence[str] = ()) -> Page:
    """Makes a page of every row, by data set: precisions with gains, by class, curves, and pictures of the best row.

    Args:
        combine: detections to combine, each as `combined_detectors` takes them.

    Raises ValueError without any detections, and what `combined_detectors` raises.
    """
    if not tests:
        raise ValueError(
            f"no detections in these runs; do it with {shown_command('detect')} network=RUN data=voc data.root=PATH"
        )
    page = Page("Detection: SVMs on windows pooled from maps of whole images")
    combinations = [combined_detectors(text, tests) for text in combine]
    for rows in by_protocol(by_row(tests)):
        page.heading(protocol_text(rows))
        of_block = [one for one in combinations if protocol(one.row.about) == protocol(rows[0].about)]
        add_rows(page, rows, of_block)
        _add_recall(page, rows)
        add_classes(page, rows)
        _add_curves(page, rows)
        _add_pictures(page, max(rows, key=TestedRow.mean))
    return page


def _add_recall(page: Page, rows: Sequence[TestedRow]) -> None:
    """Adds the share of objects that proposals overlap well enough, where it was recorded."""
    texts = dict.fromkeys(
        f"{proposals_text(row.about['proposals'])}: {recall_text(row.about['recall'])}"
        for row in rows
        if row.about.get("recall")
    )
    if texts:
        page.text(f"Recall of the windows, at most what a detector can find. {'; '.join(texts)}.")


def _add_curves(page: Page, rows: Sequence[TestedRow]) -> None:
    """Adds precision by recall, a panel per class, of the rows with the highest mean average precision."""
    best = sorted(rows, key=TestedRow.mean, reverse=True)[:_MOST_CURVES]
    shown = [row for row in rows if row in best]
    values = best[0].class_means()
    classes = np.flatnonzero(~np.isnan(values))
    if not len(classes):
        return
    if len(classes) > _MOST_PANELS:
        by_value = classes[np.argsort(-values[classes], kind="stable")]
        classes = np.concatenate([by_value[: _MOST_PANELS // 2], by_value[-_MOST_PANELS // 2 :]])
        page.text(f"The {_MOST_PANELS // 2} classes with the highest and the lowest average precision:")

    curves = {name: row.curves()[classes] for row, name in zip(shown, row_names(shown), strict=True)}
    titles = [f"{rows[0].classes[label]}: {percent(values[label])}" for label in classes]
    figure = precision_curves(curves, titles)
    page.figure(figure, f"highest precision at each recall or more, by class: {'; '.join([*curves, *titles])}")
    page.text(f"In the titles: 11-point average precision of {best[0].name}.")


def _add_pictures(page: Page, row: TestedRow) -> None:
    """Adds the pictures of the first run of a row, if it has any."""
    path = pictures_file(row.tests[0].path)
    if not path.is_file():
        return
    pictures = read_pictures(path)
    page.text(
        f"Pictures of {row.name}, {scales_text(row.scales)}, which has the highest mean. {COLORS_TEXT} Of each class, "
        "the detections from that score on are shown at which the harmonic mean of precision and recall is highest."
    )
    for kind, title in KINDS.items():
        if of_kind := [picture for picture in pictures if picture.kind == kind]:
            page.text(f"{title}.")
            page.pictures([(picture.jpeg, _caption(picture)) for picture in of_kind])


def _caption(picture: Picture) -> str:
    return f"{picture.class_name}: {picture.caption}" if picture.class_name else picture.caption
