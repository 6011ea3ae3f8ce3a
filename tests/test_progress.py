"""Times as messages show them."""

import pytest

from sppnet.runtime.progress import clock, duration


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
