"""Lines and progress bars of a training run."""

import re
import sys

import pytest

from conftest import make_image_folder
from sppnet.classify.reporting import Forecast, StepLines, epoch_line, seconds_left, steady_rate
from sppnet.data.sources import open_data
from sppnet.runtime.signals import Stopped
from test_resuming import SignalAt, train

EPOCH = {
    "epoch": 3,
    "size": 180,
    "train_loss": 1.23456,
    "top1_wrong": 117,
    "top5_wrong": 6,
    "n": 500,
    "images_per_second": 1234.5,
}


def test_an_epoch_is_one_line():
    assert epoch_line(EPOCH, 70, 3725, 10) == (
        "epoch  3/70  size 180  loss 1.2346  top-1 error 23.40 %  top-5 error  1.20 %  1,234 images/s  1:02:05 left"
    )


def test_an_epoch_with_a_size_for_every_batch_shows_none():
    assert epoch_line(EPOCH | {"size": None}, 70, 5, 10).startswith("epoch  3/70  sizes by batch  loss 1.2346  top-1 ")


def test_top5_of_few_classes_is_not_shown():
    assert "top-1 error 23.40 %  1,234 images/s" in epoch_line(EPOCH, 70, 3725, 9)


def test_an_epoch_without_validation_shows_no_errors():
    epoch = {key: value for key, value in EPOCH.items() if key not in {"top1_wrong", "top5_wrong", "n"}}
    assert epoch_line(epoch, 70, 5, 10) == "epoch  3/70  size 180  loss 1.2346  1,234 images/s  0:05 left"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_data("folder", root=str(make_image_folder(tmp_path_factory.mktemp("data"), train=9, val=3)))


def test_without_a_terminal_lines_show_the_progress_of_training_and_validation(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(StepLines, "FIRST", 0.0)
    monkeypatch.setattr(StepLines, "SECONDS", 0.0)
    train(data, tmp_path, epochs=2)
    printed = capsys.readouterr().out.splitlines()
    training, validation = (
        r"epoch {}/2  size {}  step {} of 4  loss \d\.\d{{4}}  [\d,.]+ images/s",
        r"epoch {}/2  validation  step {} of 2",
    )
    expected = []
    for epoch, size in ((1, 64), (2, 48)):
        expected += [training.format(epoch, size, step) for step in (1, 2, 3, 4)]
        expected += [validation.format(epoch, step) for step in (1, 2)]
        expected += [rf"epoch {epoch}/2  size {size}  loss .* left"]
    assert len(printed) == len(expected)
    for line, pattern in zip(printed, expected, strict=True):
        assert re.fullmatch(pattern, line)


def test_the_time_of_the_whole_training_is_estimated_once(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Forecast, "AFTER", 0.0)
    monkeypatch.setattr(Forecast, "FIRST", 1)
    train(data, tmp_path, epochs=2)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("about")]
    found = re.fullmatch(r"about 0 min (\d+) s for 2 epochs, at ([\d.,]+) images/s and without validation", line)
    expected = 2 * 16 / float(found[2].replace(",", ""))  # 4 steps of 4 images in an epoch
    assert abs(int(found[1]) - expected) <= 1


def test_the_first_steps_do_not_count_in_an_estimate():
    """Three steps of 8 images in 9, 3 and 1 s, while the loader starts, and then two per second."""
    ends = [(9.0, 8), (12.0, 16), (13.0, 24)] + [(13 + i / 2, 24 + 8 * i) for i in range(1, 25)]
    assert steady_rate(ends, 3, 12.0) == 16
    assert steady_rate(ends[:-1], 3, 12.0) is None
    assert steady_rate(ends[:3], 3, 0.0) is None
    assert steady_rate([(4.0, 7), (5.0, 7 + 11)], 1, 0.0) == 11


def test_the_time_left_is_that_of_the_last_epochs_without_the_first():
    assert seconds_left([60], 11) == 600
    assert seconds_left([60, 10], 11) == 90
    assert seconds_left([60, 10, 20, 10, 20], 105) == 1500
    assert seconds_left([60, 99, 10, 20, 10, 20], 106) == 1500
    assert seconds_left([60, 10], 2) == 0


def test_a_first_epoch_that_is_short_has_no_estimate(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Forecast, "AFTER", 0.0)
    train(data, tmp_path, epochs=2)  # of four steps
    assert "about" not in capsys.readouterr().out


def test_frozen_epochs_give_no_estimate(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Forecast, "AFTER", 0.0)
    monkeypatch.setattr(Forecast, "FIRST", 1)
    train(data, tmp_path, epochs=2, recipe={"frozen_epochs": 1})
    assert "about" not in capsys.readouterr().out


def test_progress_lines_are_rare(data, tmp_path, capsys):
    """The first after some seconds, and then no more than a few a minute."""
    assert 1 <= StepLines.FIRST <= 10 <= StepLines.SECONDS <= 60
    train(data, tmp_path, epochs=2)
    assert "step" not in capsys.readouterr().out


def test_the_bar_of_a_resumed_epoch_begins_where_it_stopped(data, tmp_path, monkeypatch, capfd):
    with pytest.raises(Stopped):
        train(data._replace(train=SignalAt(data.train, 6)), tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    capfd.readouterr()
    train(data, tmp_path)
    shown = [part.strip() for part in re.split(r"[\r\n]", "".join(capfd.readouterr())) if "%|" in part]
    assert shown[0].startswith("epoch 1/3, size 64  50%|")
    assert "| 2/4 [" in shown[0]
    assert not [part for part in shown if "/?" in part]
