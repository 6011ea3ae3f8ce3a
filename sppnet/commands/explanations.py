"""The two ways of `sppnet explain`: the strongest responses in a data set, and what speaks for a class in photos."""

import sys
import time
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig

from sppnet.classify.loading import shorter_side_for
from sppnet.commands.evaluated_runs import TestedRun, trained_crop_side
from sppnet.commands.photos import photo_places
from sppnet.commands.settings import bound
from sppnet.commands.tested_data import data_section, open_tested_data
from sppnet.data.images import decode_image
from sppnet.data.photos import find_photos
from sppnet.data.sources import SelectedImages, select_images
from sppnet.geometry import CROP_SIDE
from sppnet.network import SPPNet, load_network
from sppnet.results.page import Page, markdown_table
from sppnet.results.records import read_result
from sppnet.runtime.files import atomic_file, check_place
from sppnet.runtime.hardware import Hardware, prepare_device
from sppnet.runtime.names import first_line, listing, printable
from sppnet.runtime.progress import Progress, speed
from sppnet.runtime.run_directory import folder_beside, read_run_config, run_of
from sppnet.use.explain import Explained, explain_image
from sppnet.use.explanation_pages import (
    add_filter,
    add_photo,
    cells_text,
    class_title,
    filters_table,
    greying_text,
)
from sppnet.use.greying import grey_and_compare
from sppnet.use.network_views import MapCells, NetworkView
from sppnet.use.responses import StrongestResponses, find_strongest, response_maps

MOST_PHOTOS = 50  # on a page, of about 20 MB then


class _Work(NamedTuple):
    """What to explain, and how."""

    config: DictConfig
    run: TestedRun
    network: SPPNet  # on its device
    hardware: Hardware
    layer: str
    cells: MapCells  # of the layer
    view: NetworkView
    page: Path

    @property
    def about(self) -> str:
        """The network and what a cell of the layer sees, for a page."""
        return f"`{self.run.path}`: {self.network.summary()}. It sees {self.view}. {cells_text(self.cells, self.layer)}"


def _prepare(config: DictConfig, path: Path) -> _Work:
    """Loads the network, and checks the settings that depend on it."""
    network = load_network(path)
    recorded = run_of(path)
    result = read_result(recorded) if recorded.is_dir() else None
    run = TestedRun(path, read_run_config(recorded), result, {}, set())
    layer = config.layer or network.backbone.layers[-1]
    cells = MapCells.of(network, layer)
    crop_side = network.input_side or trained_crop_side(path) or CROP_SIDE
    view = NetworkView.of(network, config.scale or shorter_side_for(crop_side))

    folder = folder_beside(path, "explain")
    page = Path(config.page) if config.page else folder / ("photos.html" if config.images else f"{layer}.html")
    check_place(page)

    hardware = Hardware(**bound(config.hardware, Hardware, "hardware."))
    network.to(prepare_device(0, hardware))
    smallest = network.backbone.smallest_input
    black = torch.zeros(3, smallest, smallest, dtype=torch.uint8)
    count = len(response_maps(network, black, layer, "a black image"))
    if config.filters and max(config.filters) >= count:
        raise ValueError(f"filters={list(config.filters)}: must be from 0 to {count - 1} in {layer}")
    return _Work(config, run, network, hardware, layer, cells, view, page)


def explain_data(config: DictConfig, path: Path) -> None:
    """Makes a page of the strongest responses in the data of a run or in other data. Prints a table of them."""
    work = _prepare(config, path)
    section = data_section(config.data, work.run)
    # Labelled by the classes of the data: the network may know others.
    images = select_images(open_tested_data(config, section, work.run), config.part, config.exclude)
    if config.check and len(images) < 2:
        raise ValueError(f"check={config.check}: an interval needs two images or more, and the data has one")
    data_text = f"{len(images):,} images of {section['source']} ({config.part})"
    print(f"{path}: {work.network.summary()}; {data_text}", flush=True)

    started = time.perf_counter()
    strongest = find_strongest(work.network, images, work.layer, work.view, most=config.top, hardware=work.hardware)
    rate = speed(len(images) / (time.perf_counter() - started))
    filters = list(config.filters or strongest.strongest_filters(config.most_filters or 20))
    words = [f"Shown: {len(filters)} of {len(strongest.values)} filters, on {data_text}."]
    if dead := strongest.dead():
        subject = "1 filter responds" if len(dead) == 1 else f"{len(dead)} filters respond"
        words.append(f"{subject} to no image: {listing(list(map(str, dead)))}.")
    if config.check:
        words.append(_check_by_greying(work, images))

    page = _responses_page(work, images, strongest, filters, words)
    print(markdown_table(*filters_table(filters, strongest, images)))
    print("\n".join([*words, f"{rate} images/s"]))
    _write(work, page)


def _responses_page(
    work: _Work, images: SelectedImages, strongest: StrongestResponses, filters: list[int], words: list[str]
) -> Page:
    """Makes the page of a data set. Reads the images that it shows again."""
    page = Page(f"What {work.layer} responds to")
    page.text(
        "Of every filter, the images with its strongest responses: above, the square around the cell of the response; "
        "below, the image with the window of the cell and its centre."
    )
    page.text(f"{work.about} {words[0]}")
    for sentence in words[1:]:
        page.text(sentence)

    with Progress("reading their images", len(filters), "filters") as progress:
        for number in filters:
            add_filter(page, number, strongest, images, work.view, work.cells)
            progress.add(1)
    return page


def _check_by_greying(work: _Work, images: SelectedImages) -> str:
    """Greys what speaks for a class in some images, and says in a sentence how much the probability fell."""
    config = work.config
    greying = grey_and_compare(
        work.network,
        images,
        work.view,
        count=config.check,
        side=config.grey,
        seed=config.seed,
        hardware=work.hardware,
    )
    return greying_text(greying, config.grey)


def explain_photos(config: DictConfig, path: Path) -> None:
    """Makes a page of what speaks for a class in photos. Prints a table of them.

    Exits with code 1 at the end if a photo could not be used.
    """
    work = _prepare(config, path)
    target, against = (_class_index(work.network, key, config[key]) for key in ("class", "against"))
    if against is not None and target == against:
        raise ValueError(f"against={config.against}: must be another class than class={config['class']}")
    photos = find_photos(photo_places(config.images))
    count = min(len(photos), MOST_PHOTOS)
    print(f"{path}: {work.network.summary()}", flush=True)
    if count < len(photos):
        print(f"the first {count} of {len(photos):,} photos")

    page, rows, unusable = Page("What the network looks at"), [], []
    page.text(work.about)
    with Progress("explaining", count) as progress:
        for index in range(count):
            name = photos.name(index)
            try:
                image = work.view.image(decode_image(photos.read(index), name))
                explained = explain_image(
                    work.network,
                    image,
                    name,
                    layer=work.layer,
                    target=target,
                    against=against,
                    filters=config.filters,
                    most_filters=config.most_filters or 10,
                )
            except ValueError as error:
                unusable.append([printable(name), printable(first_line(error))])
            else:
                add_photo(page, work.network, explained, work.layer)
                rows.append(_row(work.network, explained))
            progress.add(1)
    if unusable:
        page.heading("Photos that could not be used")
        page.table(["photo", "why"], unusable)

    score = "log odds" if against is None else f"logit minus that of {class_title(work.network, against)}"
    print(markdown_table(["photo", "class", "probability", score], [*rows, *([*row, "", ""] for row in unusable)]))
    _write(work, page)
    if unusable:
        names = listing([name for name, _ in unusable])
        print(f"warning: {len(unusable)} of {count} photos could not be used: {names}", file=sys.stderr)
        sys.exit(1)


def _row(network: SPPNet, explained: Explained) -> list[str]:
    evidence = explained.evidence
    probability = f"{100 * evidence.probabilities[explained.target]:.1f} %"
    return [printable(explained.name), class_title(network, explained.target), probability, f"{evidence.score:+.2f}"]


def _class_index(network: SPPNet, key: str, name: str | None) -> int | None:
    """Returns the number of a class. Raises ValueError for a name that the network does not know."""
    if name is None:
        return None
    known = network.classes or tuple(map(str, range(network.num_classes)))
    if name in known:
        return known.index(name)
    if network.classes is None:
        raise ValueError(f"{key}={name}: the network knows no names; must be a number from 0 to {len(known) - 1}")
    close = get_close_matches(name, known, n=1)
    raise ValueError(
        f"{key}={name}: must be one of the {len(known)} classes of the network"
        + (f"; did you mean {close[0]}?" if close else f", such as {listing(known)}")
    )


def _write(work: _Work, page: Page) -> None:
    with atomic_file(work.page) as file:
        file.write(page.html().encode())
    print(f"written: {work.page}")
