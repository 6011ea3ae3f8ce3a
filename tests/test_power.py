"""What comparisons of runs can show, from made-up runs."""

import statistics

import numpy as np
import pytest
import yaml

from made_runs import made_scores, make_run, row_of
from sppnet.results.comparisons import NotTested
from sppnet.results.power_page import power_page
from sppnet.results.runs import read_runs
from sppnet.results.scores import write_scores
from sppnet.results.statistics import gain_interval, spread_of

WRONG = {"none": (120, 128, 131), "single": (111, 118, 107), "alternate": (126, 109, 121)}


def runs(folder, wrong=None, views="ten_crop"):
    for variant, counts in (wrong or WRONG).items():
        for seed, count in enumerate(counts):
            make_run(folder, variant, seed, n=400, wrong={views: count})
    return read_runs([str(folder)])


def mistakes(counts):
    """Made-up runs have the first images wrong."""
    return np.arange(400)[None] < np.array(counts)[:, None]


def test_every_network_is_compared_with_the_one_without_a_pyramid(tmp_path):
    page = power_page(runs(tmp_path))
    spread = spread_of(mistakes(WRONG["none"]), mistakes(WRONG["single"]))
    row = row_of(page, "| folder-single", "28.00 ± 1.39")
    assert row[1:5] == ["ten_crop", "400", "3", "28.00 ± 1.39"]
    assert row[5].startswith("+3.58 (")
    assert row[6:11] == [f"{100 * spread.shown_gain(seeds):.2f}" for seeds in (3, 5, 10, 20, 40)]
    assert row[11] == "more than 1,000"
    assert row_of(page, "| folder-none")[4:] == ["31.58 ± 1.42", *[""] * 7]
    assert row_of(page, "| folder-alternate", "400")[3] == "3"


def test_networks_are_also_compared_seed_by_seed(tmp_path):
    page = power_page(runs(tmp_path))
    reference, single = mistakes(WRONG["none"]), mistakes(WRONG["single"])
    low, high = (100 * end for end in gain_interval(reference, single, paired=True))
    smallest = spread_of(reference, single, paired=True).shown_gain(3)
    assert f"{statistics.correlation(WRONG['none'], WRONG['single']):+.2f}" == "-0.11"
    row = row_of(page, "| folder-single", "-0.11")
    assert row[1:] == ["ten_crop", "3", "-0.11", f"+3.58 ({low:+.2f} to {high:+.2f})", f"{100 * smallest:.2f}"]


def test_runs_whose_errors_rise_and_fall_together_show_smaller_gains_seed_by_seed(tmp_path):
    page = power_page(runs(tmp_path, {"none": (100, 120, 140, 110), "single": (96, 117, 135, 106)}))
    alone, by_seed = row_of(page, "| folder-single", "400"), row_of(page, "| folder-single", "+1.00 |")
    assert float(by_seed[5]) < 0.5 * float(alone[6])
    assert by_seed[4].split(" (")[0] == alone[5].split(" (")[0]


def test_only_shared_seeds_are_compared_seed_by_seed(tmp_path):
    for seed, count in ((0, 100), (1, 120), (2, 140), (3, 300)):
        make_run(tmp_path, "none", seed, n=400, wrong={"ten_crop": count})
    for seed, count in ((1, 96), (2, 110), (4, 20), (0, 90)):
        make_run(tmp_path, "single", seed, n=400, wrong={"ten_crop": count})
    row = row_of(power_page(read_runs([str(tmp_path)])), "| folder-single", "+5.33")
    assert row[2:4] == ["3", f"{statistics.correlation((100, 120, 140), (90, 96, 110)):+.2f}"]


@pytest.mark.parametrize(("wrong", "correlation"), [({"none": (90, 99)}, None), ({"none": (90, 90, 90)}, "")])
def test_two_seeds_have_no_correlation_and_neither_have_equal_errors(tmp_path, wrong, correlation):
    page = power_page(runs(tmp_path, WRONG | wrong))
    rows = [line for line in page.markdown().splitlines() if line.startswith("| folder-single")]
    assert [row.split("|")[4].strip() for row in rows[1:]] == ([] if correlation is None else [correlation])


def test_the_seeds_that_one_point_needs(tmp_path):
    wrong = {"none": (10, 11, 10), "single": (10, 9, 11)}
    needed = spread_of(*map(mistakes, wrong.values())).runs_needed(0.01)
    assert 2 < needed < 100
    assert row_of(power_page(runs(tmp_path, wrong)), "| folder-single", "400")[11] == str(needed)


def test_without_a_network_without_a_pyramid_the_first_is_the_reference(tmp_path):
    page = power_page(runs(tmp_path, {"30bins": (120, 121), "single": (100, 102)}))
    assert row_of(page, "| folder-30bins")[5] == ""
    assert row_of(page, "| folder-single")[5].startswith("+4.88 (")


def test_these_seeds_are_those_of_the_side_that_has_fewer(tmp_path):
    row = row_of(power_page(runs(tmp_path, WRONG | {"none": (120, 128)})), "| folder-single")
    spread = spread_of(mistakes((120, 128)), mistakes(WRONG["single"]))
    assert row[6] == f"{100 * spread.shown_gain(2):.2f}"


def test_networks_with_one_seed_are_left_out(tmp_path):
    page = power_page(runs(tmp_path, WRONG | {"30bins": (100,)})).markdown()
    assert "30bins" not in page
    assert "folder-alternate" in page


@pytest.mark.parametrize("wrong", [{"none": (1, 2)}, {"none": (1, 2), "single": (3,)}])
def test_nothing_to_compare_is_said_in_one_line(tmp_path, wrong):
    with pytest.raises(NotTested, match=r"^no two networks were tested by the same views with two seeds or more$"):
        power_page(runs(tmp_path, wrong))
    with pytest.raises(NotTested):
        power_page(runs(tmp_path / "other", {"none": (1, 2)}) + runs(tmp_path / "x", {"single": (1, 2)}, views="full"))


@pytest.mark.parametrize("n", [400, 300])
def test_networks_tested_on_other_images_are_refused(tmp_path, n):
    for seed in range(2):
        make_run(tmp_path, "none", seed, n=400, wrong={"ten_crop": 100 + seed})
        run = make_run(tmp_path, "single", seed, n=n, wrong={"ten_crop": 90 + seed})
        scores = made_scores(
            "ten_crop", 90 + seed, yaml.safe_load((run / "config.yaml").read_text()), n, images="others"
        )
        write_scores(run / "scores" / "ten_crop.npz", scores)
    with pytest.raises(ValueError, match=rf"were tested on different images or classes \(400 and {n} images\)$"):
        power_page(read_runs([str(tmp_path)]))
