import pytest

from sppnet.classify.machine import worker_count


def test_the_number_of_workers():
    assert worker_count(0) == 0
    assert worker_count(7) == 7
    assert 1 <= worker_count(None) <= 16
    with pytest.raises(ValueError, match=r"workers=-1"):
        worker_count(-1)
