"""Pages of what a network responds to in a data set, and of what speaks for its classes in photos."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from sppnet.data.images import decode_image
from sppnet.data.sources import LabelledImages, read_image
from sppnet.network import SPPNet
from sppnet.results.page import Page
from sppnet.results.statistics import mean_interval
from sppnet.runtime.names import printable
from sppnet.use.evidence import Evidence, strongest_cells
from sppnet.use.explain import Explained
from sppnet.use.explanation_pictures import map_picture, response_pictures, strongest_windows_picture
from sppnet.use.greying import Greying
from sppnet.use.network_views import MapCells, NetworkView
from sppnet.use.responses import StrongestResponses

_COLUMNS = 5
_SHOWN_CLASSES = 5  # of a photo, the most probable ones


def cells_text(cells: MapCells, layer: str) -> str:
    """Returns what a cell of a layer sees, in a sentence or two."""
    if cells.is_receptive_field:
        return f"A cell of {layer} sees {cells.side} x {cells.side} pixels, its receptive field."
    return (
        f"timm does not tell what a cell of {layer} sees, which is more than the boxes: they are the "
        f"{cells.side} x {cells.side} pixels around its centre."
    )


def add_filter(
    page: Page,
    number: int,
    strongest: StrongestResponses,
    images: LabelledImages,
    view: NetworkView,
    cells: MapCells,
) -> None:
    """Adds the strongest responses of one filter to a page: a square and an image each, with class, value, position."""
    pictures = []
    for value, index, cell in zip(
        strongest.values[number], strongest.images[number], strongest.cells[number], strict=True
    ):
        if value == -np.inf:
            break
        encoded, name = read_image(images, int(index))
        image = view.image(decode_image(encoded, name))
        x, y = (round(float(place)) for place in cells.centers(cell))
        class_name = images.classes[images.labels[int(index)]]
        text = printable(f"{class_name}: {value:.3g}") + "\n" + printable(name) + f"\nat ({x}, {y})"
        pictures.append((response_pictures(image, cell, cells), text))

    page.heading(f"Filter {number}")
    if pictures:
        page.grid(pictures, columns=_COLUMNS)
    else:
        page.text("It responds to no image.")


def filters_table(
    filters: Sequence[int], strongest: StrongestResponses, images: LabelledImages
) -> tuple[list[str], list[list[str]]]:
    """Returns the headers and rows of a table of filters: their strongest response, and the classes of their images."""
    rows = []
    for number in filters:
        shown = strongest.values[number] > -np.inf
        names = Counter(images.classes[images.labels[int(i)]] for i in strongest.images[number][shown])
        classes = ", ".join(printable(f"{name} {count}") for name, count in names.most_common())
        value = f"{strongest.values[number][0]:.3g}" if shown.any() else "none"
        rows.append([str(number), value, classes])
    return ["filter", "strongest response", "classes of its images"], rows


def greying_text(greying: Greying, side: int) -> str:
    """Returns the result of a check in a sentence, with 95 % intervals."""
    means = []
    for drops in (greying.strongest, greying.random, greying.strongest - greying.random):
        mean, low, high = mean_interval(drops)
        means.append(f"{mean:.3f} ({low:.3f} to {high:.3f})")
    return (
        f"Greying {side} x {side} pixels around the cell that speaks most for the predicted class lowered its "
        f"probability by {means[0]}, around a random cell by {means[1]}: {means[2]} more. Means over "
        f"{len(greying.random):,} images with 95 % intervals."
    )


def add_photo(page: Page, network: SPPNet, explained: Explained, layer: str) -> None:
    """Adds a photo to a page: its classes, what speaks for one of them by place and by level, and its filters."""
    evidence, image = explained.evidence, explained.image
    title = class_title(network, explained.target)
    page.heading(printable(explained.name))
    page.text(_evidence_text(network, explained))

    cells = MapCells.of(network, network.backbone.layers[-1])
    found = strongest_cells(evidence.by_cell, cells)
    values = ", ".join(f"{i + 1}: {evidence.by_cell[y, x]:+.2f}" for i, (x, y) in enumerate(found.tolist()))
    windows = f"The windows that speak most for {title}. {values}" if values else f"Nothing speaks for {title}."
    pictures = [
        (strongest_windows_picture(image, found, cells), windows),
        (
            map_picture(image, torch.from_numpy(evidence.by_cell), cells),
            f"Red to yellow: what speaks for {title}; blue: against it",
        ),
    ]
    page.pictures(pictures, width=520)
    if evidence.total <= 0:
        page.text(f"In sum, the image speaks against {title}: the windows are the little that speaks for it.")
    page.text(f"What speaks for {title}, minus what speaks against it, by level of the pyramid:")
    page.table(*_level_table(network, evidence))

    cells = MapCells.of(network, layer)
    if explained.filters:
        page.text(f"The filters of {layer} that respond most, and where; the dot is the strongest response:")
        page.grid([_filter_picture(explained, number, cells) for number in explained.filters], columns=_COLUMNS)
    else:
        page.text(f"No filter of {layer} responds to this image.")


def _evidence_text(network: SPPNet, explained: Explained) -> str:
    evidence, title = explained.evidence, class_title(network, explained.target)
    order = np.argsort(-evidence.probabilities, kind="stable")[:_SHOWN_CLASSES].tolist()
    classes = ", ".join(f"{class_title(network, i)} {100 * evidence.probabilities[i]:.1f} %" for i in order)
    score = f"The log odds of {title} are {evidence.score:+.2f}."
    if explained.against is not None:
        other = class_title(network, explained.against)
        score = f"The logit of {title} minus that of {other} is {evidence.score:+.2f}."
    return f"{classes}. {score}"


def _filter_picture(explained: Explained, number: int, cells: MapCells) -> tuple[list[bytes], str]:
    values = explained.maps[number]
    picture = map_picture(explained.image, values, cells, longer_side=260, marks_strongest=True)
    y, x = divmod(int(values.argmax()), values.shape[1])
    place = ", ".join(f"{float(at):.0f}" for at in cells.centers(np.array([x, y])))
    return [picture], f"filter {number}: {float(values.max()):.3g}\nat ({place})"


def class_title(network: SPPNet, index: int) -> str:
    """Returns the name of a class, or "class 7" where the network knows no names."""
    return f"class {index}" if network.classes is None else printable(network.classes[index])


def _level_table(network: SPPNet, evidence: Evidence) -> tuple[list[str], list[list[str]]]:
    names = [f"{n} x {n}" for n in network.pyramid.levels]
    return [*names, "all"], [[f"{value:+.2f}" for value in (*evidence.by_level, evidence.total)]]
