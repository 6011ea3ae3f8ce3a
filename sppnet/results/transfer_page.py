"""Every transferred feature beside its baselines: a page of tables and plots, and what the command prints."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sppnet.results.comparisons import Rows, percent
from sppnet.results.page import Page
from sppnet.results.plots import LayerCurve, layer_curves
from sppnet.results.scores import Scores
from sppnet.results.transfer_cells import (
    add_features,
    gain_cell,
    mean_text,
    measure_names,
    network_label,
    network_labels,
    protocol_text,
    quantity_text,
    training_text,
    view_text,
)
from sppnet.results.transfers import (
    Feature,
    Transfer,
    by_protocol,
    features,
    gain,
    layer_order,
    pixels_baseline,
    untrained_baseline,
)
from sppnet.runtime.checkout import shown_command

_ALL_CLASSES = 40  # tables by class of more classes show the ends only
_ENDS = 10


def transfer_page(transfers: Sequence[Transfer]) -> Page:
    """Makes a page of every feature, by data set, beside the untrained network and raw pixels.

    Raises ValueError without any.
    """
    if not transfers:
        raise ValueError(
            f"no decisions of transfer in these runs; do it with {shown_command('transfer')} run=RUN data=folder "
            "data.root=PATH"
        )
    page = Page("Transfer: linear SVMs on frozen features")
    page.text(
        "One linear SVM per class on l2-normalized features of whole networks that are not trained further. Gains are "
        "counted on the same splits from the same layer of the same network with random weights, and from raw 16 x 16 "
        "pixels."
    )
    for found in by_protocol(features(transfers)):
        page.heading(protocol_text(found))
        add_features(page, found)
        _add_plot(page, found)
        _add_classes(page, found)
    return page


def summary_table(decisions: Sequence[tuple[dict[str, Any], Scores]]) -> Rows:
    """Tabulates decisions just made, each of one feature and split: trained networks, then untrained ones, then pixels.

    Args:
        decisions: (`Scores.about`, scores), all of the same data set and number of training images.
    """
    found = features([Transfer.in_memory(about, scores) for about, scores in decisions])
    first, second = measure_names(found[0])
    headers = ["layer", "view", "length", "splits", f"{quantity_text(found[0])} in %, {first}", second]
    headers.append("gain over untrained (95 % interval)")
    rows = []
    for feature in found:
        about = feature.about
        layer = about["layer"] + ("" if feature.trained or feature.is_pixels else ", untrained")
        cells = [layer, view_text(feature), f"{about['length']:,}", f"{len(feature.splits)}"]
        baseline = untrained_baseline(feature, found)
        gained = gain_cell(None if baseline is None else gain(feature, baseline))
        rows.append([*cells, mean_text(feature, first), mean_text(feature, second), gained])
    return headers, rows


# The plot and the table by class.


def _add_plot(page: Page, found: Sequence[Feature]) -> None:
    """Adds a plot by layer: a curve per network and view, untrained ones dashed, pixels as a level."""
    measure, labels = measure_names(found[0])[0], network_labels(found)
    curves: dict[str, LayerCurve] = {}
    levels: dict[str, float] = {}
    networks: list[str] = []
    for feature, label in zip(found, labels, strict=True):
        mean, deviation = 100 * feature.mean(measure), feature.deviation(measure)
        network = f"{label}, {view_text(feature)}"
        if feature.is_pixels:
            levels[network] = mean
            continue

        networks += [] if network in networks else [network]
        name = f"{network}, {f'trained on {training_text(feature)}' if feature.trained else 'untrained'}"
        curve = curves.setdefault(name, LayerCurve(name, {}, networks.index(network), not feature.trained))
        curve.points[feature.about["layer"]] = (mean, None if deviation is None else 100 * deviation)

    if layers := sorted({layer for curve in curves.values() for layer in curve.points}, key=layer_order):
        quantity = f"{quantity_text(found[0])}, {measure}"
        figure = layer_curves(list(curves.values()), layers, levels, quantity)
        page.figure(figure, f"{quantity}, by layer: {'; '.join([*curves, *levels])}")


def _add_classes(page: Page, found: Sequence[Feature]) -> None:
    """Adds a table by class of the best trained feature beside its baselines, the largest gain first."""
    measure = measure_names(found[0])[0]
    trained = [feature for feature in found if feature.trained]
    if not trained:
        return
    best = max(trained, key=lambda feature: feature.mean(measure))
    headers, rows = classes_table(best, [untrained_baseline(best, found), pixels_baseline(best, found)])

    text = f"By class: {network_label(best)}, {view_text(best)}, {best.about['layer']}, the best on these test images"
    if len(rows) > _ALL_CLASSES:
        text += f"; the first {_ENDS} and the last {_ENDS} of {len(rows)} classes"
        rows = rows[:_ENDS] + rows[-_ENDS:]
    page.text(f"{text}. Means over splits and runs.")
    page.table(headers, rows)


def classes_table(feature: Feature, baselines: Sequence[Feature | None]) -> Rows:
    """Tabulates a feature by class beside its baselines, sorted by the gain over the first that there is.

    Args:
        baselines: the untrained network and the pixels; None for one that was not run.
    """
    unit = "average precision" if feature.shape[2] else "accuracy"
    names = [name for name, one in zip(("untrained", "pixels"), baselines, strict=True) if one is not None]
    values = [feature.class_means(), *(one.class_means() for one in baselines if one is not None)]
    headers = ["class", f"{unit} in %", *names, *([f"gain over {names[0]}"] if names else [])]

    order, gains = values[0], np.zeros(0)
    if names:
        order = gains = values[0] - values[1]
    rows = []
    for label in np.argsort(-np.nan_to_num(order, nan=-np.inf), kind="stable"):
        cells = ["" if np.isnan(value[label]) else percent(value[label]) for value in values]
        gained = ["" if np.isnan(gains[label]) else f"{100 * gains[label]:+.2f}"] if names else []
        rows.append([feature.about["classes"][label], *cells, *gained])
    return headers, rows
