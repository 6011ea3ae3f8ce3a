"""Error against the test scale, from made-up runs."""

import dataclasses

import numpy as np
import pytest
import yaml

from made_runs import made_scores, make_run, row_of
from sppnet.results.comparisons import gain_text
from sppnet.results.runs import read_runs
from sppnet.results.scales import scales_page
from sppnet.results.scores import write_scores
from sppnet.results.statistics import gain_interval
from test_views import shipped


def test_error_against_test_scale(tmp_path):
    run = make_run(tmp_path, "single")
    for scale, count in ((224, 12), (256, 10), (300, 14)):
        add_test(run, "full", scale, count)
        add_test(run, "center", scale, count)
    page = scales_page(read_runs([str(tmp_path)]))
    assert row_of(page, " 256 |")[1:] == ["25.00", "25.00"]
    assert row_of(page, "shorter side |")[1:] == [
        "SPP, one size, centre crop of 224",
        "SPP, one size, full image",
    ]
    assert "gain over" not in page.markdown()


def test_crops_of_several_sizes_at_one_scale_are_not_averaged(tmp_path):
    run = make_run(tmp_path, "single")
    for scale, count in ((224, 12), (256, 10)):
        add_test(run, "center", scale, count, view_size=180)
        add_test(run, "center", scale, count + 4, view_size=224)
    page = scales_page(read_runs([str(tmp_path)]))
    columns = ["SPP, one size, centre crop of 180", "SPP, one size, centre crop of 224"]
    assert row_of(page, "shorter side |")[1:] == columns
    assert row_of(page, " 224 |", " 30.00 |")[1:] == ["30.00", "40.00"]


def test_a_run_that_was_tested_twice_by_a_view_counts_once(tmp_path):
    for seed, counts in enumerate(((10, 12), (12, 14))):
        run = make_run(tmp_path, "single", seed)
        for scale, count in zip((224, 256), counts, strict=True):
            add_test(run, "full", scale, count)
        if seed == 0:
            add_test(run, "full", 256, 12, title="full")
    page = scales_page(read_runs([str(tmp_path)]))
    assert row_of(page, " 256 |")[1:] == ["32.50"]  # not (12 + 12 + 14) / 3 of 40


@pytest.mark.parametrize("levels", [[6, 3, 2, 1], [3, 1]])
def test_runs_that_differ_in_their_sizes_only_are_not_averaged(tmp_path, levels):
    for sizes, count in (([224, 180], 8), ([180, 224], 12)):
        run = make_run(tmp_path / str(sizes[0]), "alternate", levels=levels, sizes={"cycle": sizes})
        for scale in (224, 256):
            add_test(run, "full", scale, count)
    page = scales_page(read_runs([str(tmp_path / "*")]))
    name = "SPP, two sizes" if len(levels) == 4 else "SPP 3, 1"
    columns = [f"{name} of {sizes}, full image" for sizes in ("180/224", "224/180")]
    assert row_of(page, "shorter side |", "full image")[1:] == columns
    assert row_of(page, " 224 |", " 30.00 ")[1:] == ["30.00", "20.00"]


def test_gains_are_over_the_first_network_at_the_same_scale(tmp_path):
    wrong = {"none": ((20, 19), (16, 18), (15, 16)), "single": ((12, 9), (11, 13), (8, 16)), "alternate": ((7, 10),)}
    for variant, seeds in wrong.items():
        for seed, counts in enumerate(seeds):
            run = make_run(tmp_path, variant, seed)
            for scale, count in zip((224, 256), counts, strict=True):
                add_test(run, "center", scale, count)
    page = scales_page(read_runs([str(tmp_path)]))
    assert "centre crop of 224, gain over no SPP" in page.markdown()

    for column, scale in enumerate((224, 256)):
        first, one, two = (np.array([np.arange(40) < counts[column] for counts in wrong[variant]]) for variant in wrong)
        gains = [
            gain_text(first.mean() - other.mean(), *gain_interval(first, other)) for other in (two, one)
        ]  # their order in the table
        assert row_of(page, f" {scale} |", "(")[1:] == gains


def test_gains_are_by_the_same_view(tmp_path):
    for variant, crops, whole in (("none", 20, 18), ("single", 12, 4)):
        run = make_run(tmp_path, variant)
        for scale in (224, 256):
            add_test(run, "center", scale, crops)
            add_test(run, "full", scale, whole)
    _, by_crops, by_whole = scales_page(read_runs([str(tmp_path)])).markdown().split(", gain over no SPP:")
    assert by_crops.count("+20.00 (") == by_whole.count("+35.00 (") == 2


def test_scales_without_tests_say_what_to_run(tmp_path):
    make_run(tmp_path, "single", wrong={"full": 3})
    with pytest.raises(ValueError, match=r"scales=\[180,224"):
        scales_page(read_runs([str(tmp_path)]))


def add_test(run, views, scale, count, *, title=None, **protocol):
    """Adds scores of a run by a shipped protocol at one scale, `count` of 40 images wrong."""
    title = title or "-".join([views, str(scale), *map(str, protocol.values())])
    config = yaml.safe_load((run / "config.yaml").read_text())
    tested = dataclasses.replace(
        shipped(views), **protocol, **{"full_scales" if views == "full" else "scales": [scale]}
    )
    write_scores(run / "scores" / f"{title}.npz", made_scores(title, count, config, protocol=vars(tested)))
