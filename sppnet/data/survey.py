"""What preparing a data set finds out about its images: the kinds of findings, those of one file, the report."""

import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image

from sppnet.data.stores import TRAIN, VALIDATION
from sppnet.runtime.names import listing

# Findings reported per image; one image can have several.
FINDINGS = {
    "unreadable": "cannot be read",
    "misnamed": "are of another format than their names say",
    "cmyk": "are stored as CMYK",
    "rotated": "are turned by their EXIF orientation",
    "tiny": "have a side under 64 pixels",
    "duplicate": "have the same bytes as an image before them",
}
_TINY_SIDE = 64

# Upper ends of the bins that shorter sides in pixels are counted in, and the ratios of width to height, each image
# counted at the nearest one: the report of a large data set stays small.
SHORTER_SIDES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
RATIOS = ("1:4", "1:3", "1:2", "2:3", "3:4", "1:1", "4:3", "3:2", "2:1", "3:1", "4:1")
LARGER = f"over {SHORTER_SIDES[-1]}"
_COUNTS = ("labels", "shorter_sides", "ratios")

_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".mpo"},  # a camera's JPEG with more images behind the first
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm"},
}


def no_findings() -> dict[str, Any]:
    """The facts of no images: numbers of images and bytes, counts by label, size and shape, lists of findings."""
    return {"images": 0, "bytes": 0} | {key: {} for key in _COUNTS} | {kind: [] for kind in FINDINGS}


def count_image(facts: dict[str, Any], label: int, height: int, width: int) -> None:
    """Adds an image to the counts of `facts` by its label, its shorter side and its ratio of width to height."""
    shorter = next((f"{end}" for end in SHORTER_SIDES if min(height, width) <= end), LARGER)
    ratio = min(RATIOS, key=lambda ratio: abs(math.log(width / height / _value(ratio))))
    for key, value in zip(_COUNTS, (str(label), shorter, ratio), strict=True):
        facts[key][value] = facts[key].get(value, 0) + 1


def _value(ratio: str) -> float:
    width, height = ratio.split(":")
    return int(width) / int(height)


def findings(encoded: bytes, name: str, decoded: torch.Tensor) -> Iterator[tuple[str, str]]:
    """Yields the findings of one file as (kind, remark). `decoded` is its image, (3, h, w)."""
    image = Image.open(io.BytesIO(encoded))
    suffix = Path(name).suffix.lower()
    if suffix and suffix not in _SUFFIXES.get(image.format or "", {f".{image.format}".lower()}):
        yield "misnamed", f"is {image.format}"

    if image.mode == "CMYK":
        yield "cmyk", ""

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged block, which decoding ignores too
        orientation = 1
    if orientation in range(2, 9):
        yield "rotated", f"orientation {orientation}"

    height, width = decoded.shape[1:]
    if min(height, width) < _TINY_SIDE:
        yield "tiny", f"{width}x{height}"


def survey(
    facts: Mapping[str, Iterable[Mapping[str, Any]]], digests: Mapping[str, Iterable[tuple[str, str]]]
) -> dict[str, Any]:
    """Makes the report on a data set.

    It holds, per split, the number of images, the number of stored bytes and, for every kind of finding, [name,
    remark] of each image with that finding. The remark on a duplicate is the name of the first image with the same
    bytes. `both` lists [validation name, training name] of equal files. `labels`, `shorter_sides` and `ratios` count
    images by label, by the bins of SHORTER_SIDES and by RATIOS; shards of old versions have no such counts.

    Args:
        facts: per split, facts as of `no_findings`, for example one per shard; they are added up.
        digests: per split, (digest of the file, name) of every stored image.
    """
    report = {split: _total(facts[split]) for split in (TRAIN, VALIDATION)}

    train_names, report[TRAIN]["duplicate"] = _distinct(digests[TRAIN])
    validation_names, report[VALIDATION]["duplicate"] = _distinct(digests[VALIDATION])
    both = [[name, train_names[digest]] for digest, name in validation_names.items() if digest in train_names]
    return report | {"both": both}


def _total(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    total = no_findings()
    for part in facts:
        for key, empty in no_findings().items():
            if key in _COUNTS:
                total[key] = dict(Counter(total[key]) + Counter(part.get(key, empty)))
            else:
                total[key] += part[key]
    return total


def _distinct(digests: Iterable[tuple[str, str]]) -> tuple[dict[str, str], list[list[str]]]:
    """The first name of every digest, and [name, first name] of every later image with the same digest."""
    first_names: dict[str, str] = {}
    duplicates = []
    for digest, name in digests:
        if digest in first_names:
            duplicates.append([name, first_names[digest]])
        else:
            first_names[digest] = name
    return first_names, duplicates


def report_text(report: dict[str, Any]) -> str:
    """Returns the report as text: a line per split and per kind of finding, with the first names of each."""
    lines = []
    for split in (TRAIN, VALIDATION):
        summary = report[split]
        lines.append(f"{split}: {summary['images']:,} images, {summary['bytes'] / 1e6:,.0f} MB")
        for kind, meaning in FINDINGS.items():
            if summary[kind]:
                names = [f"{name} ({remark})" if remark else name for name, remark in summary[kind]]
                lines.append(f"  {len(names):,} {meaning}: {listing(names)}")
    if report["both"]:
        names = [f"{validation} = {training}" for validation, training in report["both"]]
        lines.append(f"{len(names):,} validation images are training images, too: {listing(names)}")
    return "\n".join(lines)
