"""Tables of transferred features: how networks, views, means and gains are written, and the notes below them."""

import statistics
from collections.abc import Sequence

from sppnet.results.comparisons import gain_text, percent
from sppnet.results.decisions import ACCURACIES, PRECISIONS
from sppnet.results.page import Page
from sppnet.results.runs import VARIANTS
from sppnet.results.transfers import Feature, Gain, gain, pixels_baseline, untrained_baseline


def add_features(page: Page, found: Sequence[Feature]) -> None:
    """Adds a table of features of one protocol with their gains over the baselines among them, and notes about it."""
    names, labels = measure_names(found[0]), network_labels(found)
    several_runs = any(len(feature.runs) > 1 for feature in found)
    headers = ["network", "trained on", "view", "layer", "length", "runs", "splits"]
    headers += [f"{quantity_text(found[0])} in %, {names[0]}", names[1], *["± over runs"] * several_runs]

    rows = []
    for feature, label in zip(found, labels, strict=True):
        cells = [label, training_text(feature), view_text(feature), feature.about["layer"]]
        cells += [f"{feature.about['length']:,}", *count_cells(feature)]
        values = [mean_text(feature, name) for name in names] + [_runs_text(feature, names[0])] * several_runs
        rows.append([*cells, *values])

    gains = []
    for name, find in {"untrained": untrained_baseline, "pixels": pixels_baseline}.items():
        column = [_gain_over(feature, find(feature, found)) for feature in found]
        if present := [one for one in column if one is not None]:
            gains += present
            headers.append(f"gain over {name}")
            rows = [[*row, gain_cell(one)] for row, one in zip(rows, column, strict=True)]
    page.table(headers, rows)

    for line in [*spread_notes(found), *_gain_notes(gains), *_network_notes(found, labels)]:
        page.text(line)


def _gain_over(feature: Feature, baseline: Feature | None) -> Gain | None:
    return None if baseline is None else gain(feature, baseline)


def measure_names(feature: Feature) -> tuple[str, str]:
    """Returns the names of the two measures of a feature."""
    return PRECISIONS if feature.shape[2] else ACCURACIES


def quantity_text(feature: Feature) -> str:
    """Names what the measures of a feature are of."""
    return "mAP" if feature.shape[2] else "accuracy"


def protocol_text(found: Sequence[Feature]) -> str:
    """Describes the data of features of one protocol."""
    about, (n, classes, _) = found[0].about, found[0].shape
    return f"{about['data_text']}: {classes} classes, {about['n_train']:,} training and {n:,} test images"


def network_label(feature: Feature) -> str:
    """Names the network of a feature by its architecture and pyramid."""
    if feature.is_pixels:
        return "raw 16 x 16 pixels"
    network = feature.about["network"]
    levels = "no SPP" if network["levels"] is None else f"SPP {', '.join(map(str, network['levels']))}"
    return f"{network['name']}, {VARIANTS.get(network['variant'] or '', levels)}"


def network_labels(found: Sequence[Feature]) -> list[str]:
    """Names the networks of features, with a number where several settings have the same name."""
    names = [(network_label(feature), training_text(feature)) for feature in found]
    settings: dict[tuple[str, str], list[str]] = {}
    for name, feature in zip(names, found, strict=True):
        others = settings.setdefault(name, [])
        if not feature.is_pixels and feature.setting not in others:
            others.append(feature.setting)

    return [
        f"{name[0]} [{settings[name].index(feature.setting) + 1}]" if len(settings[name]) > 1 else name[0]
        for name, feature in zip(names, found, strict=True)
    ]


def training_text(feature: Feature) -> str:
    """Names what the network of a feature was trained on; "" for pixels."""
    network = feature.about["network"]
    if feature.is_pixels:
        return ""
    if network["trained_on"] is None:
        return "nothing (random weights)"
    if network["trained_on"] == "timm":
        return "timm's weights"
    return "ImageNet" if network["on_imagenet"] else str(network["trained_on"])


def view_text(feature: Feature) -> str:
    """Names the view and its scale, and paddings and C that are not the usual ones."""
    about = feature.about
    aligned = ", aligned paddings" if about["aligned"] else ""
    cost = f", C={about['C']:g}" if about["C"] != 1 else ""
    return f"{about['view']} {about['scale']}{aligned}{cost}"


def count_cells(feature: Feature) -> list[str]:
    """Returns the cells of the numbers of runs and splits; "7 of 10" splits where not all are done."""
    done = len(feature.splits)
    planned = max(transfer.about["splits"] for split in feature.splits for transfer in feature.at(split))
    return [f"{len(feature.runs)}", f"{done}" if done >= planned else f"{done} of {planned}"]


def mean_text(feature: Feature, measure: str) -> str:
    """Formats the mean of a measure in %, with its standard deviation over splits if there are several."""
    deviation = feature.deviation(measure)
    return percent(feature.mean(measure)) + ("" if deviation is None else f" ± {percent(deviation)}")


def _runs_text(feature: Feature, measure: str) -> str:
    """Formats the standard deviation over runs of their means over splits, in %; "" with one run."""
    return percent(statistics.stdev(feature.means(measure))) if len(feature.runs) > 1 else ""


def gain_cell(value: Gain | None) -> str:
    """Formats a gain in % with its interval; "" without one."""
    return "" if value is None else gain_text(value.value, value.low, value.high)


def spread_notes(found: Sequence[Feature]) -> list[str]:
    """Says what ± is, and by which SVMs."""
    if not found:
        return []
    solvers = sorted({f"{feature.about['solver']} with C={feature.about['C']:g}" for feature in found})
    several = any(len(feature.splits) > 1 for feature in found)
    spread = "±: standard deviation over random splits, with several runs its mean over them. " if several else ""
    return [f"{spread}SVMs: {'; '.join(solvers)}."]


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
