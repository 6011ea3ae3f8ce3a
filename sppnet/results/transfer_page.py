"""Every transferred feature beside its baselines: a page of tables and plots, and what the command prints."""

from collections.abc import Sequence

import numpy as np

from sppnet.results.combinations import combined
from sppnet.results.comparisons import Rows, percent
from sppnet.results.decisions import quantity_text
from sppnet.results.page import Page
from sppnet.results.plots import Estimate, LayerCurve, layer_curves
from sppnet.results.scores import Scores
from sppnet.results.transfer_cells import (
    add_features,
    gains_cell,
    gains_over,
    mean_text,
    measure_headers,
    network_label,
    network_labels,
    protocol_text,
    training_text,
    view_text,
)
from sppnet.results.transferred_features import (
    Feature,
    by_protocol,
    features,
    layer_order,
    pixels_baseline,
    protocol,
    untrained_baseline,
)
from sppnet.results.transfers import Transfer
from sppnet.runtime.checkout import shown_command

_ALL_CLASSES = 40  # tables by class of more classes show the ends only
_ENDS = 10


def transfer_page(transfers: Sequence[Transfer], combine: Sequence[str] = ()) -> Page:
    """Makes a page of every feature, by data set, beside the untrained network and raw pixels.

    Args:
        combine: features to combine, each as `combined` takes them: "pool5+fc7".

    Raises ValueError without any features, and what `combined` raises.
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
    combinations = [combined(text, transfers) for text in combine]
    for found in by_protocol(features(transfers)):
        page.heading(protocol_text(found))
        add_features(
            page, found, [one for one in combinations if protocol(one.feature.about) == protocol(found[0].about)]
        )
        _add_plot(page, found)
        _add_classes(page, found)
    return page


def summary_table(decisions: Sequence[Scores]) -> Rows:
    """Tabulates decisions just made, each of one feature and split: trained networks, then untrained ones, then pixels.

    Args:
        decisions: all of the same data set and number of training images.
    """
    found = features([Transfer.in_memory(scores) for scores in decisions])
    headers = ["layer", "view", "length", "splits", *measure_headers(found[0]), "gain over untrained (95 % interval)"]
    rows = []
    for feature in found:
        about = feature.about
        layer = about["layer"] + ("" if feature.trained or feature.is_pixels else ", untrained")
        cells = [layer, view_text(feature), f"{about['length']:,}", f"{len(feature.splits)}"]
        gained = gains_cell(gains_over(feature, untrained_baseline(feature, found)))
        rows.append([*cells, *(mean_text(feature, name) for name in feature.measure_names), gained])
    return headers, rows


# The plot and the table by class.


def _add_plot(page: Page, found: Sequence[Feature]) -> None:
    """Adds a plot by layer: a curve per network and view, trained or not, and pixels as a level."""
    measure, labels = found[0].measure_names[0], network_labels(found)
    curves: dict[str, LayerCurve] = {}
    levels: dict[str, float] = {}
    networks: dict[tuple[str, str], int] = {}  # (setting, view) -> the number of the network in the plot
    for feature, label in zip(found, labels, strict=True):
        name = f"{label}, {view_text(feature)}"
        if feature.is_pixels:
            levels[name] = 100 * feature.first_mean()
            continue

        name += f", trained on {training_text(feature)}" if feature.trained else ", untrained"
        number = networks.setdefault((feature.setting, view_text(feature)), len(networks))
        curve = curves.setdefault(name, LayerCurve(name, {}, number, feature.trained))
        curve.points[feature.about["layer"]] = Estimate.of(feature.first_mean(), feature.interval())

    if layers := sorted({layer for curve in curves.values() for layer in curve.points}, key=layer_order):
        quantity = f"{quantity_text(found[0].shape.several_labels)}, {measure}"
        figure = layer_curves(list(curves.values()), layers, levels, quantity)
        caption = (
            f"{protocol_text(found)}. 95 % intervals: over splits, for these trained networks; with one split over its "
            "test images, and over training runs if there are several."
        )
        page.figure(figure, f"{quantity}, by layer: {'; '.join([*curves, *levels])}", caption)


def _add_classes(page: Page, found: Sequence[Feature]) -> None:
    """Adds a table by class of the best trained feature beside its baselines, the largest gain first."""
    trained = [feature for feature in found if feature.trained]
    if not trained:
        return
    best = max(trained, key=Feature.first_mean)
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
    unit = "average precision" if feature.shape.several_labels else "accuracy"
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
