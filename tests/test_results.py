"""The paper's tables, sweeps and comparisons from runs written by hand."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import yaml

from sppnet.records import SCORING_RULES, Scores, write_scores
from sppnet.results.paper import PAPER, TABLES, experiment_of, table_page
from sppnet.results.runs import grouped, multiply_adds, parameters, read_runs, training_work
from sppnet.results.sweeps import classes_page, comparison_page, pyramid_page, scales_page
from test_views import SHIPPED, shipped

CLASSES = 4
SIZES = {"none": [224], "single": [224], "30bins": [224], "alternate": [224, 180]}
LEVELS = {"none": None, "30bins": [4, 3, 2, 1]}


def make_run(folder, variant, seed=0, source="folder", wrong=None, finished=True, n=40, levels=None, **recipe):
    """A run directory with made-up records; `wrong` gives the number of wrong images per protocol."""
    run = folder / f"{source}-{variant}-{seed}"
    run.mkdir(parents=True)
    config = {
        "backbone": {"architecture": "zf5", "width": 0.1, "normalization": "none"},
        "pooling": {"levels": LEVELS.get(variant, [6, 3, 2, 1]) if levels is None else levels},
        "hidden": 16,
        "sizes": {"uniform": [180, 224]} if variant == "random" else {"cycle": SIZES.get(variant, [224])},
        "data": {"source": source, "root": f"/somewhere/{seed}/photos"},
        "recipe": {"epochs": 2, "batch_size": 4, "learning_rate": 0.1} | recipe,
        "seed": seed,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if finished:
        counts = {"top1_wrong": 20 - 2 * len(config["pooling"]["levels"] or []), "top5_wrong": 5, "n": n}
        result = {
            **counts,
            "top1_error": counts["top1_wrong"] / n,
            "num_classes": CLASSES,
            "training_images": 100,
            "seconds": 3600.0,
            "hardware": "2 x GPU",
            "checkpoint": "abc",
            "history": [{"images_per_second": 50.0}],
        }
        (run / "result.json").write_text(json.dumps(result))
    for views, count in (wrong or {}).items():
        write_scores(run / "scores" / f"{views}.npz", made_scores(views, count, config, n))
    return run


def made_scores(views, count, config, n=40, **changes):
    labels = np.arange(n) % CLASSES
    predicted = (labels + (np.arange(n) < count)) % CLASSES
    protocol = vars(shipped(views)) if views in SHIPPED else {}
    about = {
        "views": views,
        "protocol": protocol,
        "data": config["data"],
        "part": "val",
        "exclude": [],
        "checkpoint": "abc",
        "rules": SCORING_RULES,
        "protocol_text": f"{views} of 224",
        "classes": ["ant", "bee", "cat", "<dog>"],
    } | changes
    names = np.array([f"{i}.jpg" for i in range(n)])
    return Scores(np.eye(CLASSES, dtype=np.float32)[predicted], labels, names, about)


@pytest.fixture
def three_arms(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, "none", seed, wrong={"ten_crop": 20 + seed})
        make_run(tmp_path, "single", seed, wrong={"ten_crop": 16, "center": 19, "full": 17})
    make_run(tmp_path, "none", seed=2, finished=False)
    make_run(tmp_path, "alternate", finished=False)
    return tmp_path


def row_of(page, *words):
    """The only row of the page's Markdown that has all the words, as its cells."""
    rows = [
        line for line in page.markdown().splitlines() if line.startswith("|") and all(word in line for word in words)
    ]
    assert len(rows) == 1, rows
    return [cell.strip() for cell in rows[0].strip("|").split("|")]


def test_table2_on_other_data_has_no_column_of_the_paper(three_arms):
    page = table_page("table2", read_runs([str(three_arms)]))
    text = page.markdown()
    assert "paper" not in text.split("## ")[1]
    assert row_of(page, "| no SPP ", "ten_crop")[2:] == ["40", "2", "51.25 ± 1.77", "", "0.00 ± 0.00", "", "", "2.00"]
    row = row_of(page, "SPP, one size", "ten_crop")
    assert row[4] == "40.00 ± 0.00"
    assert row[5].startswith("+11.25 (")
    assert row[8] == "0.12, 0.062"  # of 40 images, 4 and 5 are wrong only without the pyramid
    assert row[9:] == ["2.00"]
    assert "on 2 x GPU." in text
    assert "not finished" in " ".join(row_of(page, "SPP, two sizes"))
    assert "ImageNet" not in text


def test_tables_say_at_which_sides_was_tested(three_arms):
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
    assert "evaluate.py run=" in " ".join(row_of(page, "no SPP, seed 0"))


def test_on_imagenet_the_paper_stands_beside_ours(tmp_path):
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
        "`python scripts/train.py experiment=table2_overfeat7_alternate data.root=PATH`",
    ]
    assert missing[5].startswith("roughly ")
    assert "experiment=table2_zf5_alternate" in " ".join(row_of(page, "SPP, two sizes", "zf5_alternate"))


def test_without_any_run_of_the_table_the_commands_are_shown(tmp_path):
    make_run(tmp_path, "single", levels=[5])
    page = table_page("table4", read_runs([str(tmp_path)]))
    assert row_of(page, "multi_view_full")[2:4] == ["27.86", "9.14"]


def test_table4_has_other_networks_where_they_were_tested_by_its_views(tmp_path):
    make_run(tmp_path, "alternate", wrong={"ten_crop": 16, "multi_view_full": 12})
    make_run(tmp_path, "single", wrong={"ten_crop": 16, "multi_view_full": 14})
    make_run(tmp_path, "none", wrong={"ten_crop": 20})
    page = table_page("table4", read_runs([str(tmp_path)]))
    assert row_of(page, "SPP, one size", "multi_view_full", "+5.00")[4].startswith("35.00 (")
    assert "no SPP" not in page.markdown()


def test_runs_with_different_recipes_are_never_seeds_of_one_another(tmp_path):
    make_run(tmp_path, "single", 0, wrong={"ten_crop": 10})
    make_run(tmp_path, "single", 1, wrong={"ten_crop": 20}, epochs=3)
    page = table_page("table2", read_runs([str(tmp_path)]))
    assert [line.count("±") for line in page.markdown().splitlines() if "| ten_crop" in line and "40" in line] == [0, 0]


@pytest.mark.parametrize(
    "about",
    [
        {"checkpoint": "old"},
        {"rules": SCORING_RULES - 1},
        {"rules": None},
        {"part": "train"},
        {"exclude": ["a.jpg"]},
        {"data": {"source": "folder", "root": "/elsewhere/photos"}},
    ],
)
def test_scores_of_another_checkpoint_or_other_images_do_not_count(tmp_path, about):
    run = make_run(tmp_path, "single")
    config = yaml.safe_load((run / "config.yaml").read_text())
    write_scores(run / "scores" / "center.npz", made_scores("center", 3, config, **about))
    assert read_runs([str(tmp_path)])[0].scores == {}
    write_scores(run / "scores" / "center.npz", made_scores("center", 3, config))
    assert list(read_runs([str(tmp_path)])[0].scores) == ["center"]


def test_scores_of_a_run_are_of_the_contents_it_validated_on_wherever_they_are(tmp_path):
    run = make_run(tmp_path, "single")
    config = yaml.safe_load((run / "config.yaml").read_text())
    result = json.loads((run / "result.json").read_text()) | {"validation_images": "123"}
    (run / "result.json").write_text(json.dumps(result))
    moved = {"data": {"source": "prepared", "root": "/elsewhere"}}
    write_scores(run / "scores" / "center.npz", made_scores("center", 3, config, images="456"))
    assert read_runs([str(tmp_path)])[0].scores == {}
    write_scores(run / "scores" / "center.npz", made_scores("center", 3, config, images="123", **moved))
    assert list(read_runs([str(tmp_path)])[0].scores) == ["center"]


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


def test_every_number_of_the_paper_has_its_table_and_its_experiment():
    assert len({experiment_of(*key) for key in PAPER}) == len(PAPER) == 14
    shown = {
        (key, views)
        for spec in TABLES.values()
        for key, numbers in PAPER.items()
        for views in numbers
        if key[1] in spec.variants and views in spec.views
    }
    assert shown == {(key, views) for key, numbers in PAPER.items() for views in numbers}
    # Gains as the paper prints them in Table 2, top-1.
    gains = {
        key: round(PAPER[key[0], "none"]["ten_crop"][0] - numbers["ten_crop"][0], 2) for key, numbers in PAPER.items()
    }
    assert gains["zf5", "single"] == 1.01
    assert gains["overfeat7", "alternate"] == 2.33


# Sweeps.


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
    assert [row[8].strip() for row in rows] == ["", fewer, fewer, "one level, no pyramid", ""]
    assert rows[4][5].strip() == "30.00 ± 0.00"
    assert rows[4][7].strip() == "2.0"


def test_error_against_test_scale(tmp_path):
    run = make_run(tmp_path, "single")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for scale, count in ((224, 12), (256, 10), (300, 14)):
        for views in ("full", "center"):
            scores = made_scores(f"{views}-{scale}", count, config, protocol=vars(shipped(views).at(scale)))
            write_scores(run / "scores" / f"{views}-{scale}.npz", scores)
    page = scales_page(read_runs([str(tmp_path)]))
    assert row_of(page, " 256 |")[1:] == ["25.00", "25.00"]
    assert row_of(page, "shorter side |")[1:] == ["SPP, one size, centre crop", "SPP, one size, full image"]


def test_scales_without_tests_say_what_to_run(tmp_path):
    make_run(tmp_path, "single", wrong={"full": 3})
    with pytest.raises(ValueError, match=r"scales=\[180,224"):
        scales_page(read_runs([str(tmp_path)]))


def test_comparison_and_classes(three_arms):
    runs = [run for run in read_runs([str(three_arms)]) if run.scores]
    page = comparison_page(runs)
    assert "combination of 4" in page.markdown()
    assert row_of(page, "folder-single-0", "folder-none-0", "0.12")[3:5] == ["0", "4"]
    assert "&lt;dog&gt;" in classes_page(runs[0]).html()
    with pytest.raises(ValueError, match="no views that all were tested on"):
        comparison_page(read_runs([str(three_arms)]))


def test_names_that_look_like_paths_are_names(tmp_path):
    run = make_run(tmp_path / "runs", "single")
    config = yaml.safe_load((run / "config.yaml").read_text())
    evil = "../../../evil"
    scores = made_scores("center", 5, config, classes=[evil, "bee", "cat", "dog"])
    scores = dataclasses.replace(
        scores, names=np.array([f"{evil}{i}" for i in range(40)]), about=scores.about | {"views": evil}
    )
    write_scores(run / "scores" / "center.npz", scores)
    before = set(tmp_path.parent.rglob("*"))
    written = classes_page(*read_runs([str(tmp_path / "runs")])).write(tmp_path / "pages", "classes")
    assert evil in written[0].read_text()
    assert set(tmp_path.parent.rglob("*")) - before == {tmp_path / "pages", *written}


# Runs.


def test_runs_are_found_in_folders_and_by_patterns(three_arms):
    assert len(read_runs([str(three_arms)])) == 6
    assert len(read_runs([str(three_arms / "*single*")])) == 2
    assert len(read_runs([str(three_arms / "folder-none-0"), str(three_arms / "*-none-*")])) == 3
    with pytest.raises(ValueError, match="no run directories there"):
        read_runs([str(three_arms / "nothing*")])


def test_the_root_of_the_data_may_differ_and_its_last_folder_may_not(three_arms):
    assert len(grouped(read_runs([str(three_arms / "*none*")]))) == 1
    moved = three_arms / "folder-none-1" / "config.yaml"
    moved.write_text(moved.read_text().replace("photos", "drawings"))
    assert len(grouped(read_runs([str(three_arms / "*none*")]))) == 2


@pytest.mark.parametrize(
    "content", ["a: [", "no sections", "backbone: 1\n", "!!python/object/apply:os.system ['true']\n"]
)
def test_a_damaged_configuration_is_named(three_arms, content):
    (three_arms / "folder-none-0" / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"folder-none-0/config\.yaml: not the configuration of a run") as error:
        read_runs([str(three_arms)])
    assert "\n" not in str(error.value)


def test_work_is_counted_from_the_layers(tmp_path):
    backbone = json.dumps({"architecture": "zf5", "width": 1.0, "normalization": "none"}, sort_keys=True)
    assert multiply_adds(backbone, (6, 3, 2, 1), 4096, 1000, 224) == pytest.approx(1.218e9, rel=1e-3)
    shutil.rmtree(make_run(tmp_path, "none"))
    run = read_runs([str(make_run(tmp_path, "none"))])[0]
    filters = [3, 10, 26, 38, 38, 26]  # of widths 0.1
    kernels = [49, 25, 9, 9, 9]
    convolutions = sum((a * k + 1) * b for a, b, k in zip(filters, filters[1:], kernels, strict=False))
    assert parameters(run) == convolutions + (36 * 26 + 1) * 16 + 17 * 16 + 17 * CLASSES
    one, two = (training_work({**run.config, "recipe": {"epochs": e}}, CLASSES, 100) for e in (1, 2))
    assert two == 2 * one > 0
