"""The images that scores are of, found again in their data set and checked, with their sizes and as thumbnails."""

from dataclasses import dataclass

import numpy as np

from sppnet.data.images import UnreadableImage, decode_image
from sppnet.data.sources import ImageData, SelectedImages, content_digests_and_sizes, images_fingerprint, select_images
from sppnet.results.drawn_boxes import thumbnail
from sppnet.results.scores import Scores
from sppnet.runtime.names import printable


@dataclass(frozen=True, eq=False)
class TestedImages:
    """The images of a test, in the order of its scores.

    images: the images.
    sizes: int64 (n, 2), height and width in pixels.
    fingerprint: `images` of `Scores.about`.
    """

    images: SelectedImages
    sizes: np.ndarray
    fingerprint: str

    __test__ = False  # no test class for pytest, though its name begins like one

    def thumbnail(self, index: int) -> bytes | None:
        """Returns an image as a small JPEG file; None if it cannot be read any more."""
        name = self.images.name(index)
        try:
            return thumbnail(decode_image(self.images.read(index), name))
        except UnreadableImage:
            return None


def find_tested_images(data: ImageData, scores: Scores) -> TestedImages:
    """Finds the images of scores in a data set. Reads each once, to compare its contents and for its size.

    Raises ValueError unless the data set holds exactly these images, with the same names, labels and contents: any
    other image would be shown as a mistake that the network did not make.
    """
    about = scores.about
    part, exclude, classes = about.get("part"), about.get("exclude"), about.get("classes")
    if not isinstance(part, str) or not isinstance(exclude, list) or not isinstance(classes, list):
        raise ValueError("the scores do not say of which images they are")
    images = select_images(data, part, exclude, classes)
    names = [images.name(i) for i in range(len(images))]
    if names != scores.names.tolist():
        missing = sorted(set(scores.names.tolist()) - set(names))
        example = f", {missing[0]} is not there" if missing else ""
        raise ValueError(
            printable(f"found {len(names):,} images, and the scores are of {len(scores.names):,}{example}")
        )

    digests, sizes = content_digests_and_sizes(images, "reading the images")
    fingerprint = images_fingerprint(images, digests)
    if fingerprint != about.get("images"):
        raise ValueError("the images have the same names, but other labels or contents than when they were tested")
    return TestedImages(images, sizes, fingerprint)
