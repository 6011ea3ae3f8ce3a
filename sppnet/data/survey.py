"""What the preparation of a data set found out about its images: kinds of findings, one image, the report."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image

from sppnet.data.stores import TRAIN, VALIDATION
from sppnet.runtime.names import listing

# What is said of images that are not as they seem. A name may be under several.
KINDS = {
    "unreadable": "cannot be read",
    "misnamed": "are of another format than their names say",
    "cmyk": "are stored as CMYK",
    "rotated": "are turned by their EXIF orientation",
    "tiny": "have a side under 64 pixels",
    "duplicate": "have the same bytes as an image before them",
}
TINY_SIDE = 64

SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".mpo"},  # a camera's JPEG with more pictures behind the first
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm"},
}


def remarks(encoded: bytes, name: str, decoded: torch.Tensor) -> Iterator[tuple[str, str]]:
    """(kind, remark) of everything in KINDS that one file shows."""
    image = Image.open(io.BytesIO(encoded))
    suffix = Path(name).suffix.lower()
    if suffix and suffix not in SUFFIXES.get(image.format or "", {f".{image.format}".lower()}):
        yield "misnamed", f"is {image.format}"
    if image.mode == "CMYK":
        yield "cmyk", ""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged block, of which decoding makes nothing either
        orientation = 1
    if orientation in range(2, 9):
        yield "rotated", f"orientation {orientation}"
    height, width = decoded.shape[1:]
    if min(height, width) < TINY_SIDE:
        yield "tiny", f"{width}x{height}"


def report_text(report: dict[str, Any]) -> str:
    """A table of what was found, and the first names of everything unusual."""
    lines = []
    for split in (TRAIN, VALIDATION):
        summary = report[split]
        lines.append(f"{split}: {summary['images']:,} images, {summary['bytes'] / 1e6:,.0f} MB")
        for kind, meaning in KINDS.items():
            if summary[kind]:
                names = [f"{name} ({remark})" if remark else name for name, remark in summary[kind]]
                lines.append(f"  {len(names):,} {meaning}: {listing(names)}")
    if report["both"]:
        names = [f"{validation} = {training}" for validation, training in report["both"]]
        lines.append(f"{len(names):,} validation images are training images, too: {listing(names)}")
    return "\n".join(lines)
