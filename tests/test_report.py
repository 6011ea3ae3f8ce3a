"""Reports: every page, its links and its numbers, from run directories with scores of real files."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml

from conftest import make_image_folder
from made_detections import made_objects, make_test
from made_reports import make_tested_run
from made_runs import make_run
from made_transfers import make_transfer
from sppnet.commands import report
from sppnet.results.mistakes import Rate
from sppnet.results.records import read_result
from sppnet.results.run_page import classes_page
from sppnet.results.runs import read_runs

CLASSES = ("<b>ant", "bee & $x$", "cat#1%?")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images of oddly named classes, three tested runs, an untested one, and an unfinished one."""
    place = tmp_path_factory.mktemp("place")
    make_image_folder(place / "images", CLASSES, train=1, val=25)
    for variant, seed, views in (
        ("none", 0, ["center"]),
        ("single", 0, ["full", "center"]),
    ):
        make_tested_run(place / "runs", place / "images", variant, seed, views)
    make_tested_run(place / "more", place / "images", "alternate").rename(place / "runs" / "a b#1%?.run")
    make_run(place / "runs", "single", seed=2, source="photos")
    make_run(place / "runs", "single", seed=3, finished=False)
    return place


def make_report(place, *words, runs="runs/folder-single-0"):
    out = place / "out"
    shutil.rmtree(out, ignore_errors=True)
    report.main([f"runs={place / runs}", f"out={out}", *words])
    return out


@pytest.fixture(scope="module")
def pages(place):
    """Path in the report -> HTML."""
    out = make_report(place, runs="runs")
    return {str(path.relative_to(out)): path.read_text() for path in sorted(out.rglob("*")) if path.is_file()}


class Links(HTMLParser):
    """Collects the addresses of a page, and checks that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "path", "use", "br"):
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if tag == "a" and name == "href"]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def cells(text, first):
    """Returns the cells of the row whose first cell has this text."""
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)]
    plain = [[html.unescape(re.sub("<[^>]+>", "", cell)) for cell in row] for row in rows]
    (row,) = [row for row in plain if row and row[0] == first]
    return row


def test_there_is_a_page_per_finished_run_and_per_comparison(pages):
    runs = ["folder-none-0", "folder-single-0", "a b#1%?.run", "photos-single-2"]
    expected = {f"runs/{name}.html" for name in runs}
    expected |= {f"{name}.html" for name in ("index", "table3", "sweep", "compare")}
    assert set(pages) == expected


def test_every_page_is_one_file_and_every_link_leads_to_another(pages):
    reached = set()
    for path, text in pages.items():
        assert not re.search(r'src="(?!data:)', text)
        for address in Links(text).addresses:
            parts = urlsplit(address)
            assert not parts.query + parts.fragment, address
            target = unquote(parts.path).removeprefix("../" if "/" in path else "")
            assert target in pages, (path, address)
            reached.add(target)
    assert reached == set(pages)


def test_names_of_classes_and_runs_are_escaped(pages):
    for text in pages.values():
        assert "<b>ant" not in text
    assert "&lt;b&gt;ant" in pages["runs/folder-single-0.html"]


def test_the_index_has_the_errors_of_the_records(pages, place):
    for run in ("folder-none-0", "folder-single-0"):
        record = json.loads((place / "runs" / run / "result.json").read_text())
        row = cells(pages["index.html"], run)
        assert row[4:6] == ["2", "1.00"]
        assert row[-1] == Rate.of(record["top1_wrong"], record["n"]).text
    assert cells(pages["index.html"], "folder-none-0")[1:4] == ["none", "224", "0"]
    assert cells(pages["index.html"], "folder-single-3")[1].startswith("zf5 on folder")  # not finished
    assert "these runs were not tested at several scales; do it with" in pages["index.html"]


def test_the_page_of_a_run_has_the_errors_of_its_scores(pages, place):
    text, wrong = pages["runs/folder-single-0.html"], {}
    for views in ("center", "full"):
        with np.load(place / "runs" / "folder-single-0" / "scores" / f"{views}.npz") as scores:
            wrong[views] = int((scores["scores"].argmax(axis=1) != scores["labels"]).sum())
        assert cells(text, views)[1] == Rate.of(wrong[views], 75).text
    assert re.findall(r"by the protocol <code>(\w+)</code>", text) == [min(wrong, key=wrong.get)]


def test_a_page_has_thumbnails_and_errors_against_size(pages):
    text = pages["runs/folder-single-0.html"]
    assert 20 < text.count("<img") <= 60
    assert "Error against size and shape" in text
    assert "Expected calibration error" in text
    assert "taken for" in text


def test_a_run_without_scores_says_what_to_run(pages):
    text = pages["runs/photos-single-2.html"]
    assert "views=[center]</code>" in text
    assert "Errors by class" not in text


def test_the_protocol_can_be_chosen(place, pages):
    best = re.findall(r"by the protocol <code>(\w+)</code>", pages["runs/folder-single-0.html"])
    assert best == ["center"], "or the test chooses nothing else"
    out = make_report(place, "views=full", runs="runs/folder-*-0")
    text = (out / "runs" / "folder-single-0.html").read_text()
    assert "by the protocol <code>full</code>, which was asked for" in text
    text = (out / "runs" / "folder-none-0.html").read_text()
    assert "by the protocol <code>center</code>, which has the lowest top-1 error" in text


def test_without_images_there_is_everything_else_and_one_line(place, capsys):
    moved = (place / "images").rename(place / "moved")
    try:
        text = (make_report(place) / "runs" / "folder-single-0.html").read_text()
        out = capsys.readouterr().out
        assert out.count("without thumbnails and sizes") == 1
        assert "there is no such folder; if they were moved, give data.root=PATH" in out
        assert "<img" not in text
        assert "Expected calibration error" in text
        assert "without thumbnails" in (place / "out" / "index.html").read_text()

        text = (make_report(place, f"data.root={moved}") / "runs" / "folder-single-0.html").read_text()
        assert "without thumbnails" not in capsys.readouterr().out
        assert "<img" in text
    finally:
        moved.rename(place / "images")


def test_runs_of_the_same_name_have_pages_of_their_own(tmp_path):
    make_image_folder(tmp_path / "images", ("a", "b"), train=1, val=1)
    for folder, seed in (("x", 0), ("y", 1)):
        run = make_tested_run(tmp_path / folder, tmp_path / "images", seed=seed, views=[])
        run.rename(tmp_path / folder / "same")
    report.main([f"runs=[{tmp_path}/x,{tmp_path}/y]", f"out={tmp_path / 'out'}"])
    assert sorted(path.name for path in (tmp_path / "out" / "runs").iterdir()) == ["same-2.html", "same.html"]


def test_one_image_one_class_and_one_validation_are_enough(tmp_path):
    make_image_folder(tmp_path / "images", ("only",), train=1, val=1)
    run = make_tested_run(tmp_path / "runs", tmp_path / "images", top1_wrong=0, history=[{"images_per_second": 1.0}])
    assert read_result(run).n == 1
    report.main([f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"])
    text = (tmp_path / "out" / "runs" / f"{run.name}.html").read_text()
    assert "No image is classified wrongly." in text


def test_of_many_classes_the_ends_are_drawn_and_all_are_in_a_table(tmp_path):
    make_image_folder(tmp_path / "images", tuple(f"class {i}" for i in range(70)), train=1, val=1)
    make_tested_run(tmp_path / "runs", tmp_path / "images")
    (run,) = read_runs([str(tmp_path / "runs")])
    text = classes_page(run).markdown()
    assert len(re.findall(r"^\| class \d+ ", text, re.MULTILINE)) >= 70
    assert "The 40 worst and the 20 best of 70 classes" in classes_page(run).html()


def test_scores_without_all_names_of_classes_are_refused(tmp_path):
    make_image_folder(tmp_path / "images", ("a", "b"), train=1, val=1)
    make_tested_run(tmp_path / "runs", tmp_path / "images", views=["center"])
    (run,) = read_runs([str(tmp_path / "runs")])
    run.scores["center"].about["classes"] = ["a"]
    with pytest.raises(ValueError, match="scores of 2 classes without their names"):
        classes_page(run)


def test_decisions_of_transfer_have_their_page(tmp_path):
    make_transfer(tmp_path / "run", [4, 6])
    report.main([f"runs={tmp_path / 'run'}", f"out={tmp_path / 'out'}"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "transfer.html"]


def test_a_run_directory_of_detectors_has_their_page(tmp_path):
    make_test(tmp_path / "run", made_objects(6))
    report.main([f"runs={tmp_path / 'run'}", f"out={tmp_path / 'out'}"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detection.html", "index.html"]


def test_runs_of_other_data_are_in_groups_of_their_own(tmp_path):
    for name, classes in (("a", ("x", "y")), ("b", ("u", "v", "w"))):
        make_image_folder(tmp_path / name, classes, train=1, val=2)
        run = make_tested_run(tmp_path / f"runs {name}", tmp_path / name, views=[])
        content = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(content | {"hidden": 16 + len(classes)}))
    report.main([f"runs=['{tmp_path}/runs a','{tmp_path}/runs b']", f"out={tmp_path / 'out'}"])
    index = (tmp_path / "out" / "index.html").read_text()
    assert re.findall(r"<h2>(folder.*?)</h2>", index) == ["folder, 4 validation images", "folder, 6 validation images"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["views=ten_crop"], "views=ten_crop: no run was tested by it; must be one of center, full"),
        (["data.rot=x"], "data.rot: no such key; did you mean root"),
        (["data.source=nothing"], "data.source=nothing: must be one of"),
    ],
)
def test_wrong_choices_are_refused(place, words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_report(place, *words)
