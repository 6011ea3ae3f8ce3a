"""The page about a data set that was prepared: images by class, size and shape, and what is odd about some, shown."""

from collections.abc import Mapping, Sequence
from typing import Any

from sppnet.data.images import Images, UnreadableImage, decode_image
from sppnet.data.sources import ImageData
from sppnet.data.stores import TRAIN, VALIDATION
from sppnet.data.survey import FINDINGS, LARGER, RATIOS, SHORTER_SIDES
from sppnet.results.drawn_boxes import thumbnail
from sppnet.results.page import Page
from sppnet.results.report_plots import count_bars, sorted_counts
from sppnet.runtime.names import printable

_SHOWN = 5  # thumbnails of one kind of finding in one split
_MOST_NAMES = 1000  # in one table
_MOST_BARS = 60  # classes


def preparation_page(report: Mapping[str, Any], data: ImageData) -> Page:
    """Makes the page of a report of `survey`.

    Args:
        report: of the data set.
        data: the data set itself, for thumbnails.
    """
    page = Page("Prepared data set")
    rows = [
        [split, f"{report[split]['images']:,}", f"{report[split]['bytes'] / 1e6:,.0f}"] for split in (TRAIN, VALIDATION)
    ]
    page.text(f"{len(data.classes):,} classes. Training images are stored small, validation images as they are.")
    page.table(["split", "images", "MB stored"], rows)
    if all(_are_counted(report[split]) for split in (TRAIN, VALIDATION)):
        _add_classes(page, report, data.classes)
        _add_sizes(page, report)
    else:
        page.text(
            "An earlier version prepared some of it and did not count classes and sizes; prepare it again for that."
        )
    _add_findings(page, report, data)
    return page


def _are_counted(facts: Mapping[str, Any]) -> bool:
    """Whether every image of a split is counted by class, size and shape."""
    return bool(sum(facts.get("labels", {}).values()) == facts["images"])


def _add_classes(page: Page, report: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Adds the numbers of images by class: bars, or for many classes a curve, and a table."""
    page.heading("Images by class")
    counts = {
        split: [report[split]["labels"].get(str(label), 0) for label in range(len(classes))]
        for split in (TRAIN, VALIDATION)
    }
    few = len(classes) <= _MOST_BARS
    figure = count_bars(list(classes), counts, "images") if few else sorted_counts(counts)
    fewest, most = min(counts[TRAIN]), max(counts[TRAIN])
    caption = f"Training images per class: {fewest:,}{f' to {most:,}' if most > fewest else ''}."
    page.figure(figure, "images by class", caption)
    rows = [[name, *(f"{of_split[i]:,}" for of_split in counts.values())] for i, name in enumerate(classes)]
    page.table(["class", *counts], rows, folded=f"Table of all {len(classes):,} classes")


def _add_sizes(page: Page, report: Mapping[str, Any]) -> None:
    """Adds the images by shorter side and by the ratio of width to height, in % of their split."""
    sides = [f"{end}" for end in SHORTER_SIDES] + [LARGER]
    page.heading("Sizes and shapes of the files")
    for key, names, title in (
        ("shorter_sides", sides, "shorter side in pixels, up to"),
        ("ratios", RATIOS, "width : height, the nearest of these"),
    ):
        used = [i for i, name in enumerate(names) if any(name in report[split][key] for split in (TRAIN, VALIDATION))]
        if not used:
            continue
        shown = names[used[0] : used[-1] + 1]
        shares = {
            split: [100 * report[split][key].get(name, 0) / max(1, report[split]["images"]) for name in shown]
            for split in (TRAIN, VALIDATION)
        }
        caption = f"{report[TRAIN]['images']:,} training and {report[VALIDATION]['images']:,} validation images."
        page.figure(count_bars(shown, shares, "images in % of the split", title), f"images by {title}", caption)


# Findings.


def _add_findings(page: Page, report: Mapping[str, Any], data: ImageData) -> None:
    """Adds what is odd about some images, kind by kind, with the first of them."""
    page.heading("Findings")
    kinds = [
        (f"{word} images that {meaning}", images, report[split][kind])
        for kind, meaning in FINDINGS.items()
        for word, split, images in (("Training", TRAIN, data.train), ("Validation", VALIDATION, data.val))
    ]
    kinds.append(("Validation images that are training images, too", data.val, report["both"]))
    found = [kind for kind in kinds if kind[2]]
    if not found:
        page.text("No image is odd: all can be read, none is a duplicate, tiny, turned, misnamed or CMYK.")

    for title, images, named in found:
        page.text(f"{title}: {len(named):,}.")
        if pictures := _pictures(images, named[:_SHOWN]):
            page.pictures(pictures, width=160)
        more = f", the first {_MOST_NAMES:,}" if len(named) > _MOST_NAMES else ""
        rows = [[printable(name), printable(remark)] for name, remark in named[:_MOST_NAMES]]
        page.table(["image", "remark"], rows, folded=f"Names{more}")


def _pictures(images: Images, named: Sequence[Sequence[str]]) -> list[tuple[bytes, str]]:
    """Returns thumbnails of the images with these names and remarks; skips unreadable ones."""
    wanted = {name: f"{name} ({remark})" if remark else name for name, remark in named}
    pictures = []
    for index in range(len(images)):
        name = images.name(index)
        if name not in wanted:
            continue
        try:
            pictures.append((thumbnail(decode_image(images.read(index), name)), printable(wanted[name])))
        except UnreadableImage:
            continue
    return pictures
