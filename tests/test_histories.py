"""The course of training runs, from their records, and its plot."""

import json

import pytest

from made_runs import make_run
from sppnet.results.histories import training_curve
from sppnet.results.records import Epoch
from sppnet.results.report_plots import learning_curves
from sppnet.results.runs import read_runs
from sppnet.results.statistics import counts_interval


def recorded(tmp_path, *histories):
    """Returns finished runs of one network with these histories, (size, loss, wrong of 40) by epoch."""
    for seed, epochs in enumerate(histories):
        run = make_run(tmp_path, "alternate", seed)
        record = json.loads((run / "result.json").read_text())
        record["history"] = [
            {"epoch": i, "size": size, "images_per_second": 1.0}
            | ({"train_loss": loss} if loss is not None else {})
            | ({"top1_wrong": wrong, "n": 40} if wrong is not None else {})
            for i, (size, loss, wrong) in enumerate(epochs, start=1)
        ]
        (run / "result.json").write_text(json.dumps(record))
    return read_runs([str(tmp_path)])


def test_losses_and_sizes_are_by_epoch_and_run(tmp_path):
    runs = recorded(tmp_path, [(224, 3.0, None), (180, 2.5, 30)], [(224, 3.5, None), (180, float("nan"), 34)])
    curve = training_curve("zf5", runs)
    assert curve.runs == [{1: (3.0, True), 2: (2.5, False)}, {1: (3.5, True)}]


def test_validations_are_means_with_intervals_where_all_runs_have_them(tmp_path):
    runs = recorded(tmp_path, [(224, 3.0, 38), (224, 2.0, 20)], [(224, 3.0, None), (224, 2.0, 24)])
    ((epoch, error),) = training_curve("zf5", runs).validations.items()
    low, high = counts_interval([20, 24], 40)
    assert epoch == 2
    assert error == pytest.approx((55.0, 100 * low, 100 * high))


def test_epochs_with_a_size_for_every_batch_are_not_marked_as_smaller(tmp_path):
    runs = recorded(tmp_path, [(224, 3.0, 38), (224, 2.5, 30)])
    path = runs[0].path / "result.json"
    record = json.loads(path.read_text())
    record["history"] = [Epoch.from_dict(epoch | {"size": None}).to_dict() for epoch in record["history"]]
    path.write_text(json.dumps(record))
    assert training_curve("zf5", read_runs([str(tmp_path)])).runs == [{1: (3.0, True), 2: (2.5, True)}]


def test_old_records_without_losses_have_empty_curves(tmp_path):
    make_run(tmp_path, "single")
    curve = training_curve("zf5", read_runs([str(tmp_path)]))
    assert (curve.runs, curve.validations) == ([{}], {})


def test_epochs_of_the_smaller_size_have_hollow_markers(tmp_path):
    runs = recorded(tmp_path, [(224, 3.0, 38), (180, 2.5, 30), (224, 2.0, 20)])
    losses, errors = learning_curves([training_curve("zf5", runs)]).axes
    line, small = losses.get_lines()
    assert list(line.get_xdata()) == [1, 2, 3]
    assert (list(small.get_xdata()), list(small.get_ydata())) == ([2], [2.5])
    assert small.get_markerfacecolor() == "white"
    assert len(errors.containers[0].lines[2][0].get_segments()) == 3


def test_validation_losses_are_dotted_lines_of_the_runs_that_recorded_them(tmp_path):
    runs = recorded(tmp_path, [(224, 3.0, 38), (224, 2.0, 20), (224, 1.0, 9)], [(224, 3.0, 38)])
    record = json.loads((runs[0].path / "result.json").read_text())
    record["history"][0]["val_loss"], record["history"][2]["val_loss"] = 3.5, 1.5
    record["history"][1]["val_loss"] = float("inf")
    (runs[0].path / "result.json").write_text(json.dumps(record))
    curve = training_curve("zf5", read_runs([str(tmp_path)]))
    assert curve.validation_losses == [{1: 3.5, 3: 1.5}, {}]

    losses, _ = learning_curves([curve]).axes
    (dotted,) = (line for line in losses.get_lines() if line.get_linestyle() == ":")
    assert (list(dotted.get_xdata()), list(dotted.get_ydata())) == ([1, 3], [3.5, 1.5])
    assert "dotted: in validation" in losses.get_ylabel()
