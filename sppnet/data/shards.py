"""Shards of a prepared store: some images of a split in one Arrow file, with a JSON file of findings beside it.

Columns are image, label, name and the SHA-256 of the source file. Training images are stored small, validation images
with the bytes of their files.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from sppnet.data.images import UnreadableImage, decode_image, encode_pixels, resize_shorter_side
from sppnet.data.sources import LabelledImages
from sppnet.data.stores import DIGEST, IMAGE, LABEL, NAME, TRAIN, column_values
from sppnet.data.survey import count_image, findings, no_findings
from sppnet.runtime.files import atomic_file, write_json

# Of a batch of Arrow, the unit in which it looks rows up. One cannot hold 2 GB of images.
_ROWS_PER_BATCH = 64
_BYTES_PER_BATCH = 1 << 28


class Settings(NamedTuple):
    """How training images are stored."""

    short_side: int  # pixels; images that are smaller keep their size as JPEG
    quality: int | None  # of JPEG, 1..100, without chroma subsampling; None: pixels without compression


class Shard(NamedTuple):
    """Some images of a split, stored in one file."""

    split: str
    number: int
    start: int  # index of its first image
    stop: int
    folder: Path
    plan: str  # a hash of everything that decides what is in the shard

    @property
    def arrow(self) -> Path:
        return self.folder / f"data-{self.number:05}.arrow"

    @property
    def facts(self) -> Path:
        """Written after the Arrow file: its size in bytes, and the counts and findings of its images."""
        return self.folder / f"data-{self.number:05}.json"


def split_into_shards(split: str, images: LabelledImages, out: Path, plan: str) -> list[Shard]:
    """The shards of a split: many enough that a stop costs little, few enough that the store opens fast."""
    size = min(4096, max(16, len(images) // 64))
    return [
        Shard(split, number, start, min(len(images), start + size), out / split, plan)
        for number, start in enumerate(range(0, len(images), size))
    ]


def is_finished(shard: Shard) -> bool:
    """Whether the shard was written completely by the same plan.

    Shards with unreadable images are not finished: the files may have been repaired since.
    """
    facts = read_json(shard.facts)
    if facts is None or facts.get("plan") != shard.plan or facts.get("unreadable") != []:
        return False
    return (
        shard.arrow.is_file()
        and shard.arrow.stat().st_size == facts.get("size")
        and _row_count(shard) == facts.get("images")
    )


def _row_count(shard: Shard) -> int | None:
    """The number of images in the Arrow file, None if it is damaged. Reads the headers of its batches only."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(shard.arrow)) as file, pyarrow.ipc.open_stream(file) as stream:
            return int(sum(batch.num_rows for batch in stream))
    except (pyarrow.ArrowException, OSError):
        return None


def write_shard(
    shard: Shard, images: LabelledImages, classes: tuple[str, ...], settings: Settings, is_stopped: Callable[[], bool]
) -> None:
    """Writes the Arrow file of a shard, then its facts.

    Args:
        shard: which images to write, and where.
        images: all images of the split.
        classes: of the data set.
        settings: how training images are stored; validation images keep their bytes.
        is_stopped: asked before every image. InterruptedError is raised if it returns True.
    """
    import pyarrow

    facts = {"plan": shard.plan} | no_findings()
    schema = features(classes).arrow_schema
    with atomic_file(shard.arrow) as file, pyarrow.ipc.new_stream(file, schema) as writer:
        rows: list[dict[str, Any]] = []
        for index in range(shard.start, shard.stop):
            if is_stopped():
                raise InterruptedError("stopped")
            row = _row(images, index, settings if shard.split == TRAIN else None, facts)
            rows += [] if row is None else [row]
            is_full = len(rows) == _ROWS_PER_BATCH or sum(len(row[IMAGE]["bytes"]) for row in rows) >= _BYTES_PER_BATCH
            if rows and (is_full or index == shard.stop - 1):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
                rows = []

    write_json(shard.facts, facts | {"size": shard.arrow.stat().st_size})


def features(classes: tuple[str, ...]) -> Any:
    """The columns of a store, as a `datasets.Features`."""
    import datasets

    return datasets.Features(
        {
            IMAGE: datasets.Image(),
            LABEL: datasets.ClassLabel(names=list(classes)),
            NAME: datasets.Value("string"),
            DIGEST: datasets.Value("string"),
        }
    )


def _row(images: LabelledImages, index: int, settings: Settings | None, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The row stored for an image, or None if it is unreadable. Adds its findings to `facts`.

    The image is made small by `settings`; None stores the bytes of its file.
    """
    name = images.name(index)
    try:
        encoded = images.read(index)
        image = decode_image(encoded, name)
    except UnreadableImage as error:
        facts["unreadable"].append([name, str(error)])
        return None

    kinds = set()
    for kind, remark in findings(encoded, name, image):
        facts[kind].append([name, remark])
        kinds.add(kind)

    stored = encoded if settings is None else _small(encoded, image, settings, may_keep=kinds <= {"tiny"})
    facts["images"] += 1
    count_image(facts, int(images.labels[index]), *image.shape[1:])
    facts["bytes"] += len(stored)
    digest = hashlib.sha256(encoded).hexdigest()
    return {IMAGE: {"bytes": stored, "path": None}, LABEL: int(images.labels[index]), NAME: name, DIGEST: digest}


def _small(encoded: bytes, image: torch.Tensor, settings: Settings, may_keep: bool) -> bytes:
    """The image at its shorter side, as JPEG or as pixels. Only pixels are enlarged, so that training need not do it.

    With `may_keep`, a JPEG of this size already is stored as JPEG without change.
    """
    if settings.quality is None:
        return encode_pixels(resize_shorter_side(image, settings.short_side))
    side = min(*image.shape[1:], settings.short_side)
    if may_keep and side == min(image.shape[1:]) and encoded.startswith(b"\xff\xd8"):
        return encoded
    pixels = resize_shorter_side(image, side).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=settings.quality, subsampling=0)
    return file.getvalue()


def digests_and_names(shards: list[Shard]) -> Iterator[tuple[str, str]]:
    """Yields (SHA-256 of the source file, name) of every image stored in `shards`, in their order."""
    import datasets

    for shard in shards:
        dataset = datasets.Dataset.from_file(str(shard.arrow))
        yield from zip(column_values(dataset, DIGEST).tolist(), column_values(dataset, NAME).tolist(), strict=True)


def read_json(file: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if there is no such file, or a power failure cut it."""
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
