"""The paper's tables from made-up runs: rows, gains, intervals."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import yaml

from made_runs import CLASSES, made_scores, make_run, make_three_arms, row_of
from sppnet.results.comparisons import comparison_page
from sppnet.results.runs import read_runs
from sppnet.results.scores import Scores, write_scores
from sppnet.results.statistics import gain_interval
from sppnet.results.sweeps import pyramid_page
from sppnet.results.tables import table_page


@pytest.fixture
def three_arms(tmp_path):
    return make_three_arms(tmp_path)


def test_table2_on_other_data_has_no_column_of_the_paper(three_arms):
    page = table_page("table2", read_runs([str(three_arms)]))
    text = page.markdown()
    assert "paper" not in text.split("## ")[1].split("Not run yet")[0]
    assert row_of(page, "| no SPP ", "ten_crop")[2:] == ["40", "2", "51.25 ± 1.77", "", "", "2.00"]  # 4 classes
    row = row_of(page, "SPP, one size", "ten_crop")
    assert row[4] == "40.00 ± 0.00"
    assert row[5].startswith("+11.25 (")
    assert row[6] == "0.12, 0.062"  # of 40 images, 4 and 5 are wrong only without the pyramid
    assert row[7:] == ["2.00"]
    assert "on 2 x GPU." in text
    assert "SPP, two sizes, seed 0, has not finished training: `python scripts/train.py run=" in text
    assert "ImageNet" not in text


def test_tables_name_the_sides_of_each_protocol(three_arms):
    runs = read_runs([str(three_arms)])
    assert "Views: ten_crop: ten_crop of 224." in table_page("table2", runs).markdown()
    assert "Views: center: center of 224; full: full of 224." in table_page("table3", runs).markdown()
    config = yaml.safe_load((three_arms / "folder-none-0" / "config.yaml").read_text())
    for seed in (0, 1):
        file = three_arms / f"folder-none-{seed}" / "scores" / "ten_crop.npz"
        config["data"]["root"] = f"/somewhere/{seed}/photos"
        write_scores(file, made_scores("ten_crop", 20, config, protocol_text="ten_crop of 128"))
    text = table_page("table2", read_runs([str(three_arms)])).markdown()
    assert "Views: ten_crop, no SPP: ten_crop of 128; ten_crop, SPP, one size: ten_crop of 224." in text


def test_table3_counts_the_gain_from_the_crop(three_arms):
    page = table_page("table3", read_runs([str(three_arms)]))
    assert row_of(page, "SPP, one size", "| full")[5].startswith("+5.00")
    assert row_of(page, "SPP, one size", "| center")[5] == ""
    runs = ",".join(f"{three_arms}/folder-none-{seed}" for seed in (0, 1))
    assert f"\nno SPP, seeds 0, 1, by center: `python scripts/evaluate.py 'run=[{runs}]' 'views=[center]'`\n" in (
        page.markdown()
    )


def test_on_imagenet_the_papers_numbers_are_beside_ours(tmp_path):
    make_run(tmp_path, "none", source="imagenet", wrong={"ten_crop": 15})
    make_run(tmp_path, "single", source="imagenet", wrong={"ten_crop": 14})
    page = table_page("table2", read_runs([str(tmp_path)]))
    row = row_of(page, "SPP, one size", "ten_crop", "+1.01")
    assert row[4:8] == ["34.98", "35.00 (22.13 to 50.49)", "+1.01", row[7]]
    assert row[7].startswith("+2.50 (")
    # Everything else of the table is there with its command and what it would take.
    missing = row_of(page, "overfeat7", "SPP, two sizes")
    assert missing[2:5] == [
        "29.68",
        "10.95",
        "`python scripts/train.py experiment=table2_overfeat7_alternate data.root=/somewhere/0/photos`",
    ]
    assert missing[5].startswith("roughly ")
    (line,) = [line for line in page.markdown().splitlines() if "name=table2_zf5_alternate" in line]
    assert line.startswith("SPP, two sizes, by ten_crop (roughly ")


def test_a_prepared_store_of_imagenet_is_imagenet(tmp_path):
    counts = {"n": 50_000, "training_images": 1_281_167}
    make_run(tmp_path, "none", seed=0, source="prepared", finished=False)
    make_run(tmp_path, "none", seed=1, source="prepared", wrong={"ten_crop": 15_000}, **counts)
    make_run(tmp_path, "single", seed=1, source="prepared", wrong={"ten_crop": 14_000}, **counts)
    page = table_page("table2", read_runs([str(tmp_path)]))
    assert row_of(page, "SPP, one size", "ten_crop", "+1.01")[4] == "34.98"
    assert row_of(page, "overfeat7", "SPP, two sizes")[4] == (
        "`python scripts/train.py experiment=table2_overfeat7_alternate data=prepared data.root=/somewhere/1/photos`"
    )


def test_another_prepared_store_is_not_imagenet(tmp_path):
    make_run(tmp_path, "none", source="prepared", wrong={"ten_crop": 15})
    assert "top-1, paper" not in table_page("table2", read_runs([str(tmp_path)])).markdown()


def test_without_any_run_of_the_table_the_commands_are_shown(tmp_path):
    make_run(tmp_path, "single", levels=[5])
    page = table_page("table4", read_runs([str(tmp_path)]))
    assert row_of(page, "multi_view_full")[2:4] == ["27.86", "9.14"]


def test_table4_has_other_networks_if_they_were_tested_by_its_views(tmp_path):
    make_run(tmp_path, "alternate", wrong={"ten_crop": 16, "multi_view_full": 12})
    make_run(tmp_path, "single", wrong={"ten_crop": 16, "multi_view_full": 14})
    make_run(tmp_path, "none", wrong={"ten_crop": 20})
    page = table_page("table4", read_runs([str(tmp_path)]))
    assert row_of(page, "SPP, one size", "multi_view_full", "+5.00")[4].startswith("35.00 (")
    assert "no SPP" not in page.markdown()


def test_runs_with_different_recipes_are_not_averaged_as_seeds(tmp_path):
    make_run(tmp_path, "single", 0, wrong={"ten_crop": 10})
    make_run(tmp_path, "single", 1, wrong={"ten_crop": 20}, epochs=3)
    page = table_page("table2", read_runs([str(tmp_path)]))
    assert [line.count("±") for line in page.markdown().splitlines() if "| ten_crop" in line and "40" in line] == [0, 0]


def test_runs_on_other_images_of_the_same_names_are_not_compared(three_arms):
    config = yaml.safe_load((three_arms / "folder-none-0" / "config.yaml").read_text())
    scores = made_scores("ten_crop", 20, config, images="other")
    write_scores(three_arms / "folder-none-0" / "scores" / "ten_crop.npz", scores)
    with pytest.raises(ValueError, match="different images"):
        table_page("table2", read_runs([str(three_arms)]))


def test_runs_on_different_images_are_not_compared(three_arms):
    config = yaml.safe_load((three_arms / "folder-none-0" / "config.yaml").read_text())
    write_scores(three_arms / "folder-none-0" / "scores" / "ten_crop.npz", made_scores("ten_crop", 3, config, n=39))
    with pytest.raises(ValueError, match="different images"):
        table_page("table2", read_runs([str(three_arms)]))


# Gains.


def add_test(run, views, mistakes):
    """Saves scores by which the images in `mistakes`, bool (n,), are wrong."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    scores = made_scores(views, 0, config, n=len(mistakes))
    predicted = (scores.labels + mistakes) % CLASSES
    write_scores(
        run / "scores" / f"{views}.npz",
        dataclasses.replace(scores, scores=np.eye(CLASSES, dtype=np.float32)[predicted]),
    )


def interval_in(cell):
    return [float(number) / 100 for number in re.fullmatch(r".*\((\S+) to (\S+)\)", cell).groups()]


@pytest.fixture
def uneven_runs(tmp_path):
    """Three seeds without and with a pyramid, tested by two protocols; [variant, views] are bool (3, 40)."""
    random, wrong = np.random.default_rng(0), {}
    for variant in ("none", "single"):
        for views in ("center", "ten_crop", "full"):
            wrong[variant, views] = random.random((3, 40)) < np.array([[0.3], [0.5], [0.7]])
        for seed in range(3):
            run = make_run(tmp_path, variant, seed)
            for views in ("center", "ten_crop") if variant == "none" else ("center", "ten_crop", "full"):
                add_test(run, views, wrong[variant, views][seed])
    return tmp_path, wrong


def test_gains_between_networks_treat_their_runs_as_independent(uneven_runs):
    folder, wrong = uneven_runs
    page = table_page("table2", read_runs([str(folder)]))
    expected = gain_interval(wrong["none", "ten_crop"], wrong["single", "ten_crop"])
    cell = row_of(page, "SPP, one size", "| ten_crop")[5]
    assert interval_in(cell) == pytest.approx(expected, abs=1e-4)
    assert "its 95 % interval over images and training runs; over images only where a side has one run" in (
        page.markdown()
    )
    assert "because a side has one run" not in page.markdown()


def test_gains_between_protocols_pair_the_same_runs(uneven_runs):
    folder, wrong = uneven_runs
    page = table_page("table3", read_runs([str(folder)]))
    expected = gain_interval(wrong["single", "center"], wrong["single", "full"], paired=True)
    assert expected != pytest.approx(gain_interval(wrong["single", "center"], wrong["single", "full"]), abs=0.01)
    assert interval_in(row_of(page, "SPP, one size", "| full")[5]) == pytest.approx(expected, abs=1e-4)


def test_gains_between_protocols_leave_out_runs_tested_by_only_one(uneven_runs):
    folder, wrong = uneven_runs
    (folder / "folder-single-0" / "scores" / "center.npz").unlink()
    (folder / "folder-single-2" / "scores" / "full.npz").unlink()
    page = table_page("table3", read_runs([str(folder)]))
    before, after = wrong["single", "center"][1:2], wrong["single", "full"][1:2]
    cell, p = (row_of(page, "SPP, one size", "| full")[column] for column in (5, 6))
    assert cell.startswith(f"{100 * (before.mean() - after.mean()):+.2f} (")
    assert interval_in(cell) == pytest.approx(gain_interval(before, after), abs=1e-4)
    assert len(p.split(", ")) == 1
    assert "over images only, because a side has one run: SPP, one size by full." in page.markdown()


def test_gains_with_one_run_on_a_side_are_marked_as_over_images_only(uneven_runs):
    folder, _ = uneven_runs
    for seed in (1, 2):
        shutil.rmtree(folder / f"folder-none-{seed}")
    text = table_page("table2", read_runs([str(folder)])).markdown()
    assert "Gains with intervals over images only, because a side has one run: SPP, one size by ten_crop." in text


def test_top5_has_separate_columns(tmp_path):
    labels, names = np.arange(40) % 10, np.array([f"{i}.jpg" for i in range(40)])
    for variant, hits in (("none", 30), ("single", 35)):
        run = make_run(tmp_path, variant)
        about = made_scores("ten_crop", 0, yaml.safe_load((run / "config.yaml").read_text())).about
        # No label has the highest score; of so many images, it has the second, of the others the last.
        scores = np.tile(np.linspace(0.2, 0.1, 10, dtype=np.float32), (40, 1))
        scores[np.arange(40), labels] = np.where(np.arange(40) < hits, 0.3, 0.0)
        scores[np.arange(40), (labels + 1) % 10] = 0.4
        write_scores(run / "scores" / "ten_crop.npz", Scores(scores, labels, names, about))
    row = row_of(table_page("table2", read_runs([str(tmp_path)])), "SPP, one size", "| ten_crop")
    assert [cell.split()[0] for cell in row[4:8]] == ["100.00", "+0.00", "12.50", "+12.50"]


def test_the_same_training_does_not_count_twice(tmp_path):
    run = make_run(tmp_path, "single", wrong={"ten_crop": 10})
    shutil.copytree(run, tmp_path / "copy")
    runs = read_runs([str(tmp_path)])
    for page in (lambda: table_page("table2", runs), lambda: pyramid_page(runs)):
        with pytest.raises(ValueError, match=r"copy and .*folder-single-0: the same training with the same seed"):
            page()
    assert "combination of 2" in comparison_page(runs).markdown()
