"""Tables 6, 7 and 8 and the page of all transferred features, from made-up decisions."""

import dataclasses
import re

import numpy as np
import pytest

from made_runs import make_run, row_of
from made_transfers import (
    IMAGENET,
    RAW_PIXELS,
    UNTRAINED,
    made_about,
    made_decisions,
    made_several_labels,
    make_transfer,
    write_decisions,
)
from sppnet.commands import tables
from sppnet.results.page import markdown_table
from sppnet.results.runs import read_runs
from sppnet.results.scores import Scores
from sppnet.results.transfer_page import classes_table, summary_table, transfer_page
from sppnet.results.transfer_tables import table8_page, transfer_table_page
from sppnet.results.transferred_features import features, gain
from sppnet.results.transfers import read_transfers

CALTECH101 = {
    "data": {"source": "caltech101", "root": "/somewhere/caltech"},
    "data_text": "caltech101",
    "n_train": 3060,
    "classes": [f"class {i}" for i in range(102)],
}
VOC2007 = {
    "data": {"source": "voc2007", "root": "/somewhere/VOCdevkit"},
    "data_text": "voc2007",
    "n_train": 5011,
    "splits": 1,
    "classes": [f"class {i}" for i in range(20)],
}


def make_caltech(run, wrong, layer="pool5", network=None, per_class=50, **changes):
    """Saves decisions for 50 test images of each class, a split for each number of wrong ones."""
    settings = CALTECH101 | {"length": {"pool5": 12800, "pool5_6x6": 9216}.get(layer, 4096)} | changes
    n = per_class * len(settings["classes"])
    return make_transfer(run, wrong, layer, IMAGENET | (network or {}), n, **settings)


def make_voc(run, hits, layer="fc7", network=None, n=4952, **changes):
    about = made_about(layer, 0, IMAGENET | (network or {}), **(VOC2007 | changes))
    return write_decisions(run, made_several_labels(about, hits, n))


def table(name, *places, runs=()):
    return transfer_table_page(name, read_transfers([str(place) for place in places]), runs)


# Table 7.


def test_networks_of_imagenet_are_beside_the_papers_numbers(tmp_path):
    make_caltech(tmp_path / "a", [510, 612])
    page = table("table7", tmp_path)
    row = row_of(page, "(c)", "| pool5 ")
    assert row == ["(c)", "zf5, SPP, two sizes", "full 224", "pool5", "12,800", "91.44", *row[6:8], "1", "2 of 3"]
    assert row[6:8] == ["89.00 ± 1.41"] * 2
    assert row_of(page, "(c)", "| fc7 ")[4:] == ["", "87.08", "-", "-", "", ""]
    assert row_of(page, "(b)", "| pool5 ")[5:7] == ["89.47", "-"]
    assert row_of(page, "§3.3", "warp 224")[5:7] == ["89.91", "-"]
    assert "Other networks" not in page.markdown()


def test_a_column_has_layers_that_the_paper_does_not(tmp_path):
    make_caltech(tmp_path / "a", [510], "conv5")
    assert row_of(table("table7", tmp_path), "(c)", "| conv5 ")[5:7] == ["-", "90.00"]


def test_without_a_pyramid_pool5_is_the_one_grid(tmp_path):
    none = {"variant": "none", "levels": None}
    make_caltech(tmp_path / "a", [510], "pool5", none, view="crop", length=9216)
    page = table("table7", tmp_path)
    assert row_of(page, "(a)", "| pool5_6x6 ")[5:7] == ["87.98", "90.00"]
    assert "(a) zf5, no SPP, crop 224: conv4, conv5, fc6, fc7: " in page.markdown()


@pytest.mark.parametrize(
    ("changes", "network"),
    [
        ({}, {"on_imagenet": False, "trained_on": "caltech101"}),
        ({}, {"variant": "single"}),
        ({}, {"name": "convnet5"}),
        ({}, {"trained_on": None}),
        ({"scale": 256}, {}),
        ({"aligned": True}, {}),
        ({"C": 10.0}, {}),
        ({"length": 3200}, {}),
        ({"n_train": 15 * 102}, {}),
        ({"per_class": 49}, {}),
        ({"classes": CALTECH101["classes"][:51], "n_train": 30 * 51}, {}),
    ],
)
def test_all_others_are_in_a_table_of_their_own(tmp_path, changes, network):
    make_caltech(tmp_path / "a", [0, 0], network=network, **changes)
    page = table("table7", tmp_path)
    assert row_of(page, "(c)", "| pool5 ")[6] == "-"
    ours = page.markdown().split("## Other networks: caltech101")[1]
    assert "100.00 ± 0.00" in ours


def test_all_layers_of_a_narrower_network_are_apart(tmp_path):
    make_caltech(tmp_path / "a", [0], length=3200)
    make_caltech(tmp_path / "a", [0], "conv4", length=999)  # nothing says how long the paper's is
    page = table("table7", tmp_path)
    assert "(c)" not in page.markdown().split("## Other networks")[1]
    assert not re.search(r"\(c\).*conv4", page.markdown().split("## Other networks")[0].split("Not run yet")[0])


def test_baselines_of_a_column_are_in_the_other_table_with_what_they_were_trained_on(tmp_path):
    make_caltech(tmp_path / "a", [510])
    make_caltech(tmp_path / "a", [2550], network=UNTRAINED | {"on_imagenet": False})
    make_transfer(tmp_path / "a", [4080], "pixels", RAW_PIXELS, 5100, **CALTECH101)
    others = row_of(table("table7", tmp_path), "nothing (random weights)")
    assert others[:4] == ["zf5, SPP, two sizes", "nothing (random weights)", "full 224", "pool5"]
    assert others[7] == "50.00"
    assert others[9].startswith("+30.00 (")


def test_missing_columns_have_the_command_with_the_run_if_it_is_there(tmp_path):
    run = make_run(tmp_path, "alternate", source="imagenet")
    make_caltech(run, [0], "pool5", scale=500)
    page = table("table7", tmp_path, runs=read_runs([str(tmp_path)]))
    text = page.markdown()
    assert (
        "\n(c) zf5, SPP, two sizes, full 224: pool5_6x6, pool5, fc6, fc7: `python scripts/transfer.py "
        f"experiment=table7_zf5_full224 run={run} data.root=PATH`\n"
    ) in text
    assert (
        "experiment=table7_overfeat7_full224 run=RUN data.root=PATH` with RUN from `python scripts/train.py "
        "experiment=table2_overfeat7_alternate data.root=/somewhere/0/photos`"
    ) in text
    for layer in ("pool5_6x6", "pool5", "fc6", "fc7"):
        make_caltech(run, [0], layer)
    assert "(c) zf5" not in table("table7", tmp_path).markdown()


# Table 6.


def test_voc_has_both_average_precisions_beside_the_papers(tmp_path):
    make_voc(tmp_path / "a", 1.0, scale=392)
    page = table("table6", tmp_path)
    row = row_of(page, "(d)", "| fc7 ")
    (feature,) = features(read_transfers([str(tmp_path)]))
    means = [f"{100 * feature.mean(points):.2f}" for points in ("11 points", "all points")]
    assert row[4:] == ["4,096", "80.10", *means, "1", "1"]
    assert "±" not in page.markdown()


@pytest.mark.parametrize("changes", [{"n": 100}, {"n_train": 5010}])
def test_a_part_of_voc_is_not_beside_the_papers_numbers(tmp_path, changes):
    make_voc(tmp_path / "a", 1.0, **changes)
    page = table("table6", tmp_path)
    assert row_of(page, "(c)", "| fc7 ")[6] == "-"
    assert "## Other networks: voc2007: 20 classes" in page.markdown()


# Table 8.


def test_table_8_has_the_best_of_ours_and_says_which(tmp_path):
    make_caltech(tmp_path / "a", [510, 612])
    make_caltech(tmp_path / "a", [1020, 1020], "fc7")
    timm = {"name": "resnet50", "variant": None, "trained_on": "timm", "setting": "timm"}
    make_caltech(tmp_path / "b", [51, 51], "fc6", timm)
    make_caltech(tmp_path / "c", [0, 0], "fc7", UNTRAINED)
    make_caltech(tmp_path / "d", [0, 0], "fc7", {"setting": "15 images"}, n_train=1530)
    page = table8_page(read_transfers([str(tmp_path)]))
    assert row_of(page, "ours, trained on ImageNet") == ["ours, trained on ImageNet", "-", "89.00 ± 1.41"]
    assert row_of(page, "timm") == ["ours, trained on timm's weights", "-", "99.00 ± 0.00"]
    assert "random weights" not in page.markdown()
    assert row_of(page, "the paper") == ["the paper: Overfeat-7, SPP", "82.44", "93.42 ± 0.5"]
    assert "caltech101: zf5, SPP, two sizes, full 224, pool5, trained on ImageNet; " in page.markdown()


def test_table_8_without_ours_says_where_the_commands_are():
    text = table8_page([]).markdown()
    assert "| ours, trained on ImageNet" in text
    assert "`python scripts/tables.py table6` and table7 have the commands" in text


# The page of all.


@pytest.fixture
def two_runs(tmp_path):
    for seed, shift in ((0, 0), (1, 2)):
        run = tmp_path / "runs" / f"zf5-seed{seed}"
        for i, layer in enumerate(("conv4", "fc7")):
            make_transfer(run, [4 * i + shift + k for k in (4, 6, 5)], layer, {"seed": seed})
            make_transfer(run, [4 * i + shift + k for k in (9, 14, 10)], layer, UNTRAINED | {"seed": seed})
        make_transfer(run, [30, 28, 29], "pixels", RAW_PIXELS, length=768)
    return tmp_path / "runs"


def test_every_feature_is_beside_its_baselines(two_runs):
    transfers = read_transfers([str(two_runs)])
    page = transfer_page(transfers)
    row = row_of(page, "| caltech101 ", "| conv4 ")
    assert row[:7] == ["zf5, SPP, two sizes", "caltech101", "full 224", "conv4", "4,096", "2", "3"]
    assert row[7:10] == ["85.00 ± 2.50", "85.00 ± 2.50", "3.54"]
    found = features(transfers)
    gains = [gain(found[0], found[index]) for index in (2, 4)]
    assert row[10:] == [f"{100 * g.value:+.2f} ({100 * g.low:+.2f} to {100 * g.high:+.2f})" for g in gains]
    assert row_of(page, "| nothing ", "| fc7 ")[10] == ""
    assert row_of(page, "raw 16 x 16 pixels")[3:] == ["pixels", "768", "1", "3", *["27.50 ± 2.50"] * 2, "", "", ""]
    assert "corrected resampled t-test" in page.markdown()
    assert "one split" not in page.markdown()
    assert "## folder photos: 4 classes, 20 training and 40 test images" in page.markdown()


def test_features_of_several_data_sets_are_in_several_tables(two_runs):
    make_voc(two_runs / "voc", 1.0, n=50)
    text = transfer_page(read_transfers([str(two_runs)])).markdown()
    assert text.count("\n## ") == 2
    assert "Gains with one split" not in text
    make_voc(two_runs / "voc", 0.1, n=50, network=UNTRAINED)
    assert "Gains with one split" in transfer_page(read_transfers([str(two_runs)])).markdown()


def test_networks_of_the_same_name_are_numbered_and_described(tmp_path):
    for i in (1, 2):
        make_transfer(tmp_path / f"{i}", [4], network={"setting": f"{i}", "text": f"width {i}"})
        make_transfer(tmp_path / f"{i}", [9], network=UNTRAINED | {"setting": f"{i}", "text": f"width {i}"})
    page = transfer_page(read_transfers([str(tmp_path)]))
    assert row_of(page, "two sizes [2]", "| caltech101")[3] == "fc7"
    assert row_of(page, "two sizes [1]", "| nothing")[3] == "fc7"
    assert "Networks: zf5, SPP, two sizes [1]: width 1; zf5, SPP, two sizes [2]: width 2.\n" in page.markdown()


def test_the_plot_has_a_curve_per_network_and_a_level_for_pixels(two_runs, monkeypatch):
    from sppnet.results import transfer_page as module

    drawn = []
    draw = module.layer_curves
    monkeypatch.setattr(module, "layer_curves", lambda *parts: drawn.append((parts, draw(*parts))) or drawn[-1][1])
    page = transfer_page(read_transfers([str(two_runs)]))
    ((curves, layers, levels, quantity), figure) = drawn[0]
    assert layers == ["conv4", "fc7"]
    assert [curve.trained for curve in curves] == [True, False]
    assert curves[0].network == curves[1].network
    assert curves[0].points["conv4"].value == pytest.approx(85)
    assert levels == {"raw 16 x 16 pixels, full 224": pytest.approx(100 - 29 / 0.4)}
    assert quantity == "accuracy, overall"
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == layers
    assert "<svg" in page.html()


def test_a_network_has_the_colour_of_its_untrained_twin_though_another_has_none(tmp_path, monkeypatch):
    from sppnet.results import transfer_page as module

    for setting in ("1", "2"):
        make_transfer(tmp_path / setting, [4], network={"setting": setting})
    make_transfer(tmp_path / "2", [9], network=UNTRAINED | {"setting": "2"})
    make_transfer(tmp_path / "3", [9], network=UNTRAINED | {"setting": "2"}, view="crop")
    drawn = []
    draw = module.layer_curves
    monkeypatch.setattr(module, "layer_curves", lambda *parts: drawn.append(parts) or draw(*parts))
    transfer_page(read_transfers([str(tmp_path)]))
    ((curves, *_),) = drawn
    assert [(curve.network, curve.trained) for curve in curves] == [(0, True), (1, True), (2, False), (1, False)]


def test_classes_are_sorted_by_what_they_gain(tmp_path):
    abouts = [made_about(network=network) for network in (None, UNTRAINED)]
    for about, right in zip(abouts, ([10, 8, 6, 10], [9, 3, 6, 7]), strict=True):
        scores = made_decisions(about, wrong=0)
        counts = np.zeros(4, int)
        values = scores.scores.copy()
        for i, label in enumerate(scores.labels):  # the first images of every class are right
            counts[label] += 1
            values[i, label] = 1 if counts[label] <= right[label] else -2
        write_decisions(tmp_path / "a", dataclasses.replace(scores, scores=values))
    trained, untrained = features(read_transfers([str(tmp_path)]))
    headers, rows = classes_table(trained, [untrained, None])
    assert headers == ["class", "accuracy in %", "untrained", "gain over untrained"]
    assert rows == [
        ["bee", "80.00", "30.00", "+50.00"],
        ["dog", "100.00", "70.00", "+30.00"],
        ["ant", "100.00", "90.00", "+10.00"],
        ["<cat>", "60.00", "60.00", "+0.00"],
    ]
    assert classes_table(trained, [None, None])[1][-1] == ["<cat>", "60.00"]


def test_of_many_classes_the_ends_are_shown(tmp_path):
    make_caltech(tmp_path / "a", [510])
    text = transfer_page(read_transfers([str(tmp_path)])).markdown()
    assert "the first 10 and the last 10 of 102 classes" in text
    assert len(re.findall(r"^\| class \d+", text, re.MULTILINE)) == 20


def test_names_from_files_are_escaped(two_runs):
    html = transfer_page(read_transfers([str(two_runs)])).html()
    assert "&lt;cat&gt;" in html
    assert "<cat>" not in html


def test_the_summary_has_trained_then_untrained_then_pixels(two_runs):
    transfers = read_transfers([str(two_runs / "zf5-seed0")])
    headers, rows = summary_table([transfer.scores for transfer in transfers])
    assert headers[4:6] == ["accuracy in %, overall", "per class"]
    assert [row[0] for row in rows] == ["conv4", "fc7", "conv4, untrained", "fc7, untrained", "pixels"]
    assert rows[0][1:6] == ["full 224", "4,096", "3", "87.50 ± 2.50", "87.50 ± 2.50"]
    assert [bool(row[6]) for row in rows] == [True, True, False, False, False]
    assert rows[0][6].startswith("+15.00 (")
    assert markdown_table(headers, rows)


def test_the_summary_of_several_labels_is_of_average_precision():
    about = made_about(**VOC2007)
    headers, ((*_, first, second, _),) = summary_table([made_several_labels(about, 1.0)])
    assert headers[4:6] == ["mAP in %, 11 points", "all points"]
    assert 0 < float(first) <= 100 >= float(second)


# The command.


def written(out):
    return sorted(path.stem for path in out.glob("*.html"))


@pytest.mark.parametrize("name", ["table6", "table7", "table8", "transfer"])
def test_each_page_is_a_command(two_runs, tmp_path, capsys, name):
    tables.main([name, f"runs={two_runs}", f"out={tmp_path / 'out'}"])
    assert written(tmp_path / "out") == [name]
    assert "# T" in capsys.readouterr().out


def test_all_has_the_tables_of_transfer_where_there_are_decisions(two_runs, tmp_path, capsys):
    make_run(tmp_path / "trained", "single")
    tables.main(["all", f"runs={tmp_path / 'trained'}", f"out={tmp_path / 'out'}"])
    assert written(tmp_path / "out") == ["table2", "table3", "table4"]
    tables.main(["all", f"runs=[{tmp_path / 'trained'},{two_runs}]", f"out={tmp_path / 'out'}"])
    assert written(tmp_path / "out") == ["table2", "table3", "table4", "table6", "table7", "table8"]


def test_tables_of_trained_runs_may_have_folders_of_decisions_only(two_runs, tmp_path, capsys):
    tables.main(["table2", f"runs={two_runs}", f"out={tmp_path / 'out'}"])
    assert "35.99" in capsys.readouterr().out


def test_a_damaged_file_of_decisions_does_not_stop_tables_of_trained_runs(tmp_path, capsys):
    run = make_run(tmp_path, "single")
    (path,) = make_transfer(run, [4])
    path.write_bytes(b"PK\x03\x04 cut off")
    tables.main(["table2", f"runs={tmp_path}", f"out={tmp_path / 'out'}"])
    with pytest.raises(ValueError, match=r"fc7-split0\.npz: not a scores file"):
        tables.main(["transfer", f"runs={tmp_path}", f"out={tmp_path / 'out'}"])


def test_wrong_choices_are_refused(two_runs, tmp_path):
    make_run(tmp_path / "trained", "single")
    with pytest.raises(
        ValueError, match=r"^runs: compare is for trained runs, and only decisions of transfer or detections are there"
    ):
        tables.main(["compare", f"runs={two_runs}"])
    with pytest.raises(ValueError, match=r"^no decisions of transfer in these runs; do it with .*transfer.* run=RUN"):
        tables.main(["transfer", f"runs={tmp_path / 'trained'}"])
    with pytest.raises(ValueError, match="nowhere: no run directories there"):
        tables.main(["table7", f"runs={tmp_path / 'nowhere'}"])


def test_tables_of_transfer_without_decisions_show_the_papers_numbers(tmp_path, capsys):
    make_run(tmp_path, "single")
    tables.main(["table7", f"runs={tmp_path}", f"out={tmp_path / 'out'}"])
    assert "91.44" in capsys.readouterr().out


def test_one_class_is_always_right():
    about = made_about(classes=["only"])
    scores = Scores(np.ones((3, 1), np.float32), np.zeros(3, np.int64), np.array(["a", "b", "c"]), about)
    assert summary_table([scores])[1][0][4:6] == ["100.00", "100.00"]
