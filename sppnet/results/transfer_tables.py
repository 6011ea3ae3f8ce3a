"""Tables 6, 7 and 8 of the paper from saved decisions, beside the paper's numbers where the networks compare."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sppnet.results.decisions import measure_names, quantity_text
from sppnet.results.missing import transfer_command
from sppnet.results.page import Page
from sppnet.results.paper_transfer import (
    LENGTHS,
    TABLE8,
    TABLE8_TITLE,
    TRANSFER_TABLES,
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
from sppnet.results.transferred_features import Feature, by_protocol, features, layer_order
from sppnet.results.transfers import Transfer
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
    found = _features_of(table, transfers)
    by_column = _by_column(table, found)
    first, second = measure_names(table.several_labels)

    quantity = quantity_text(table.several_labels)
    page.text(f"The paper's {quantity} in %, beside ours from networks trained on ImageNet.")
    headers = ["column", "network", "view", "layer", "length", "paper", f"ours, {first}", f"ours, {second}"]
    rows = [row for column in table.columns for row in _column_rows(column, by_column[column.experiment])]
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
    for table in TRANSFER_TABLES.values():
        for feature in _features_of(table, transfers):
            if feature.trained and _has_paper_images(table, feature):
                bests = best.setdefault(training_text(feature), {})
                bests[table.source] = max(bests.get(table.source, feature), feature, key=Feature.first_mean)

    rows = [[method, *numbers] for method, numbers in TABLE8.items()]
    for trained_on, bests in best.items():
        ours = [bests.get(table.source) for table in TRANSFER_TABLES.values()]
        cells = ["-" if feature is None else mean_text(feature, feature.measure_names[0]) for feature in ours]
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


def _features_of(table: TransferTable, transfers: Sequence[Transfer]) -> list[Feature]:
    """Returns the features that were tested on the data of a table."""
    return features([transfer for transfer in transfers if transfer.about["data"].get("source") == table.source])


def _has_paper_images(table: TransferTable, feature: Feature) -> bool:
    """Whether a feature was tested on exactly the paper's numbers of classes and images."""
    shape = feature.shape
    ours = (shape.several_labels, shape.classes, feature.about["n_train"])
    if ours != (table.several_labels, table.classes, table.n_train):
        return False
    if table.test_per_class is None:
        return shape.images == table.n_test
    labels = feature.at(feature.splits[0])[0].scores.labels
    return int(np.bincount(labels).max()) == table.test_per_class


def _by_column(table: TransferTable, found: Sequence[Feature]) -> dict[str, list[Feature]]:
    """Returns experiment -> our features that belong into this column of the paper's table."""
    candidates = [f for f in found if f.trained and f.about["network"]["on_imagenet"] and _has_paper_images(table, f)]
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


def _column_texts(column: TransferColumn) -> tuple[str, str]:
    """Names the network and the view of a column."""
    return f"{column.architecture}, {VARIANTS[column.variant]}", f"{column.view} {column.scale}"


def _column_rows(column: TransferColumn, ours: Sequence[Feature]) -> list[list[str]]:
    """Returns a row for every layer of a column: those the paper has a number of, and others that were run."""
    layers = sorted({*column.numbers, *(_paper_layer(feature.about) for feature in ours)}, key=layer_order)
    rows = []
    for layer in layers:
        paper = f"{column.numbers[layer]:.2f}" if layer in column.numbers else "-"
        cells = [column.letter, *_column_texts(column), layer]
        measured = [feature for feature in ours if _paper_layer(feature.about) == layer]
        for feature in measured:
            means = [mean_text(feature, measure) for measure in feature.measure_names]
            rows.append([*cells, f"{feature.about['length']:,}", paper, *means, *count_cells(feature)])
        if not measured:
            rows.append([*cells, "", paper, "-", "-", "", ""])
    return rows


def _add_table_notes(
    page: Page, table: TransferTable, by_column: dict[str, list[Feature]], runs: Sequence[Run]
) -> None:
    """Adds what the numbers of the table mean, and the command for every column that lacks a layer."""
    ours = [feature for column in by_column.values() for feature in column]
    for line in [table.protocol, *spread_notes(ours)]:
        page.text(line)

    lines = []
    for column in table.columns:
        run = {_paper_layer(feature.about) for feature in by_column[column.experiment]}
        if missing := [layer for layer in column.numbers if layer not in run]:
            text = f"{column.letter} {', '.join(_column_texts(column))}"
            lines.append(f"{text}: {', '.join(missing)}: {transfer_command(column, runs)}")
    if lines:
        page.text("Not run yet, with the command that does it:")
    for line in lines:
        page.text(line)
