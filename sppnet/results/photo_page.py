"""A page of photos with the boxes that a detector found in them."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sppnet.results.drawn_boxes import DrawnBoxes, draw_boxes
from sppnet.results.page import Page
from sppnet.results.photo_boxes import PhotoBoxes
from sppnet.runtime.names import printable

MOST_PICTURES = 200  # on a page, of about 20 MB then
_LONGER_SIDE, _FONT_SIZE = 640, 13  # of a picture
_MOST_NAMED = 10  # boxes in the line below a picture
# Of classes, in turn: white text can be read on them.
_COLORS = ("#0072b2", "#b34700", "#117733", "#882255", "#332288", "#7a6000", "#aa4499", "#1c7f7a")


def photo_picture(image: Tensor, photo: PhotoBoxes) -> tuple[bytes, str]:
    """Draws the boxes of a photo on its image, uint8 (3, h, w), the highest score on top: a JPEG and a line of text."""
    names = [f"{name} {score:.2f}" for name, score in zip(photo.class_names, photo.scores, strict=True)]
    colors = [_COLORS[label % len(_COLORS)] for label in photo.labels]
    drawn = DrawnBoxes(photo.boxes[::-1].astype(np.float64), names[::-1], colors[::-1])
    jpeg = draw_boxes(image, drawn, longer_side=_LONGER_SIDE, font_size=_FONT_SIZE)

    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return jpeg, printable(f"{photo.name}: {', '.join(names[:_MOST_NAMED]) or 'nothing'}{more}")


def photo_page(
    description: str, pictures: Sequence[tuple[bytes, str]], photos: int, unusable: Sequence[PhotoBoxes]
) -> Page:
    """Makes a page of pictures of `photo_picture`.

    Args:
        description: of the detector, a sentence.
        pictures: the first ones, at most MOST_PICTURES.
        photos: how many there are in all.
        unusable: photos that could not be used.
    """
    page = Page("Objects found in photos")
    page.text(description)
    if len(pictures) + len(unusable) < photos:
        page.text(f"The first {len(pictures):,} of {photos:,} photos.")
    page.pictures(pictures, width=_LONGER_SIDE)
    if unusable:
        page.heading("Photos that could not be used")
        page.table(["photo", "why"], [[printable(photo.name), photo.error] for photo in unusable])
    return page
