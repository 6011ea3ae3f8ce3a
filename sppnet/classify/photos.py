"""Scores photos one after the other, and reads the next ones meanwhile."""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import NamedTuple

from torch import Tensor

from sppnet.classify.scorer import Scorer
from sppnet.classify.view_inputs import ViewInputs
from sppnet.data.images import UnreadableImage
from sppnet.data.inputs import Inputs, images_per_pass
from sppnet.data.photos import Photos, read_ahead

_GROUPED = 256  # photos on a GPU among which equal sizes are looked for
_GROUPED_BYTES = 256 << 20  # of their tensors


class ScoredPhoto(NamedTuple):
    """A photo with its scores, or with the reason why it has none."""

    name: str
    size: tuple[int, int] = (0, 0)  # (height, width) in pixels
    scores: Tensor | None = None  # float32 (classes,)
    error: str = ""


class _Loaded(NamedTuple):
    photo: ScoredPhoto  # without scores
    inputs: Inputs | None  # None if the photo cannot be read


def score_photos(scorer: Scorer, photos: Photos, *, threads: int, start: int = 0) -> Generator[ScoredPhoto, None, None]:
    """Yields the scores of every photo, in their order. Close it to end its threads.

    Photos that cannot be read are yielded with the error. On a GPU, photos that are near each other and have equal
    sizes are scored together; nothing is ever padded. On the CPU they come one by one, which is as fast there.

    Args:
        scorer: with its network on its device.
        photos: the files.
        threads: that read photos.
        start: index of the first photo to score.
    """
    together = _GROUPED if scorer.device.type == "cuda" else 1
    with closing(_loaded(scorer, photos, threads, start, ahead=max(threads, together))) as loaded:
        for part in _parts(loaded, together):
            yield from _scored(scorer, part)


def _loaded(scorer: Scorer, photos: Photos, threads: int, start: int, ahead: int) -> Generator[_Loaded, None, None]:
    """Yields what every photo is scored from, in their order."""
    make_inputs = ViewInputs(scorer.protocol)

    def prepare(image: Tensor, name: str) -> tuple[tuple[int, int], list[Tensor]]:
        return (image.shape[1], image.shape[2]), make_inputs(image)

    reading = read_ahead(photos, prepare, threads=threads, ahead=ahead, start=start)
    with closing(reading):
        for name, ready in reading:
            try:
                size, tensors = ready.result()
            except UnreadableImage as error:
                yield _Loaded(ScoredPhoto(name, error=str(error)), None)
            else:
                yield _Loaded(ScoredPhoto(name, size), Inputs(0, tensors))


def _parts(loaded: Iterator[_Loaded], together: int) -> Iterator[list[_Loaded]]:
    """Yields photos in parts of `together`, fewer where they are large."""
    part: list[_Loaded] = []
    part_bytes = 0
    for one in loaded:
        part.append(one)
        part_bytes += one.inputs.nbytes if one.inputs else 0
        if len(part) == together or part_bytes > _GROUPED_BYTES:
            yield part
            part, part_bytes = [], 0
    if part:
        yield part


def _scored(scorer: Scorer, part: list[_Loaded]) -> list[ScoredPhoto]:
    """Scores photos, those of equal shapes together, and returns them in their order."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, one in enumerate(part):
        if one.inputs:
            groups.setdefault(tuple(tensor.shape for tensor in one.inputs.tensors), []).append(index)

    scored = [one.photo for one in part]
    for members in groups.values():
        inputs = [loaded for index in members if (loaded := part[index].inputs)]
        count = images_per_pass(inputs[0], scorer.pixels)
        for first in range(0, len(members), count):
            scores = scorer(inputs[first : first + count])
            for index, values in zip(members[first : first + count], scores, strict=True):
                scored[index] = scored[index]._replace(scores=values)
    return scored
