"""Tables 9 to 12 and the page of all detectors, from made-up detections."""

import re

import numpy as np
import pytest

from made_detections import IMAGENET, VOC, made_detections, made_objects, make_test, voc_objects
from made_runs import make_run, row_of
from made_transfers import make_transfer
from sppnet.commands import tables
from sppnet.results import detection_tables
from sppnet.results.detection_page import detection_page
from sppnet.results.detection_tables import detection_table_page, table11_page, table12_page
from sppnet.results.detector_runs import by_row, read_detector_runs
from sppnet.results.paper_detection import FIVE_SCALES, VOC_CLASSES
from sppnet.results.plots import precision_curves
from sppnet.results.runs import read_runs

OBJECTS = made_objects(30)
TEST_IMAGES = 60  # which the tables take for VOC's 4,952 here
OF_VOC = voc_objects(TEST_IMAGES)


@pytest.fixture(autouse=True)
def a_smaller_voc(monkeypatch):
    monkeypatch.setattr(detection_tables, "N_TEST", TEST_IMAGES)


def read(*places):
    return read_detector_runs([str(place) for place in places])


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    """Detectors like the paper's, tested on as many images as the paper's."""
    folder = tmp_path_factory.mktemp("papers")
    for row, share in (("ftfc7", 0.6), ("ftfc7_bb", 0.8)):
        make_test(folder / "one", OF_VOC, row, IMAGENET, share=share, **VOC)
    return folder


def make_voc(run, row="ftfc7", network=None, objects=OF_VOC, **changes):
    return make_test(run, objects, row, IMAGENET | (network or {}), **(VOC | changes))


# Tables 9 and 10.


def test_detectors_like_the_papers_are_beside_its_numbers(papers):
    tests = read(papers)
    page = detection_table_page("table9", tests, [])
    ours = {row.name: row for row in by_row(tests)}
    row = row_of(page, "| ftfc7 ", " 54.5 ")
    low, high = ours["ftfc7"].interval()
    mean, all_points = ours["ftfc7"].mean(), ours["ftfc7"].all_points()
    text = f"{100 * mean:.2f} ({100 * low:.2f} to {100 * high:.2f})"
    assert row == ["ftfc7", "54.5", text, f"{100 * all_points:.2f}", "55.2", "-", "-", "54.2"]
    assert row_of(page, "| pool5 ") == ["pool5", "43.0", "-", "-", "44.9", "-", "-", "44.2"]
    text = page.markdown()
    assert "Ours: voc VOC2007: 20 classes, 5,011 training and 60 test images, 60 objects" in text
    assert "Other detectors" not in text
    assert "over images only, for these trained detectors" in text
    assert row_of(page, "| ftfc7_bb ", "| 1 scale ")[-2].startswith("+")


def test_five_scales_have_their_own_columns(tmp_path):
    make_voc(tmp_path / "a", scales=list(FIVE_SCALES))
    row = row_of(detection_table_page("table9", read(tmp_path), []), "| ftfc7 ", "54.5")
    assert row[:3] == ["ftfc7", "54.5", "-"]
    assert row[4] == "55.2"
    assert re.fullmatch(r"\d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\)", row[5])


def test_table_10_has_the_rows_of_the_paper_and_the_same_network_by_rcnn(papers):
    page = detection_table_page("table10", read(papers), [])
    assert row_of(page, "| ftfc7_bb ", "58.0")[-1] == "59.2"
    assert "pool5" not in page.markdown()
    assert "R-CNN with ZF-5: paper" in page.markdown()


@pytest.mark.parametrize(
    ("changes", "network"),
    [
        ({}, {"on_imagenet": False, "trained_on": "caltech101"}),
        ({}, {"variant": "alternate"}),
        ({}, {"name": "convnet5"}),
        ({"scales": [600]}, {}),
        ({"n_train": 5717}, {}),
        ({"lengths": {"pool5": 12800, "fc6": 512, "fc7": 512}}, {}),
        ({"objects": voc_objects(59)}, {}),
        ({"objects": made_objects(60)}, {}),
    ],
)
def test_all_others_are_in_a_table_of_their_own(tmp_path, changes, network):
    make_voc(tmp_path / "a", network=network, **changes)
    for page in (detection_table_page("table9", read(tmp_path), []), table11_page(read(tmp_path), [])):
        before, _, others = page.markdown().partition("## Other detectors: ")
        assert "1 scale: pool5" in before or "1 scale: ftfc7, ftfc7_bb" in before  # what is missing
        assert "ours ftfc7" not in before
        assert re.search(r"\| ftfc7 +\| +1 \|", others)


def test_several_test_sets_are_in_several_sections(tmp_path):
    make_test(tmp_path / "a", OBJECTS)
    make_test(tmp_path / "b", made_objects(20, seed=1), data_text="photos")
    text = detection_table_page("table9", read(tmp_path), []).markdown()
    assert "## Other detectors: scenes: 3 classes, 60 training and 30 test images, " in text
    assert "## Other detectors: photos: 3 classes, 60 training and 20 test images, " in text


def test_missing_rows_have_the_command_with_the_run_if_it_is_there(tmp_path):
    text = detection_table_page("table9", [], []).markdown()
    assert (
        "\n1 scale: pool5, fc6, ftfc6, ftfc7, ftfc7_bb: `python scripts/detect.py experiment=table9_1scale run=RUN "
        "data.root=PATH` with RUN from `python scripts/train.py experiment=table2_zf5_single data.root=PATH`"
    ) in text
    run = make_run(tmp_path, "single", source="imagenet")
    make_voc(tmp_path / "a", "pool5")
    text = detection_table_page("table9", read(tmp_path), read_runs([str(tmp_path)])).markdown()
    assert (
        f"\n1 scale: fc6, ftfc6, ftfc7, ftfc7_bb: `python scripts/detect.py experiment=table9_1scale run={run} " in text
    )
    assert "5 scales: pool5, " in text


def test_runs_of_several_seeds_have_an_interval_over_both(tmp_path):
    for seed in (0, 1, 2):
        make_test(tmp_path / f"{seed}", OBJECTS, share=0.4 + 0.2 * seed, seed=seed)
        make_test(tmp_path / f"{seed}", OBJECTS, "ftfc7_bb", share=0.5 + 0.2 * seed, seed=seed)
    text = detection_table_page("table9", read(tmp_path), []).markdown()
    assert "by a bootstrap, over images and training runs where there are several runs. Gains" in text
    assert "By class: 11-point average precision in %, means over runs." in text
    make_test(tmp_path / "0", OBJECTS, "pool5")
    text = detection_table_page("table9", read(tmp_path), []).markdown()
    assert "where there are several runs, else over images only." in text


# Tables 11 and 12.


def test_table_11_has_ours_by_class_in_the_papers_order(papers):
    tests = read(papers)
    page = table11_page(tests, [])
    row = row_of(page, "ours ftfc7_bb, 1 scale")
    (ours,) = [one for one in by_row(tests) if one.name == "ftfc7_bb"]
    assert row == [row[0], *(f"{100 * value:.2f}" for value in [ours.mean(), *ours.class_means()])]
    assert row_of(page, "| DPM ")[:3] == ["DPM", "33.7", "33.2"]
    assert row_of(page, "| method ")[2:] == list(VOC_CLASSES)


def test_classes_in_another_order_are_put_in_the_papers(tmp_path):
    reversed_classes = OF_VOC.__class__(OF_VOC.names, VOC_CLASSES[::-1], OF_VOC.of_image)
    make_voc(tmp_path / "a", objects=reversed_classes)
    tests = read(tmp_path)
    row = row_of(table11_page(tests, []), "ours ftfc7, 1 scale")
    assert row[2:] == [f"{100 * value:.2f}" for value in by_row(tests)[0].class_means()[::-1]]


def test_table_12_combines_the_two_networks_that_differ_in_seed(tmp_path):
    for seed in (0, 1):
        make_voc(tmp_path / f"{seed}", "ftfc7_bb", {"seed": seed}, checkpoint=f"{seed}", seed=seed)
    page = table12_page(read(tmp_path), [])
    rows = [row_of(page, f"| {name} ") for name in ("ours (1), ftfc7_bb", "ours (2), ftfc7_bb", "ours, combination")]
    assert float(rows[2][1]) > max(float(rows[0][1]), float(rows[1][1]))
    assert [len(row) for row in rows] == [22] * 3
    assert row_of(page, "| combination ", " 60.9 ")[2] == "68.5"
    both = row_of(page, "2 x zf5")
    assert both[3] == "ftfc7_bb"
    assert re.fullmatch(r"\+\S+ \(\S+ to \S+\), \+\S+ \(\S+ to \S+\)", both[-2])
    assert "## VOC 2007: voc VOC2007" in page.markdown()
    assert "ftfc7_bb (2)" in page.markdown()


def test_table_12_takes_named_detections_of_any_data(tmp_path):
    for name in "abc":
        make_test(tmp_path / name, OBJECTS, checkpoint=name, seed=ord(name))
    page = table12_page(read(tmp_path), [], ["a/detections/ftfc7+b/detections/ftfc7", "b/*/ftfc7+c/*/ftfc7"])
    assert page.markdown().count("## Other detectors: scenes") == 2
    assert "| ours" not in page.markdown()


@pytest.mark.parametrize("count", [1, 3])
def test_table_12_without_a_second_network_is_refused(tmp_path, count):
    for seed in range(count):
        make_test(tmp_path / f"{seed}", OBJECTS, "ftfc7_bb", checkpoint=f"{seed}")
    with pytest.raises(
        ValueError,
        match=rf"^table12: needs ftfc7_bb of two networks that differ in seed only, found {count} in [^\n]+A\+B$",
    ):
        table12_page(read(tmp_path), [])


def test_two_detectors_of_one_network_are_no_second_network(tmp_path):
    for seed in (0, 1):
        make_test(tmp_path / f"{seed}", OBJECTS, "ftfc7_bb", seed=seed)
    with pytest.raises(ValueError, match="needs ftfc7_bb of two networks"):
        table12_page(read(tmp_path), [])


def test_table_12_without_any_detections_has_the_papers_numbers_and_the_commands():
    text = table12_page([], []).markdown()
    assert "| combination | 60.9 | " in text
    assert "1 scale: ftfc7_bb: `python scripts/detect.py" in text


# The page of all.


def test_every_row_has_its_gain_over_the_row_before(tmp_path):
    for row, share in (("pool5", 0.4), ("fc6", 0.5), ("ftfc7", 0.7), ("ftfc7_bb", 0.9)):
        make_test(tmp_path / "a", OBJECTS, row, share=share)
    page = detection_page(read(tmp_path))
    assert [row_of(page, f"| 1 scale | {name} ")[-1] for name in ("pool5", "fc6", "ftfc7", "ftfc7_bb")] == [
        "",
        "pool5",
        "fc6",
        "ftfc7",
    ]
    rows = by_row(read(tmp_path))
    gain = 100 * (rows[3].mean() - rows[2].mean())
    assert row_of(page, "| ftfc7_bb ", "1 scale")[-2].startswith(f"{gain:+.2f} (")
    assert "Detectors: zf5, SPP, one size, 1 scale: ZF-5 of a quarter of the filters; windows: dense, windows 2000" in (
        page.markdown()
    )
    values = row_of(page, "| bee ")
    counts = by_row(read(tmp_path))[0].counts
    assert values == ["bee", f"{counts[:, 1].sum()}", *(f"{100 * row.class_means()[1]:.2f}" for row in rows)]
    assert "precision at each recall" in page.html()
    assert "&lt;cat&gt;" in page.html()
    assert "<cat>" not in page.html()


def test_rows_that_differ_in_scales_and_networks_are_named_apart(tmp_path):
    make_test(tmp_path / "a", OBJECTS)
    make_test(tmp_path / "b", OBJECTS, scales=list(FIVE_SCALES))
    make_test(tmp_path / "c", OBJECTS, network={"setting": "wider"})
    text = detection_page(read(tmp_path)).markdown()
    assert "| class | objects |" in text
    for name in (
        "ftfc7, 1 scale, zf5, SPP, one size [1]",
        "ftfc7, 5 scales, zf5, SPP, one size",
        "ftfc7, 1 scale, zf5, SPP, one size [2]",
    ):
        assert f" {name} |" in text


def test_combinations_are_beside_their_parts(tmp_path):
    for name in "ab":
        make_test(tmp_path / name, OBJECTS, checkpoint=name, seed=ord(name))
    page = detection_page(read(tmp_path), ["a/detections/ftfc7+b/detections/ftfc7"])
    assert row_of(page, "2 x zf5, SPP, one size")[-1] == "each part"
    assert "Combinations: the detections of all parts with their scores" in page.markdown()


RECALL = {"threshold": 0.5, "objects": 1234, "share": 0.75, "low": 0.7, "high": 0.8}


def test_recall_of_proposals_is_there_once_for_each_kind_where_it_was_recorded(tmp_path):
    recall = [RECALL, RECALL | {"threshold": 0.7, "share": 0.25, "low": 0.125, "high": 0.3}]
    make_test(tmp_path / "a", OBJECTS, "fc6", recall=recall)
    make_test(tmp_path / "a", OBJECTS, "fc7", recall=recall)
    make_test(tmp_path / "b", OBJECTS, recall=recall[:1], setting="a", proposals={"proposer": "dense", "windows": 9})
    make_test(tmp_path / "c", OBJECTS, recall=[], setting="b")
    assert (
        "can find. dense, windows 9: of 1,234 objects, windows overlap 75.00 % (70.00 to 80.00) by 0.5 or more; dense, "
        "windows 2000, most 2000: of 1,234 objects, windows overlap 75.00 % (70.00 to 80.00) by 0.5 or more, 25.00 % "
        "(12.50 to 30.00) by 0.7 or more.\n"
    ) in detection_page(read(tmp_path)).markdown()
    assert "Recall" not in detection_page(read(tmp_path / "c")).markdown()


@pytest.mark.parametrize("recall", [0.5, [0.5], [RECALL | {"share": 1.5}], [{"threshold": 0.5}]])
def test_a_recall_that_is_none_is_refused(tmp_path, recall):
    path = make_test(tmp_path / "a", OBJECTS, recall=recall)
    with pytest.raises(ValueError, match=rf"{path.name}:1: not detections of a detector \(recall must be a list of"):
        read(tmp_path)


def test_a_class_without_objects_has_no_precision_and_no_panel(tmp_path):
    objects = made_objects(9, ("ant", "bee", "cat"))
    more = objects.__class__(objects.names, (*objects.classes, "none"), objects.of_image)
    make_test(tmp_path / "a", more)
    page = detection_page(read(tmp_path))
    assert row_of(page, "| none ") == ["none", "0", ""]
    assert "none: " not in page.html()


def test_a_test_set_without_objects_has_a_page(tmp_path):
    objects = made_objects(3)
    empty = objects.__class__(
        objects.names, objects.classes, tuple(o.of(np.zeros(len(o), bool)) for o in objects.of_image)
    )
    make_test(tmp_path / "a", empty)
    page = detection_page(read(tmp_path))
    assert row_of(page, "| ftfc7 ", "1 scale")[5:] == ["-", "-", "", ""]
    assert row_of(page, "| ant ") == ["ant", "0", ""]


def test_nothing_detected_is_a_precision_of_0(tmp_path):
    make_test(tmp_path / "a", OBJECTS, found=made_detections(OBJECTS, share=0, wrong=0))
    assert row_of(detection_page(read(tmp_path)), "| ftfc7 ", "1 scale")[5:7] == ["0.00 (0.00 to 0.00)", "0.00"]


def test_of_many_classes_the_ends_have_panels(tmp_path, monkeypatch):
    from sppnet.results import detection_page as module

    drawn = []
    monkeypatch.setattr(module, "precision_curves", lambda *parts: drawn.append(parts) or precision_curves(*parts))
    make_test(tmp_path / "a", made_objects(90, tuple(f"class {i}" for i in range(30))))
    text = detection_page(read(tmp_path)).markdown()
    ((curves, titles),) = drawn
    assert "The 10 classes with the highest and the lowest average precision" in text
    assert len(titles) == len(curves["ftfc7"]) == 20
    values = [float(title.rpartition(" ")[2]) for title in titles]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("count", [1, 3, 5, 20])
def test_each_class_has_a_panel_with_every_curve(count):
    curves = {"one": np.tile(np.linspace(1, 0, 11), (count, 1)), "other": np.full((count, 11), 0.5)}
    figure = precision_curves(curves, [f"class {i}" for i in range(count)])
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == [f"class {i}" for i in range(count)]
    for axes in panels:
        falling, level = axes.get_lines()
        assert falling.get_xdata() == pytest.approx(np.arange(11) / 10)
        assert falling.get_ydata()[:10] == pytest.approx(1 - np.arange(10) / 10)
        assert np.isnan(falling.get_ydata()[10])  # it ends where precision is 0
        assert level.get_ydata() == pytest.approx(0.5)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "other"]


# The command.


def written(out):
    return sorted(path.stem for path in out.glob("*.html"))


@pytest.mark.parametrize("name", ["table9", "table10", "table11", "detection"])
def test_each_page_is_a_command(tmp_path, capsys, name):
    make_test(tmp_path / "runs" / "a", OBJECTS)
    tables.main([name, f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"])
    assert written(tmp_path / "out") == [name]
    assert capsys.readouterr().out.startswith("# ")


@pytest.mark.parametrize("name", ["table12", "detection"])
def test_combinations_are_given_by_a_key(tmp_path, capsys, name):
    for run in "ab":
        make_test(tmp_path / "runs" / run, OBJECTS, checkpoint=run)
    combine = "combine=[a/detections/ftfc7+b/detections/ftfc7]"
    tables.main([name, f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", combine])
    assert "2 x zf5" in capsys.readouterr().out


def test_all_has_the_tables_of_detection_where_there_are_detections(tmp_path, capsys):
    make_test(tmp_path / "detectors" / "a", OBJECTS)
    tables.main(["all", f"runs={tmp_path / 'detectors'}", f"out={tmp_path / 'out'}"])
    of_detection = ["table10", "table11", "table2", "table3", "table4", "table9"]
    assert written(tmp_path / "out") == of_detection
    make_transfer(tmp_path / "networks" / "a", [1])
    tables.main(["all", f"runs=[{tmp_path / 'detectors'},{tmp_path / 'networks'}]", f"out={tmp_path / 'out'}"])
    assert written(tmp_path / "out") == [*of_detection[:-1], "table6", "table7", "table8", "table9"]


def test_folders_of_detections_only_are_runs_for_other_tables(tmp_path, capsys):
    make_test(tmp_path / "runs" / "a", OBJECTS)
    tables.main(["table2", f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"])
    assert "35.99" in capsys.readouterr().out


def test_the_page_of_detection_without_detections_says_how_to_make_them(tmp_path):
    make_run(tmp_path, "single")
    with pytest.raises(ValueError, match=r"^no detections in these runs; do it with .*detect.* network=RUN data=voc"):
        tables.main(["detection", f"runs={tmp_path}"])
    with pytest.raises(ValueError, match=r"^runs=.*nowhere: no run directories there$"):
        tables.main(["table9", f"runs={tmp_path / 'nowhere'}"])


def test_damaged_detections_do_not_stop_other_tables(tmp_path, capsys):
    make_run(tmp_path, "single")
    make_test(tmp_path / "a", OBJECTS).write_text("{")
    make_transfer(tmp_path / "a", [1])
    tables.main(["table7", f"runs={tmp_path}", f"out={tmp_path / 'out'}"])
    with pytest.raises(ValueError, match=r"ftfc7\.jsonl:1: not a file of detections"):
        tables.main(["table9", f"runs={tmp_path}", f"out={tmp_path / 'out'}"])
