"""A report on runs: an index, a page per run, and the pages that compare them, linked with each other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from sppnet.results.comparisons import NotTested, comparison_page
from sppnet.results.detection_page import detection_page
from sppnet.results.detector_runs import DetectorTest
from sppnet.results.index_page import INDEX, by_data, index_page
from sppnet.results.page import Page
from sppnet.results.paper import TABLES
from sppnet.results.run_page import run_page
from sppnet.results.runs import Run
from sppnet.results.scales import scales_page
from sppnet.results.sweeps import pyramid_page, views_page
from sppnet.results.tables import table_page
from sppnet.results.tested_images import TestedImages
from sppnet.results.transfer_page import transfer_page
from sppnet.results.transfers import Transfer
from sppnet.runtime.names import printable
from sppnet.runtime.progress import Progress

# Returns the images of the tests of a run, or a line that says why they cannot be shown; None for a run without tests.
FindImages = Callable[[Run], TestedImages | str | None]

_RUNS_FOLDER = "runs"


class Results(NamedTuple):
    """All that a report is made of."""

    runs: list[Run]
    transfers: list[Transfer]
    detectors: list[DetectorTest]


def write_report(results: Results, out: Path, views: str | None, find_images: FindImages) -> list[Path]:
    """Writes index.html, a page per finished run in runs/, and the pages that compare the runs; returns their paths.

    Every page is one file that needs no other, written atomically; the index is written last.

    Args:
        results: of all runs.
        out: the folder.
        views: the protocol of what is shown of one protocol only; None: the best of each run.
        find_images: finds the images of the tests of a run.
    """
    addresses = _addresses(results.runs)
    comparisons, missing = _comparisons(results)
    links = [(page.title.partition(":")[0], f"{name}.html") for name, page in comparisons.items()]
    notes: dict[str, None] = {}  # in order, each once

    def find(run: Run) -> TestedImages | None:
        found = find_images(run)
        if isinstance(found, str):
            notes[found] = None
            return None
        return found

    files = []
    with Progress("report", len(addresses) + len(comparisons) + 1, "pages") as progress:
        for path, page in _pages(results, addresses, comparisons, views, find):
            page.write_html(out / path)
            files.append(out / path)
            progress.add(1)

        index = index_page(results.runs, addresses, links, [*notes, *missing])
        index.write_html(out / INDEX)
    return [*files, out / INDEX]


def _pages(
    results: Results,
    addresses: Mapping[Path, str],
    comparisons: Mapping[str, Page],
    views: str | None,
    find_images: Callable[[Run], TestedImages | None],
) -> Iterator[tuple[str, Page]]:
    """Yields every page but the index with its path in the report."""
    for name, page in comparisons.items():
        yield f"{name}.html", _linked(page, [("All runs", INDEX)])

    finished = [run for run in results.runs if run.path in addresses]
    for i, run in enumerate(finished):
        page = run_page(run, views, find_images(run))
        links = [("All runs", f"../{INDEX}")]
        for word, neighbour in (("Previous", i - 1), ("Next", i + 1)):
            if 0 <= neighbour < len(finished):
                other = finished[neighbour].path
                links.append((f"{word}: {other.name}", f"../{quote(addresses[other])}"))
        yield addresses[run.path], _linked(page, links)


def _linked(page: Page, links: Sequence[tuple[str, str]]) -> Page:
    """Returns a page that starts with links."""
    page.blocks.insert(0, ("links", list(links)))
    return page


def _addresses(runs: Sequence[Run]) -> dict[Path, str]:
    """Returns for every finished run where its page is in the report; runs of the same name are numbered."""
    addresses: dict[Path, str] = {}
    for run in runs:
        if run.result is None:
            continue
        name, number = printable(run.path.name) or "run", 1
        while (address := f"{_RUNS_FOLDER}/{name}{f'-{number}' if number > 1 else ''}.html") in addresses.values():
            number += 1
        addresses[run.path] = address
    return addresses


def _comparisons(results: Results) -> tuple[dict[str, Page], list[str]]:
    """Returns the pages that suit the runs by name, and a line for each other one that says what is missing."""
    finished = [run for run in results.runs if run.result is not None]
    tables = [
        name
        for name, spec in TABLES.items()
        if any(run.variant in spec.variants and not run.scores.keys().isdisjoint(spec.views) for run in finished)
    ]
    pages: dict[str, Page] = {name: table_page(name, results.runs) for name in tables}
    if len({run.levels for run in finished}) > 1:
        pages["sweep"] = pyramid_page(finished)
    if results.transfers:
        pages["transfer"] = transfer_page(results.transfers)
    if results.detectors:
        pages["detection"] = detection_page(results.detectors)

    missing = []
    wanted: dict[str, Callable[[], Page]] = {
        "scales": lambda: scales_page(finished),
        "views": lambda: views_page(finished),
    }
    several = [runs for runs in by_data(finished) if len(runs) > 1]
    for number, runs in enumerate(several, start=1):
        wanted["compare" if len(several) == 1 else f"compare-{number}"] = partial(_comparison, runs)
    for name, make in wanted.items() if finished else ():
        try:
            pages[name] = make()
        except NotTested as error:
            missing.append(f"{name}: {error}")
    return pages, missing


def _comparison(runs: Sequence[Run]) -> Page:
    """Returns the page that compares runs on the same images, with their data set in its title."""
    page = comparison_page(runs)
    page.title += f" on {runs[0].config['data']['source']}"
    return page
