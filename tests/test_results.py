"""The paper's tables, sweeps and comparisons from runs written by hand."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sppnet.commands.evaluate import find_runs
from sppnet.commands.settings import CONFIGS, run_directory
from sppnet.results.costs import multiply_adds, parameters, training_work
from sppnet.results.paper import PAPER, TABLES, experiment_of, hydra_value, table_page
from sppnet.results.records import SCORING_RULES, Scores, write_scores
from sppnet.results.runs import grouped, read_runs
from sppnet.results.statistics import gain_interval
from sppnet.results.sweeps import classes_page, comparison_page, pyramid_page, scales_page, views_page
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
    assert "paper" not in text.split("## ")[1].split("Not run yet")[0]
    assert row_of(page, "| no SPP ", "ten_crop")[2:] == ["40", "2", "51.25 ± 1.77", "", "0.00 ± 0.00", "", "", "2.00"]
    row = row_of(page, "SPP, one size", "ten_crop")
    assert row[4] == "40.00 ± 0.00"
    assert row[5].startswith("+11.25 (")
    assert row[8] == "0.12, 0.062"  # of 40 images, 4 and 5 are wrong only without the pyramid
    assert row[9:] == ["2.00"]
    assert "on 2 x GPU." in text
    assert "SPP, two sizes, seed 0, has not finished training: `python scripts/train.py run=" in text
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
    runs = ",".join(f"{three_arms}/folder-none-{seed}" for seed in (0, 1))
    assert f"\nno SPP, seeds 0, 1, by center: `python scripts/evaluate.py 'run=[{runs}]' 'views=[center]'`\n" in (
        page.markdown()
    )


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
        "`python scripts/train.py experiment=table2_overfeat7_alternate data.root=/somewhere/0/photos`",
    ]
    assert missing[5].startswith("roughly ")
    (line,) = [line for line in page.markdown().splitlines() if "name=table2_zf5_alternate" in line]
    assert line.startswith("SPP, two sizes, by ten_crop (roughly ")


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


def test_gains_between_networks_count_the_runs_of_both_as_independent(uneven_runs):
    folder, wrong = uneven_runs
    page = table_page("table2", read_runs([str(folder)]))
    expected = gain_interval(wrong["none", "ten_crop"], wrong["single", "ten_crop"])
    cell = row_of(page, "SPP, one size", "| ten_crop")[5]
    assert interval_in(cell) == pytest.approx(expected, abs=1e-4)
    assert "its 95 % interval over images and training runs; over images only where a side has one run" in (
        page.markdown()
    )
    assert "because a side has one run" not in page.markdown()


def test_gains_between_protocols_are_of_the_same_runs(uneven_runs):
    folder, wrong = uneven_runs
    page = table_page("table3", read_runs([str(folder)]))
    expected = gain_interval(wrong["single", "center"], wrong["single", "full"], same_runs=True)
    assert expected != pytest.approx(gain_interval(wrong["single", "center"], wrong["single", "full"]), abs=0.01)
    assert interval_in(row_of(page, "SPP, one size", "| full")[5]) == pytest.approx(expected, abs=1e-4)


def test_gains_between_protocols_leave_out_runs_that_were_tested_by_one(uneven_runs):
    folder, wrong = uneven_runs
    (folder / "folder-single-0" / "scores" / "center.npz").unlink()
    (folder / "folder-single-2" / "scores" / "full.npz").unlink()
    page = table_page("table3", read_runs([str(folder)]))
    before, after = wrong["single", "center"][1:2], wrong["single", "full"][1:2]
    cell, p = (row_of(page, "SPP, one size", "| full")[column] for column in (5, 8))
    assert cell.startswith(f"{100 * (before.mean() - after.mean()):+.2f} (")
    assert interval_in(cell) == pytest.approx(gain_interval(before, after), abs=1e-4)
    assert len(p.split(", ")) == 1
    assert "over images only, because a side has one run: SPP, one size by full." in page.markdown()


def test_one_run_on_a_side_is_said_to_be_over_images_only(uneven_runs):
    folder, _ = uneven_runs
    for seed in (1, 2):
        shutil.rmtree(folder / f"folder-none-{seed}")
    text = table_page("table2", read_runs([str(folder)])).markdown()
    assert "Gains with intervals over images only, because a side has one run: SPP, one size by ten_crop." in text


def test_top5_has_columns_of_its_own(tmp_path):
    labels, names = np.arange(40) % 8, np.array([f"{i}.jpg" for i in range(40)])
    for variant, hits in (("none", 30), ("single", 35)):
        run = make_run(tmp_path, variant)
        about = made_scores("ten_crop", 0, yaml.safe_load((run / "config.yaml").read_text())).about
        # No label has the highest score; of so many images, it has the second, of the others the last.
        scores = np.tile(np.linspace(0.2, 0.1, 8, dtype=np.float32), (40, 1))
        scores[np.arange(40), labels] = np.where(np.arange(40) < hits, 0.3, 0.0)
        scores[np.arange(40), (labels + 1) % 8] = 0.4
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


# What is not run yet.


def composed(name, words):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(name, words)
    OmegaConf.resolve(config)
    return config


def start_run(folder, *words):
    """A run directory as train.py makes it, without training."""
    run = run_directory(composed("train", [f"runs={folder}", *words]))
    run.claim()
    return run.path


def commands(page):
    """The words of every command of a page, as a shell reads them."""
    return [shlex.split(text) for text in re.findall("`(python [^`]*)`", page.markdown())]


STRANGE = 'it\'s $5, a="b" [x] {y} \\ & more'
SETTINGS = [
    ["experiment=demo"],
    ["experiment=caltech101_zf5_single", "data.root=data"],
    ["recipe=paper", "data=folder", f"data.root='/a b/{STRANGE}'".replace("it's", "its")],
    ["backbone=timm", "backbone.name=resnet18", "recipe=fast", "data=hub", "data.name=parquet",
     "data.data_files={train: 'x*.parquet'}", "sizes=random", "hidden=64"],
    ["experiment=table2_overfeat7_single", "data.root=/imagenet", "recipe.epochs=30"],
]  # fmt: skip


@settings(deadline=None)
@given(st.text(alphabet="ab1 .$={}[],:'\"\\~/é", max_size=8))
@example("${oc.env:HOME}")
@example("null")
@example("1e3")
@example('\\"')
@example("\\${")
@example("ends in \\")
def test_hydra_reads_every_value_back(text):
    for value in (text, [text, None, 0.5], {"key": text}):
        override = OverridesParser.create().parse_override(f"key={hydra_value(value)}")
        assert OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True) == {"key": value}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda words: words[0])
def test_the_command_for_an_unfinished_run_is_that_run(tmp_path, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    run = start_run("runs", *setting, "seed=3")
    python, script, *words = commands(table_page("table2", read_runs(["runs"])))[0]
    assert (python, script) == ("python", "scripts/train.py")
    again = run_directory(composed("train", words))
    assert again.path == run
    again.claim()  # refuses another setting
    assert again.config["seed"] == 3


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda words: words[0])
def test_commands_for_missing_networks_differ_in_pyramid_and_sizes_alone(tmp_path, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        start_run("runs", *setting, f"seed={seed}")
    found = read_runs(["runs"])
    trainings = [words for words in commands(table_page("table2", found)) if "-m" in words]
    variants = []
    for words in trainings:
        assert words[-1] == "seed=0,1"
        new = start_run("new", *words[3:-1], "seed=0")
        (run,) = [run for run in read_runs(["new"]) if run.path == new]
        assert run.setting("pooling", "sizes") == found[0].setting("pooling", "sizes")
        assert run.config["data"] == found[0].config["data"]  # the root, too
        variants.append(run.variant)
    assert {*variants, found[0].variant} >= {"none", "single", "alternate"}
    assert len(set(variants)) == len(variants)


def test_missing_networks_get_the_name_and_the_sizes_of_those_beside_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_run("runs", "experiment=caltech101_zf5_alternate", "data.root=data", "sizes.cycle=[112,96]")
    for words in commands(table_page("table2", read_runs(["runs"])))[1:]:
        name, variant = re.fullmatch(r"name=(caltech101_zf5_(\w+))", words[2]).groups()
        assert start_run("new", *words[2:]).name.startswith(f"{name}-seed0-")
        (sizes,) = [word for word in words if word.startswith("sizes.cycle")]
        assert (variant, sizes) in {("none", "sizes.cycle=[112]"), ("single", "sizes.cycle=[112]")}


def test_commands_for_missing_tests_name_the_runs(tmp_path):
    folder = tmp_path / STRANGE
    made = [make_run(folder, "single", seed, wrong={"center": 3}) for seed in (0, 1)]
    one, two = commands(table_page("table3", read_runs([str(tmp_path / "*")])))[:2]
    assert two[1] == "scripts/train.py"
    assert one[:2] == ["python", "scripts/evaluate.py"]
    config = composed("evaluate", one[2:])
    assert find_runs(config.run) == [Path(path) for path in made]
    assert list(config.views) == ["full"]


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
