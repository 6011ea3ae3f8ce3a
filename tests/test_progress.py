"""Times as messages show them."""

import pytest

from sppnet.runtime.progress import Progress, Waiting, clock, duration, speed


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1234.4, "1,234"), (99.6, "100"), (9.96, "10"), (2.44, "2.4"), (0.351, "0.35"), (0.0012, "0.0012")],
)
def test_slow_work_has_a_speed_above_0(rate, text):
    assert speed(rate) == text


def test_a_line_says_what_is_done_how_fast_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    monkeypatch.setattr("time.perf_counter", iter([100.0, 129.9, 140.0, 141.0]).__next__)
    with Progress("testing", 3000) as progress:
        for count in (6, 8, 9):
            progress.add(count)
    assert capsys.readouterr().out == "testing: 14 of 3,000 images, 0.35 images/s, 2:22:11 left\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_waiting_shows_lines_until_the_work_ends(capsys, monkeypatch, tmp_path, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr(Waiting, "FIRST", 0.05)
    monkeypatch.setattr(Waiting, "SECONDS", 0.05)
    with Waiting("photos train: preparing") as waiting:
        (tmp_path / "file").write_bytes(bytes(3_000_000))
        assert waiting.line() == "photos train: preparing, 3 MB written, 0:00"
        while "MB" not in (shown := capsys.readouterr().err):
            pass
    after = capsys.readouterr().err
    assert not waiting.thread.is_alive()
    if terminal:
        assert shown.startswith("\rphotos train: preparing, 3 MB written, 0:00\033[K")
        assert after.endswith("\r\033[K")
    else:
        assert set((shown + after).splitlines()) == {"photos train: preparing, 3 MB written, 0:00"}


def test_waiting_shows_nothing_for_short_work(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with pytest.raises(KeyError), Waiting("short"):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.4, 61, 3599, 3600)] == ["0:00", "0:59", "1:01", "59:59", "1:00:00"]


@pytest.mark.parametrize(
    ("hours", "minutes", "seconds", "text"),
    [
        (0, 0, 0, "0 min 0 s"),
        (0, 0, 59.6, "1 min 0 s"),
        (0, 59, 59, "59 min 59 s"),
        (1, 0, 0, "1 h 0 min"),
        (47, 59, 59, "47 h 59 min"),
        (48, 0, 0, "2 days 0 h"),
        (49, 30, 0, "2 days 1 h"),
        (24_000, 0, 0, "1,000 days 0 h"),
    ],
)
def test_durations_are_given_to_two_units(hours, minutes, seconds, text):
    assert duration(3600 * hours + 60 * minutes + seconds) == text
