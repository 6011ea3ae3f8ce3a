"""Shows the progress of long work, on a terminal and in a log."""

import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm


class Progress:
    """Shows the rate and the time left: a bar on a terminal, otherwise a line every `SECONDS`.

    Args:
        title: of the work.
        total: units in all.
        unit: what is counted, in the plural.
    """

    SECONDS = 30.0

    def __init__(self, title: str, total: int, unit: str = "images") -> None:
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=title, unit=f" {unit}", leave=False, disable=not terminal)
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self.started = self.last_line = time.perf_counter()
        self.lines = not terminal

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, count: int) -> None:
        """Adds `count` finished units."""
        self.done += count
        self.bar.update(count)

        now = time.perf_counter()
        if self.lines and now - self.last_line > self.SECONDS:
            self.last_line, rate = now, self.done / (now - self.started)
            left = clock((self.total - self.done) / rate)
            done = f"{self.done:,} of {self.total:,} {self.unit}"
            print(f"{self.title}: {done}, {speed(rate)} {self.unit}/s, {left} left", flush=True)


class Waiting:
    """Shows the time of work of unknown length on stderr, and how many MB this process wrote to files meanwhile.

    A line that changes every second on a terminal, otherwise a line every `SECONDS`. Nothing for work shorter than
    `FIRST` seconds.

    Args:
        title: of the work.
    """

    FIRST, SECONDS = 2.0, 30.0

    def __init__(self, title: str) -> None:
        self.title, self.ended = title, threading.Event()
        self.terminal = sys.stderr.isatty()
        self.thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Waiting":
        self.started, self.written = time.perf_counter(), _written_bytes()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def line(self) -> str:
        """Returns the line that is shown now."""
        megabytes = (_written_bytes() - self.written) / 1e6
        amount = f", {megabytes:,.0f} MB written" if megabytes >= 1 else ""
        return f"{self.title}{amount}, {clock(time.perf_counter() - self.started)}"

    def _show(self) -> None:
        seconds = self.FIRST
        while not self.ended.wait(seconds):
            seconds = 1.0 if self.terminal else self.SECONDS
            print(f"\r{self.line()}\033[K" if self.terminal else self.line(), end="" if self.terminal else "\n",
                  file=sys.stderr, flush=True)  # fmt: skip
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _written_bytes() -> int:
    """Returns how many bytes this process has written so far; 0 where the system does not count them."""
    try:
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counts["wchar"])
    except (OSError, KeyError, ValueError):
        return 0


def speed(rate: float) -> str:
    """Formats units per second with at least two digits that count: 1,234, 12, 2.4, 0.35."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """Formats seconds in words, in two units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24:,} days {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def clock(seconds: float) -> str:
    """Formats seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
