"""Error against the pyramid, and between views, from made-up runs."""

import dataclasses

import numpy as np
import pytest
import yaml

from made_runs import CLASSES, made_scores, make_run, row_of
from sppnet.results.runs import read_runs
from sppnet.results.scores import write_scores
from sppnet.results.sweeps import pyramid_page, views_page


def test_the_sweep_orders_pyramids_and_names_the_controls(tmp_path):
    make_run(tmp_path, "none")
    for i, levels in enumerate(([1], [2, 1], [7], [6, 3, 2, 1])):
        for seed in (0, 1):
            make_run(tmp_path / str(i), "pyramid", seed, levels=levels)
    page = pyramid_page(read_runs([str(tmp_path), *(str(tmp_path / str(i)) for i in range(4))]))
    rows = [line.split("|")[1:-1] for line in page.markdown().splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == ["none (one 6 x 6 grid)", "1", "2, 1", "7", "6, 3, 2, 1"]
    assert [row[1].strip() for row in rows] == ["36", "1", "5", "49", "50"]
    assert [row[3].strip() for row in rows] == ["1", "2", "2", "2", "2"]
    fewer = "fewer parameters than no pyramid"
    assert [row[7].strip() for row in rows] == ["", fewer, fewer, "one level, no pyramid", ""]
    assert rows[4][5].strip() == "30.00 ± 0.00"
    assert rows[4][6].strip() == "2.0"


def test_views_are_compared_by_their_scores(tmp_path):
    for seed, (crops, maps) in enumerate(((10, 14), (12, 14))):
        make_run(tmp_path, "single", seed, wrong={"ten_crop": crops, "ten_crop_maps": maps, "center": crops})
    page = views_page(read_runs([str(tmp_path)]))
    apart = -np.log(np.finfo(np.float32).tiny)  # made-up scores are 0 and 1
    columns = row_of(page, "| ten_crop_maps ")
    assert columns[1:3] == ["2", f"{apart * (4 / 40 + 2 / 40) / 2:.4f}"]
    assert columns[3:5] == ["92.50", "35.00 ± 0.00"]
    assert columns[5].startswith("-7.50 (")
    assert row_of(page, "| center ")[2:5] == ["0.0000", "100.00", "27.50 ± 3.54"]


def test_the_divergence_of_views_is_that_of_kullback_and_leibler(tmp_path):
    run = make_run(tmp_path, "single", wrong={"ten_crop": 3})
    config = yaml.safe_load((run / "config.yaml").read_text())
    random = np.random.default_rng(0)
    q, p = random.dirichlet(np.ones(CLASSES), (2, 40)).astype(np.float32)
    for views, values in (("ten_crop", q), ("full", p)):
        write_scores(run / "scores" / f"{views}.npz", dataclasses.replace(made_scores(views, 3, config), scores=values))
    expected = np.mean([sum(a * np.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(q, p, strict=True)])
    assert row_of(views_page(read_runs([str(tmp_path)])), "| full ")[2] == f"{expected:.4f}"


def test_views_of_scores_that_are_zero_are_a_finite_distance_apart(tmp_path):
    run = make_run(tmp_path, "single", wrong={"ten_crop": 3})
    config = yaml.safe_load((run / "config.yaml").read_text())
    maps = made_scores("ten_crop_maps", 5, config)
    maps.scores[0] = [1, 0, 0, 0]
    write_scores(run / "scores" / "ten_crop_maps.npz", maps)
    divergence = float(row_of(views_page(read_runs([str(tmp_path)])), "ten_crop_maps")[1])
    assert 0 < divergence < 100


def test_views_without_ten_crops_say_what_to_run(tmp_path):
    make_run(tmp_path, "single", wrong={"full": 3})
    with pytest.raises(ValueError, match=r"views=\[ten_crop,ten_crop_maps\]"):
        views_page(read_runs([str(tmp_path)]))
