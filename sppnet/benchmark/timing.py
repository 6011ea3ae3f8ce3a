"""Rates in images/s, and ratios of two implementations timed alternately in one process."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sppnet.runtime.machine import keep_freed_memory

Work = Callable[[], Any]


class Laps:
    """A stopwatch that adds up the seconds of several stages, including the work of the device."""

    def __init__(self, stages: Sequence[str]) -> None:
        self.seconds = dict.fromkeys(stages, 0.0)
        _wait_for_device()
        self._started = time.perf_counter()

    def end(self, stage: str) -> None:
        """Counts the time since the last call as that of `stage`."""
        _wait_for_device()
        now = time.perf_counter()
        self.seconds[stage] += now - self._started
        self._started = now


class Ratio(NamedTuple):
    """How many times as long the reference took as ours, round by round."""

    rounds: list[float]
    ours: float  # seconds of one call, median
    reference: float  # seconds of one call, median

    @property
    def median(self) -> float:
        """Over the rounds."""
        return statistics.median(self.rounds)


def seconds_of(work: Work, calls: int = 1) -> float:
    """Returns the seconds per call, including the work of the device."""
    _wait_for_device()
    started = time.perf_counter()
    for _ in range(calls):
        work()
    _wait_for_device()
    return (time.perf_counter() - started) / calls


def rate(work: Work, images: int, seconds: float) -> float:
    """Returns images/s of a call that processes `images` of them, over about `seconds` after one call to warm up."""
    work()
    once = seconds_of(work)
    return images / seconds_of(work, max(1, round(seconds / once)))


def compare(ours: Work, reference: Work, rounds: int, seconds: float = 1.0) -> Ratio:
    """Runs both alternately, each for about `seconds` per round, so that other load on the machine affects both."""
    works = (ours, reference)
    for work in works:  # to compile and to fill caches
        work()
    calls = [max(1, round(seconds / seconds_of(work))) for work in works]
    pairs = [[seconds_of(work, count) for work, count in zip(works, calls, strict=True)] for _ in range(rounds)]
    return Ratio([b / a for a, b in pairs], *(statistics.median(column) for column in zip(*pairs, strict=True)))


def _wait_for_device() -> None:
    """Waits until the GPU has finished its work, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Sets how many threads torch uses inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_one_thread(work: Work) -> Work:
    """Returns `work` with one thread in this process: idle threads would take cores away from loader workers."""

    def on_one_thread_work() -> None:
        with thread_count(1):
            work()

    return on_one_thread_work


def with_default_malloc(work: Work) -> Work:
    """Returns `work` with malloc's default settings, as plain PyTorch has them."""

    def with_default_malloc_work() -> None:
        keep_freed_memory(False)
        work()
        keep_freed_memory()

    return with_default_malloc_work


def forward_backward(module: nn.Module, maps: Tensor) -> Work:
    """Returns a forward and backward pass of `module` over `maps`."""
    gradient = torch.ones_like(module(maps))

    def work() -> None:
        torch.autograd.grad(module(maps), maps, gradient)

    return work
