"""Comparisons of ours with a reference, the rows of the table that they make, and what bounds ours in a row."""

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch

from sppnet.benchmark.timing import Ratio, Work, compare, seconds_of

_LARGEST_PARTS = 3  # that are named as the bound


class Goal(NamedTuple):
    """The lowest acceptable ratio on each kind of device; None: not measured there."""

    cpu: float | None
    gpu: float | None

    def on(self, device: str) -> float | None:
        """Returns the goal on "cpu" or "cuda"."""
        return self.gpu if device == "cuda" else self.cpu


class Row(NamedTuple):
    """One row of the table."""

    name: str
    goal: float | None
    ratio: Ratio
    setting: str = ""  # of the reference, the fastest of several
    bound: str = ""  # what takes the time of ours, where the goal is missed

    @property
    def is_reached(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        return None if self.goal is None else self.ratio.median >= self.goal


class Works(NamedTuple):
    """Ours and the reference, which do the same work."""

    ours: Work
    reference: Work
    setting: str = ""  # of the reference, the fastest of several


class Measurement(Protocol):
    """What makes one or several rows of the table.

    weight: how long it takes, where an ordinary comparison takes 1.
    """

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def rows(self, device: str, rounds: int, seconds: float) -> list[Row]:
        """Measures on "cpu" or "cuda" in so many rounds, each side for about `seconds` in each, and makes the rows."""


class Comparison(NamedTuple):
    """One row of the table, still to be measured.

    works: makes ours and the reference.
    bound: says what takes the time of ours; None: the operations of torch in this process.
    """

    name: str
    goal: Goal
    works: Callable[[], Works]
    bound: Callable[[], str] | None = None
    weight: float = 1.0

    def rows(self, device: str, rounds: int, seconds: float) -> list[Row]:
        """Measures the ratio and, if it misses its goal, what takes the time."""
        works = self.works()
        row = Row(self.name, self.goal.on(device), compare(works.ours, works.reference, rounds, seconds), works.setting)
        if row.is_reached is False:
            row = row._replace(bound=operations_of(works.ours) if self.bound is None else self.bound())
        return [row]


def fastest(settings: Mapping[str, Work]) -> tuple[str, Work]:
    """Returns the name and the work of the fastest setting. Each runs once to warm up and once to be timed."""
    for work in settings.values():
        work()
    return min(settings.items(), key=lambda setting: seconds_of(setting[1]))


def operations_of(work: Work) -> str:
    """Says which operations of torch take most of the time of a call, as measured in this process."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it prints lines of its own
    with torch.autograd.profiler.profile(use_kineto=False) as profiler:
        whole = seconds_of(work)
    seconds: dict[str, float] = {}
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::")
        seconds[name] = seconds.get(name, 0.0) + event.self_cpu_time_total / 1e6
    seconds["outside of torch's operations"] = max(0.0, whole - sum(seconds.values()))
    return largest_parts(seconds)


def largest_parts(seconds: Mapping[str, float], whole: float | None = None) -> str:
    """Says which parts take most of `whole`, by default of their sum: "decode 52 %, resize 20 %, crop 9 %"."""
    whole = sum(seconds.values()) if whole is None else whole
    largest = sorted(seconds.items(), key=lambda part: -part[1])[:_LARGEST_PARTS]
    return ", ".join(f"{name} {part / whole:.0%}".replace("%", " %") for name, part in largest)
