"""Tables 6, 7 and 8 of the paper from saved decisions, beside the paper's numbers where the networks compare."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sppnet.results.decisions import ACCURACIES, PRECISIONS
from sppnet.results.missing import transfer_command
from sppnet.results.page import Page
from sppnet.results.paper_transfer import (
    CALTECH101,
    CALTECH101_CLASSES,
    CALTECH101_TEST,
    CALTECH101_TRAIN,
    LENGTHS,
    TABLE8,
    TABLE8_TITLE,
    TRANSFER_TABLES,
    VOC2007,
    VOC2007_IMAGES,
    TransferColumn,
    TransferTable,
)
from sppnet.results.runs import VARIANTS, Run
from sppnet.results.transfer_cells import (
    add_features,
    count_cells,
    mean_text,
    network_label,
    protocol_text,
    spread_notes,
    training_text,
    view_text,
)
from sppnet.results.transfers import Feature, Transfer, by_protocol, features, layer_order
from sppnet.runtime.checkout import shown_command


def transfer_table_page(name: str, transfers: Sequence[Transfer], runs: Sequence[Run]) -> Page:
    """Makes the page of one of TRANSFER_TABLES.

    Only networks trained on ImageNet, on the table's own data and images, are beside the paper's numbers. All others
    are in tables of their own.

    Args:
        runs: in which commands for missing columns look for the networks.
    """
    table = TRANSFER_TABLES[name]
    page = Page(table.title)
    found = features([transfer for transfer in transfers if transfer.about["data"].get("source") == table.source])
    by_column = _by_column(table, found)
    first, second = _measure_names(table)

    page.text(f"{_quantity(table)} in %, the paper's beside ours from networks trained on ImageNet.")
    headers = ["column", "network", "view", "layer", "length", "paper", f"ours, {first}", f"ours, {second}"]
    rows = [row for column in table.columns for row in _column_rows(table, column, by_column[column.experiment])]
    page.table([*headers, "runs", "splits"], rows)
    _add_table_notes(page, table, by_column, runs)

    in_columns = {id(feature) for column in by_column.values() for feature in column}
    others = [feature for feature in found if id(feature) not in in_columns]
    for block in by_protocol(others):
        page.heading(f"Other networks: {protocol_text(block)}")
        add_features(page, block)
    return page


def table8_page(transfers: Sequence[Transfer]) -> Page:
    """Makes the page of Table 8: the paper's list of methods, and the best of ours by what it was trained on."""
    page = Page(TABLE8_TITLE)
    page.text("Mean average precision on VOC 2007 and accuracy on Caltech-101 in %, as the paper prints them.")
    best: dict[str, dict[str, Feature]] = {"ImageNet": {}}
    for table in (VOC2007, CALTECH101):
        for feature in features([one for one in transfers if one.about["data"].get("source") == table.source]):
            if feature.trained and _is_of_table(table, feature):
                bests = best.setdefault(training_text(feature), {})
                measure = _measure_names(table)[0]
                leader = bests.setdefault(table.source, feature)
                if feature.mean(measure) > leader.mean(measure):
                    bests[table.source] = feature

    rows = [[method, *numbers] for method, numbers in TABLE8.items()]
    for trained_on, bests in best.items():
        cells = [mean_text(bests[t.source], _measure_names(t)[0]) if t.source in bests else "-" for t in _TABLES]
        rows.append([f"ours, trained on {trained_on}", *cells])
    page.table(["method", "VOC 2007", "Caltech-101"], rows)

    lines = [
        f"{source}: {network_label(feature)}, {view_text(feature)}, {feature.about['layer']}, trained on {trained_on}"
        for trained_on, bests in best.items()
        for source, feature in bests.items()
    ]
    if lines:
        page.text(
            f"Ours is the best of all that were run, chosen by these test images and so a little too good: "
            f"{'; '.join(lines)}. VOC 2007: average precision by recall at 11 points. Caltech-101: share of all images."
        )
    if not best["ImageNet"]:
        page.text(f"Ours on ImageNet: not run yet; `{shown_command('tables')} table6` and table7 have the commands.")
    return page


# Tables 6 and 7.

_TABLES = (VOC2007, CALTECH101)


def _measure_names(table: TransferTable) -> tuple[str, str]:
    return PRECISIONS if table is VOC2007 else ACCURACIES


def _quantity(table: TransferTable) -> str:
    return "Mean average precision" if table is VOC2007 else "Accuracy"


def _is_of_table(table: TransferTable, feature: Feature) -> bool:
    """Whether a feature was tested on exactly the paper's numbers of classes and images."""
    (n, classes, several_labels), about = feature.shape, feature.about
    if table is VOC2007:
        return several_labels and (about["n_train"], n) == VOC2007_IMAGES
    if several_labels or (classes, about["n_train"]) != (CALTECH101_CLASSES, CALTECH101_CLASSES * CALTECH101_TRAIN):
        return False
    labels = feature.at(feature.splits[0])[0].scores.labels
    return int(np.bincount(labels).max()) == CALTECH101_TEST


def _by_column(table: TransferTable, found: Sequence[Feature]) -> dict[str, list[Feature]]:
    """Returns experiment -> our features that belong into this column of the paper's table."""
    candidates = [f for f in found if f.trained and f.about["network"]["on_imagenet"] and _is_of_table(table, f)]
    other_widths = {feature.setting for feature in candidates if not _has_paper_length(feature)}
    candidates = [feature for feature in candidates if feature.setting not in other_widths]
    return {
        column.experiment: [feature for feature in candidates if _is_of_column(feature, column)]
        for column in table.columns
    }


def _has_paper_length(feature: Feature) -> bool:
    """Whether the feature is as long as the paper's, where that is known; narrower networks have shorter ones."""
    about = feature.about
    name = about["network"]["name"]
    lengths = LENGTHS.get(name, {}) | LENGTHS.get(f"{name}, {about['view']}", {})
    return bool(lengths.get(_paper_layer(about), about["length"]) == about["length"])


def _paper_layer(about: dict[str, Any]) -> str:
    """Returns the layer as the paper's tables name it: without a pyramid, pool5 is the one grid of 6 x 6."""
    without_pyramid = about["network"]["variant"] == "none" and about["layer"] == "pool5"
    return "pool5_6x6" if without_pyramid else str(about["layer"])


def _is_of_column(feature: Feature, column: TransferColumn) -> bool:
    about, network = feature.about, feature.about["network"]
    ours = (network["name"], network["variant"], about["view"], about["scale"], about["aligned"], about["C"])
    return bool(ours == (column.architecture, column.variant, column.view, column.scale, False, 1))


def _column_rows(table: TransferTable, column: TransferColumn, ours: Sequence[Feature]) -> list[list[str]]:
    """Returns a row for every layer of a column: those the paper has a number of, and others that were run."""
    layers = sorted({*column.numbers, *(_paper_layer(feature.about) for feature in ours)}, key=layer_order)
    names = [column.letter or "§3.3", f"{column.architecture}, {VARIANTS[column.variant]}"]
    rows = []
    for layer in layers:
        paper = f"{column.numbers[layer]:.2f}" if layer in column.numbers else "-"
        cells = [*names, f"{column.view} {column.scale}", layer]
        measured = [feature for feature in ours if _paper_layer(feature.about) == layer]
        for feature in measured:
            means = [mean_text(feature, measure) for measure in _measure_names(table)]
            rows.append([*cells, f"{feature.about['length']:,}", paper, *means, *count_cells(feature)])
        if not measured:
            rows.append([*cells, "", paper, "-", "-", "", ""])
    return rows


def _add_table_notes(
    page: Page, table: TransferTable, by_column: dict[str, list[Feature]], runs: Sequence[Run]
) -> None:
    """Adds what the numbers of the table mean, and the command for every column that lacks a layer."""
    ours = [feature for column in by_column.values() for feature in column]
    if table is VOC2007:
        page.text(
            f"{VOC2007_IMAGES[0]:,} training and {VOC2007_IMAGES[1]:,} test images, one split. The paper does not say "
            "which average precision it gives; recall at 11 points is that of VOC 2007. Labels of 0 are left out."
        )
    else:
        page.text(
            f"{CALTECH101_TRAIN} training and at most {CALTECH101_TEST} test images of each of {CALTECH101_CLASSES} "
            "categories, 10 random splits in the paper. The paper does not say whether its accuracy is that of all "
            "images or the mean over categories."
        )
    for line in spread_notes(ours):
        page.text(line)

    lines = []
    for column in table.columns:
        run = {_paper_layer(feature.about) for feature in by_column[column.experiment]}
        if missing := [layer for layer in column.numbers if layer not in run]:
            name = f"{column.letter} " if column.letter else ""
            text = f"{name}{column.architecture}, {VARIANTS[column.variant]}, {column.view} {column.scale}"
            lines.append(f"{text}: {', '.join(missing)}: {transfer_command(column, runs)}")
    for line in (["Not run yet, with the command that does it:"] if lines else []) + lines:
        page.text(line)
