"""Tables of transferred features: how networks, views, means and gains are written, and the notes below them."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from sppnet.results.combinations import Combination
from sppnet.results.comparisons import gain_text, percent
from sppnet.results.decisions import quantity_text
from sppnet.results.network_records import numbered_labels, record_label, record_training
from sppnet.results.page import Page
from sppnet.results.transferred_features import Feature, Gain, gain, pixels_baseline, untrained_baseline


class _Row(NamedTuple):
    """A row of the table of features."""

    texts: list[str]  # network, what it was trained on, view, layer, length
    feature: Feature
    baselines: Mapping[str, Sequence[Feature | None]]  # what gains are counted from; None for one that was not run


def add_features(page: Page, found: Sequence[Feature], combinations: Sequence[Combination] = ()) -> None:
    """Adds a table of features of one protocol with their gains over the baselines among them, and notes about it.

    Args:
        found: the features.
        combinations: of some of them, as rows below.
    """
    labels = network_labels(found)
    rows = [_feature_row(feature, label, found) for feature, label in zip(found, labels, strict=True)]
    rows += [_combination_row(combination, found) for combination in combinations]

    several_runs = any(len(row.feature.runs) > 1 for row in rows)
    headers = ["network", "trained on", "view", "layer", "length", "runs", "splits"]
    headers += [*measure_headers(found[0]), *["± over runs"] * several_runs]
    cells = []
    for row in rows:
        means = [mean_text(row.feature, name) for name in row.feature.measure_names]
        cells.append([*row.texts, *count_cells(row.feature), *means, *[_runs_text(row.feature)] * several_runs])

    gains: list[Gain] = []
    for name in ("untrained", "pixels", "each part"):
        column = [gains_over(row.feature, *row.baselines.get(name, ())) for row in rows]
        if any(column):
            headers.append(f"gain over {name}")
            cells = [[*row, gains_cell(one)] for row, one in zip(cells, column, strict=True)]
            gains += chain.from_iterable(column)
    page.table(headers, cells)

    notes = [*spread_notes(found), *_combination_notes(combinations), *_gain_notes(gains)]
    for line in [*notes, *_network_notes(found, labels)]:
        page.text(line)


def _feature_row(feature: Feature, label: str, found: Sequence[Feature]) -> _Row:
    baselines = {"untrained": [untrained_baseline(feature, found)], "pixels": [pixels_baseline(feature, found)]}
    return _Row(_texts(feature, label), feature, baselines)


def _combination_row(combination: Combination, found: Sequence[Feature]) -> _Row:
    """Returns a row with the layers of all parts, and of the other texts those that differ, joined by +."""
    parts = combination.parts
    labels = network_labels([*found, *parts])[len(found) :]
    columns = list(zip(*map(_texts, parts, labels), strict=True))
    texts = [" + ".join(column) if len(set(column)) > 1 else column[0] for column in columns]
    texts[3] = combination.feature.about["layer"]

    pixels = [pixels_baseline(part, found) for part in parts]
    shared = pixels[:1] if all(one is pixels[0] for one in pixels) else []
    return _Row(texts, combination.feature, {"pixels": shared, "each part": parts})


def _texts(feature: Feature, label: str) -> list[str]:
    """Returns the first cells of a row: what the feature is."""
    about = feature.about
    return [label, training_text(feature), view_text(feature), about["layer"], f"{about['length']:,}"]


def gains_over(feature: Feature, *baselines: Feature | None) -> list[Gain]:
    """Returns the gain over every baseline that was run on splits that the feature has, too."""
    gains = [gain(feature, baseline) for baseline in baselines if baseline is not None]
    return [one for one in gains if one is not None]


def measure_headers(feature: Feature) -> list[str]:
    """Returns the headers of the two measures of a feature."""
    first, second = feature.measure_names
    return [f"{quantity_text(feature.shape.several_labels)} in %, {first}", second]


def protocol_text(found: Sequence[Feature]) -> str:
    """Describes the data of features of one protocol."""
    about, shape = found[0].about, found[0].shape
    images = f"{about['n_train']:,} training and {shape.images:,} test images"
    return f"{about['data_text']}: {shape.classes} classes, {images}"


def network_label(feature: Feature) -> str:
    """Names the network of a feature by its architecture and pyramid."""
    return "raw 16 x 16 pixels" if feature.is_pixels else record_label(feature.about["network"])


def network_labels(found: Sequence[Feature]) -> list[str]:
    """Names the networks of features, with a number where several settings have the same name."""
    names = [(network_label(feature), training_text(feature)) for feature in found]
    return numbered_labels(names, [None if feature.is_pixels else feature.setting for feature in found])


def training_text(feature: Feature) -> str:
    """Names what the network of a feature was trained on; "" for pixels."""
    return "" if feature.is_pixels else record_training(feature.about["network"])


def view_text(feature: Feature) -> str:
    """Names the view and its scale, and paddings and C that are not the usual ones."""
    about = feature.about
    aligned = ", aligned paddings" if about["aligned"] else ""
    cost = f", C={about['C']:g}" if about["C"] != 1 else ""
    return f"{about['view']} {about['scale']}{aligned}{cost}"


def count_cells(feature: Feature) -> list[str]:
    """Returns the cells of the numbers of runs and splits; "7 of 10" splits where not all are done."""
    done = len(feature.splits)
    planned = max(transfer.about["splits"] for transfer in feature.transfers)
    return [f"{len(feature.runs)}", f"{done}" if done >= planned else f"{done} of {planned}"]


def mean_text(feature: Feature, measure: str) -> str:
    """Formats the mean of a measure in %, with its standard deviation over splits if there are several."""
    deviation = feature.deviation(measure)
    return percent(feature.mean(measure)) + ("" if deviation is None else f" ± {percent(deviation)}")


def _runs_text(feature: Feature) -> str:
    """Formats the standard deviation over runs of their means over splits, in %; "" with one run."""
    means = feature.means(feature.measure_names[0])
    return percent(statistics.stdev(means)) if len(means) > 1 else ""


def gains_cell(gains: Sequence[Gain]) -> str:
    """Formats gains in % with their intervals; "" without any."""
    return ", ".join(gain_text(one.value, one.low, one.high) for one in gains)


def spread_notes(found: Sequence[Feature]) -> list[str]:
    """Says what ± is, and by which SVMs."""
    if not found:
        return []
    solvers = sorted({f"{feature.about['solver']} with C={feature.about['C']:g}" for feature in found})
    several = any(len(feature.splits) > 1 for feature in found)
    spread = "±: standard deviation over random splits, with several runs its mean over them. " if several else ""
    return [f"{spread}SVMs: {'; '.join(solvers)}."]


def _combination_notes(combinations: Sequence[Combination]) -> list[str]:
    """Says what combinations are."""
    if not combinations:
        return []
    return [
        "A + B: features combined by the mean of the decision values of their SVMs, with equal weights. Gains over "
        "each part are in this order."
    ]


def _gain_notes(gains: Sequence[Gain]) -> list[str]:
    """Says what the intervals of these gains cover."""
    lines = []
    if any(one.over_splits for one in gains):
        lines.append(
            "Gains with 95 % intervals over splits, for these trained networks: the corrected resampled t-test of "
            "Nadeau and Bengio (2003), as splits share images."
        )
    if not all(one.over_splits for one in gains):
        lines.append(
            "Gains with one split: no interval over splits; 95 % intervals over its test images only, and over "
            "training runs where both sides have several and images have one label."
        )
    return lines


def _network_notes(found: Sequence[Feature], labels: Sequence[str]) -> list[str]:
    """Describes every network in words."""
    texts = {
        f"{label}: {feature.about['network']['text']}"
        for feature, label in zip(found, labels, strict=True)
        if not feature.is_pixels
    }
    return [f"Networks: {'; '.join(sorted(texts))}."] if texts else []
