"""The page of runs beside the settings in which they differ, from made-up runs."""

import json

import pytest

from made_runs import make_run
from sppnet.commands.naming import neutral_settings
from sppnet.results.plots import setting_dots
from sppnet.results.runs import read_runs
from sppnet.results.settings_page import settings_page


def tables(folder, neutral=None):
    """Returns the tables of the page as lists of rows, the headers first, without the line under them."""
    page = settings_page(read_runs([str(folder / "*")]), neutral or {})
    shown = [options for kind, options in page.blocks if kind == "table"]
    return page, [[list(table["headers"]), *map(list, table["rows"])] for table in shown]


def wrong_images(run, count):
    record = json.loads((run / "result.json").read_text())
    record |= {"top1_wrong": count, "top1_error": count / record["n"]}
    (run / "result.json").write_text(json.dumps(record))


def test_the_best_settings_come_first_and_only_what_differs_is_shown(tmp_path):
    for seed, (slow, fast) in enumerate(((10, 6), (12, 4))):
        wrong_images(make_run(tmp_path / "a", "single", seed, learning_rate=0.0123456), slow)
        wrong_images(make_run(tmp_path / "b", "single", seed, learning_rate=0.2, mixup=0.4), fast)
    wrong_images(make_run(tmp_path / "c", "none", learning_rate=0.1), 8)
    make_run(tmp_path / "d", "single", finished=False)

    page, (table,) = tables(tmp_path, {"recipe": {"mixup": 0.0, "cutmix": 0.0}})
    differing = ["`pooling.levels`", "`recipe.learning_rate`", "`recipe.mixup`"]
    assert table == [
        ["top-1 error", "95 % interval", "seeds", *differing, "first run"],
        ["12.50 ± 3.54", table[1][1], "2", "[6,3,2,1]", "0.2", "0.4", "folder-single-0"],
        ["20.00", "10.50 to 34.76", "1", "null", "0.1", "0", "folder-none-0"],
        ["27.50 ± 3.54", table[3][1], "2", "[6,3,2,1]", "0.0123", "0", "folder-single-0"],
    ]
    assert "Not finished, and left out: 1." in page.markdown()
    (figure,) = [options for kind, options in page.blocks if kind == "figure"]
    assert "pooling.levels, recipe.learning_rate, recipe.mixup" in str(figure)


def test_few_values_and_texts_are_named_below_the_axis_and_many_numbers_lie_on_it():
    rates = [0.1, 0.02, 0.004, 0.0008, 0.3]
    settings = {
        "batch": [64, 8, 16, 8, 8],
        "crop": [None, [0.2, 1], None, 3, True],
        "rate": rates,
        "epochs": [*range(5)],
    }
    figure = setting_dots(settings, [5.0, 6.0, 7.0, 8.0, 9.0], "error")
    figure.draw_without_rendering()
    batch, crop, rate, epochs = figure.axes[:4]
    assert [text.get_text() for text in batch.get_xticklabels()] == ["8", "16", "64"]
    assert batch.lines[0].get_xdata().tolist() == [2, 0, 1, 0, 0]
    assert [text.get_text() for text in crop.get_xticklabels()] == ["3", "null", "[0.2,1]", "true"]
    assert crop.lines[0].get_xdata().tolist() == [1, 2, 1, 0, 3]
    assert rate.get_xscale() == "log"
    assert rate.lines[0].get_xdata().tolist() == rates
    assert "0.01" in [text.get_text() for text in rate.get_xticklabels()]
    assert epochs.get_xscale() == "linear"  # 0 has no logarithm


def test_runs_on_other_data_have_a_table_of_their_own(tmp_path):
    make_run(tmp_path / "a", "single")
    make_run(tmp_path / "b", "single", n=60)
    make_run(tmp_path / "c", "single", source="shapes")
    make_run(tmp_path / "d", "single", training_images=99)
    changed = make_run(tmp_path / "e", "single") / "result.json"  # other images under the same names
    changed.write_text(json.dumps(json.loads(changed.read_text()) | {"validation_images": "0123456789abcdef"}))
    _, shown = tables(tmp_path)
    assert [len(table) for table in shown] == [2, 2, 2, 2, 2]


def test_without_a_finished_run_there_is_nothing_to_show(tmp_path):
    make_run(tmp_path / "a", "single", finished=False)
    with pytest.raises(ValueError, match=r"^runs: none of these 1 is finished"):
        tables(tmp_path)


def test_the_values_of_settings_that_runs_leave_out_are_those_of_the_shipped_configuration():
    neutral = neutral_settings()
    assert neutral["recipe"]["optimizer"] == "sgd"
    assert neutral["sizes"] == {"every": "epoch", "multiple": 1}
