"""Pages of photos: with the classes that were predicted for them, or with the boxes that a detector found in them."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from sppnet.data.images import UnreadableImage, decode_image
from sppnet.data.photos import Photos
from sppnet.results.drawn_boxes import DrawnBoxes, draw_boxes, thumbnail
from sppnet.results.page import Page
from sppnet.results.record_files import Record
from sppnet.runtime.names import printable

MOST_PICTURES = 200  # on a page, of about 20 MB with boxes
THUMBNAIL, WITH_BOXES = 240, 640  # longer side of a picture in pixels
_FONT_SIZE = 13
_MOST_NAMED = 10  # boxes in the line below a picture
_WORST_ERRORS = 1000  # in a table of photos that could not be used
# Of classes, in turn: white text can be read on them.
_COLORS = ("#0072b2", "#b34700", "#117733", "#882255", "#332288", "#7a6000", "#aa4499", "#1c7f7a")


def predicted_picture(image: Tensor, record: Record) -> tuple[bytes, str]:
    """Makes a thumbnail of a photo, uint8 (3, h, w), and the line below it: its name, prediction and scores."""
    scores = ", ".join(f"{one['class']} {one['score']:.3f}" for one in record["scores"])
    unsure = "unsure: " if record["prediction"] != record["scores"][0]["class"] else ""
    return thumbnail(image, THUMBNAIL), printable(f"{record['image']}: {unsure}{scores}")


def boxes_picture(image: Tensor, record: Record, classes: Sequence[str]) -> tuple[bytes, str]:
    """Draws the boxes of a photo on its image, uint8 (3, h, w), the highest score on top: a JPEG and a line of text.

    Args:
        classes: of the detector; each has its own colour.
    """
    found = record["boxes"]
    names = [f"{box['class']} {box['score']:.2f}" for box in found]
    boxes = np.array([[box[side] for side in ("x0", "y0", "x1", "y1")] for box in found], np.float64).reshape(-1, 4)
    colors = [_COLORS[classes.index(box["class"]) % len(_COLORS)] for box in found]
    drawn = DrawnBoxes(boxes[::-1], names[::-1], colors[::-1])
    jpeg = draw_boxes(image, drawn, longer_side=WITH_BOXES, font_size=_FONT_SIZE)

    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return jpeg, printable(f"{record['image']}: {', '.join(names[:_MOST_NAMED]) or 'nothing'}{more}")


def photo_page(
    title: str,
    description: str,
    photos: Photos,
    records: Iterable[Record],
    picture: Callable[[Tensor, Record], tuple[bytes, str]],
    width: int,
) -> Page:
    """Makes a page of the first photos, at most MOST_PICTURES, and of those that could not be used.

    Args:
        title: of the page.
        description: of the network and the outcome, a sentence.
        photos: the files, which are read again.
        records: of the photos, in their order.
        picture: makes a picture of an image and its record.
        width: of a picture in pixels.
    """
    pictures: list[tuple[bytes, str]] = []
    unusable: list[list[str]] = []
    for index, record in enumerate(records):
        if "error" in record:
            unusable.append([printable(record["image"]), record["error"]])
        elif len(pictures) < MOST_PICTURES:
            try:
                image = decode_image(photos.read(index), photos.name(index))
            except UnreadableImage as error:  # it was there before
                unusable.append([printable(record["image"]), str(error)])
            else:
                pictures.append(picture(image, record))

    page = Page(title)
    page.text(description)
    if len(pictures) + len(unusable) < len(photos):
        page.text(f"The first {len(pictures):,} of {len(photos):,} photos.")
    page.pictures(pictures, width=width)
    if unusable:
        page.heading("Photos that could not be used")
        page.table(["photo", "why"], unusable[:_WORST_ERRORS])
        if len(unusable) > _WORST_ERRORS:
            page.text(f"And {len(unusable) - _WORST_ERRORS:,} more.")
    return page
