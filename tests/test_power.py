"""What comparisons of runs can show, from made-up runs."""

import numpy as np
import pytest
import yaml

from made_runs import made_scores, make_run, row_of
from sppnet.results.comparisons import NotTested
from sppnet.results.power_page import power_page
from sppnet.results.runs import read_runs
from sppnet.results.scores import write_scores
from sppnet.results.statistics import spread_of

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
    row = row_of(page, "| folder-single")
    assert row[1:5] == ["ten_crop", "400", "3", "28.00 ± 1.39"]
    assert row[5].startswith("+3.58 (")
    assert row[6:11] == [f"{100 * spread.shown_gain(seeds):.2f}" for seeds in (3, 5, 10, 20, 40)]
    assert row[11] == "more than 1,000"
    assert row_of(page, "| folder-none")[4:] == ["31.58 ± 1.42", *[""] * 7]
    assert row_of(page, "| folder-alternate")[3] == "3"


def test_the_seeds_that_one_point_needs(tmp_path):
    wrong = {"none": (10, 11, 10), "single": (10, 9, 11)}
    needed = spread_of(*map(mistakes, wrong.values())).runs_needed(0.01)
    assert 2 < needed < 100
    assert row_of(power_page(runs(tmp_path, wrong)), "| folder-single")[11] == str(needed)


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
