"""Rates and ratios within one run."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Work = Callable[[], Any]


class Ratio(NamedTuple):
    """How much longer the reference took than ours, round by round."""

    rounds: list[float]
    ours: float  # seconds of one call, median
    reference: float

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def seconds_of(work: Work, calls: int = 1) -> float:
    """Seconds per call, the device's work included."""
    wait_for_device()
    started = time.perf_counter()
    for _ in range(calls):
        work()
    wait_for_device()
    return (time.perf_counter() - started) / calls


def rate(work: Work, images: int, seconds: float) -> float:
    """Images per second of a call that treats `images` of them, over about `seconds` after one call to warm up."""
    work()
    once = seconds_of(work)
    return images / seconds_of(work, max(1, round(seconds / once)))


def compare(ours: Work, reference: Work, rounds: int, seconds: float = 1.0) -> Ratio:
    """Runs both in turn, for about `seconds` each per round, so that what else the machine does strikes both."""
    works = (ours, reference)
    for work in works:  # to compile and to fill caches
        work()
    calls = [max(1, round(seconds / seconds_of(work))) for work in works]
    pairs = [[seconds_of(work, count) for work, count in zip(works, calls, strict=True)] for _ in range(rounds)]
    return Ratio([b / a for a, b in pairs], *(statistics.median(column) for column in zip(*pairs, strict=True)))


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
