"""The image size and the learning rate of a step, as pure functions.

They keep no state between calls, so that a resumed run and an uninterrupted one agree.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # backbones import torch, which commands only load after they checked the sizes
    from sppnet.backbones import Backbone
    from sppnet.timm_backbone import TimmBackbone

_LARGEST_SIDE = 4096  # the largest side to train at, in pixels


def size_of_epoch(
    epoch: int, *, cycle: list[int] | None = None, uniform: list[int] | None = None, seed: int = 0, multiple: int = 1
) -> int:
    """Returns the side in pixels at which an epoch trains.

    Args:
        epoch: from 0.
        cycle: sizes taken in turn, a full epoch each: [224] is single-size training, [224, 180] the paper's multi-size
            training with the even epochs at 224 (arXiv:1406.4729v4, §2.3; which size comes first is not stated).
        uniform: [smallest, largest]: one size per epoch, uniform over the integers between, both included (§3.1.3).
        seed: of the sizes drawn from `uniform`.
        multiple: only multiples of it are drawn from `uniform`.

    Raises ValueError unless exactly one of `cycle` and `uniform` is given, with sizes from 1 to _LARGEST_SIDE, those of
    `uniform` multiples of `multiple`.
    """
    _check_sizes(cycle, uniform, multiple)
    if cycle is not None:
        return cycle[epoch % len(cycle)]
    return _drawn_size(np.random.SeedSequence([seed, epoch]), uniform, multiple)


def size_of_step(
    epoch: int,
    step: int,
    *,
    cycle: list[int] | None = None,
    uniform: list[int] | None = None,
    seed: int = 0,
    multiple: int = 1,
) -> int:
    """Returns the side in pixels at which a step trains, if every step has its own.

    The sizes of a cycle are taken in turn. An epoch begins with that of `size_of_epoch`, so that each size comes first
    equally often. Of `uniform`, a size is drawn for every step.

    Args:
        epoch: from 0.
        step: in the epoch, from 0.
        cycle, uniform, seed, multiple: as of `size_of_epoch`.

    Raises ValueError as `size_of_epoch`.
    """
    _check_sizes(cycle, uniform, multiple)
    if cycle is not None:
        return cycle[(epoch + step) % len(cycle)]
    return _drawn_size(np.random.SeedSequence([seed, epoch], spawn_key=(step,)), uniform, multiple)


def _drawn_size(seed: np.random.SeedSequence, uniform: list[int] | None, multiple: int) -> int:
    assert uniform is not None
    low, high = (side // multiple for side in uniform)
    return multiple * int(np.random.default_rng(seed).integers(low, high, endpoint=True))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The size schedule of a run: the arguments of `size_of_epoch`, and how long a size stays, checked.

    Raises ValueError as `size_of_epoch`, and for a schedule in which `every` or `multiple` would have no effect.
    """

    cycle: list[int] | None = None
    uniform: list[int] | None = None
    seed: int = 0
    every: str = "epoch"  # "epoch" or "batch": how long a size stays
    multiple: int = 1  # sizes drawn from `uniform` are multiples of it

    def __post_init__(self) -> None:
        _check_sizes(self.cycle, self.uniform, self.multiple)
        if self.every not in ("epoch", "batch"):
            raise ValueError(f"sizes.every={self.every}: must be one of epoch, batch")
        if self.every == "batch" and len(self.all) == 1:
            raise ValueError(f"sizes.every=batch: needs more sizes than {self.all[0]}, such as sizes.cycle=[224,180]")

    @property
    def all(self) -> Sequence[int]:
        """All sides in pixels that may be trained at, each once."""
        if self.uniform is not None:
            return range(self.uniform[0], self.uniform[1] + 1, self.multiple)
        return list(dict.fromkeys(self.cycle or []))

    @property
    def smallest(self) -> int:
        """The smallest side in pixels."""
        return min(self.all)

    @property
    def largest(self) -> int:
        """The largest side in pixels, which is also the side of the crops of training and validation."""
        return max(self.all)

    def of_epoch(self, epoch: int) -> int | None:
        """Returns the side in pixels of an epoch, counted from 0; None if every batch has its own."""
        if self.every == "batch":
            return None
        return size_of_epoch(epoch, **self._drawing)

    def of_step(self, epoch: int, step: int) -> int:
        """Returns the side in pixels of a step of an epoch, both counted from 0."""
        if self.every == "batch":
            return size_of_step(epoch, step, **self._drawing)
        return size_of_epoch(epoch, **self._drawing)

    @property
    def _drawing(self) -> dict[str, Any]:
        return {"cycle": self.cycle, "uniform": self.uniform, "seed": self.seed, "multiple": self.multiple}

    def of_run(self, epochs: int) -> set[int]:
        """Returns all sides in pixels that a run of so many epochs may train at."""
        if self.cycle is not None and self.every == "epoch":
            return set(self.cycle[:epochs])
        return set(self.all)

    def last_epoch_note(self, epochs: int) -> str | None:
        """Returns a note for the user if the last epoch does not train at the size of the tested crops, else None."""
        last, tested = self.of_epoch(epochs - 1), self.largest
        if last in (None, tested):
            return None

        remedy = ""
        if self.cycle is not None:
            after = self.cycle.index(tested) + 1
            turned = ",".join(map(str, self.cycle[after:] + self.cycle[:after]))
            remedy = f"; sizes.cycle=[{turned}] with a multiple of {len(self.cycle)} epochs ends at {tested}"
        return f"the last epoch trains at {last} pixels, and crops of {tested} are tested{remedy}"


def _check_sizes(cycle: Sequence[int] | None, uniform: Sequence[int] | None, multiple: int) -> None:
    """Raises ValueError unless exactly one is given, with sides from 1 to _LARGEST_SIDE."""
    if (cycle is None) == (uniform is None):
        raise ValueError("sizes: give either cycle, such as [224, 180], or uniform, such as [180, 224]")
    sizes = cycle if cycle is not None else uniform
    assert sizes is not None
    if len(sizes) < 1 or min(sizes) < 1 or max(sizes) > _LARGEST_SIDE:
        key = "sizes.cycle" if cycle is not None else "sizes.uniform"
        raise ValueError(f"{key}={list(sizes)}: must be one or more sides in pixels, from 1 to {_LARGEST_SIDE}")
    if uniform is not None and (len(uniform) != 2 or uniform[0] > uniform[1]):
        raise ValueError(f"sizes.uniform={list(uniform)}: must be [smallest, largest]")

    if multiple < 1:
        raise ValueError(f"sizes.multiple={multiple}: must be at least 1")
    if cycle is not None and multiple != 1:
        raise ValueError(f"sizes.multiple={multiple}: is for sizes.uniform; sizes.cycle={list(cycle)} names its sizes")
    if any(side % multiple for side in sizes):
        raise ValueError(f"sizes.uniform={list(sizes)}: must be multiples of sizes.multiple={multiple}")


def check_sizes_fit(backbone: "Backbone | TimmBackbone", levels: list[int] | None, sides: Collection[int]) -> None:
    """Raises ValueError if a network with this backbone and pyramid cannot train at one of these sides (in pixels)."""
    smallest = min(sides)
    if smallest < backbone.smallest_input:
        raise ValueError(
            f"sizes: {smallest} pixels are too few for this backbone, which needs at least {backbone.smallest_input}"
        )

    if levels is None and smallest != max(sides):
        raise ValueError(
            f"sizes: {smallest} to {max(sides)} pixels; a network without a pyramid (pooling=none) trains at one size "
            f"only: use sizes=single, or sizes.cycle=[{max(sides)}]"
        )

    for side in sorted(set(sides)):
        try:
            backbone.map_side(side)
        except ValueError as error:
            raise ValueError(f"sizes: {side} pixels; {error}") from error


def cosine_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Returns the factor on the learning rate at a step, from 0: a linear rise, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def plateau_factor(errors: Sequence[float], patience: int, drops: int, divisor: float = 10.0) -> float:
    """Returns the factor on the learning rate after epochs with these validation errors: 1 / divisor ** (drops so far).

    The rate drops when `patience` epochs in a row did not bring a new lowest error, at most `drops` times; the count
    starts again after each drop. The paper divides by 10 twice "when the error plateaus" (arXiv:1406.4729v4, §3.1).
    """
    dropped, lowest, waited = 0, math.inf, 0
    for error in errors:
        waited = 0 if error < lowest else waited + 1
        lowest = min(lowest, error)
        if waited == patience and dropped < drops:
            dropped, waited = dropped + 1, 0
    return divisor**-dropped
