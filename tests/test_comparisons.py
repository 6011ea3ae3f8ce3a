import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import yaml

from made_runs import made_scores, make_run, make_three_arms, row_of
from sppnet.results.comparisons import (
    combine,
    comparison_page,
    comparisons_table,
    confusion_matrix,
    errors_table,
    protocol_lines,
    wrong,
)
from sppnet.results.run_page import classes_page
from sppnet.results.runs import read_runs
from sppnet.results.scores import Scores, write_scores
from sppnet.results.scores_sections import classes_table

LABELS = np.array([0, 0, 1, 2])
NAMES = np.array(["a.jpg", "b.jpg", "c.jpg", "d.jpg"])


def scores(rows, run="one", names=NAMES):
    return Scores(np.array(rows, np.float32), LABELS, names, {"run": run})


ONE = scores([[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.3, 0.4, 0.3], [0.6, 0.3, 0.1]])
TWO = scores([[0.3, 0.6, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], "two")


def test_wrong_marks_the_images():
    assert wrong(ONE).tolist() == [False, True, False, True]
    assert wrong(ONE, 2).tolist() == [False, False, False, True]
    assert wrong(TWO).tolist() == [True, False, False, False]


def test_a_combination_is_the_mean_of_the_scores():
    both = combine([ONE, TWO])
    np.testing.assert_allclose(both.scores[0], [0.55, 0.35, 0.1], rtol=1e-6)
    assert wrong(both).tolist() == [False, False, False, False]


def test_other_images_cannot_be_combined_or_compared():
    other = scores(TWO.scores, "two", NAMES[::-1])
    with pytest.raises(ValueError, match="one and two were tested on different images or classes"):
        combine([ONE, other])
    with pytest.raises(ValueError, match="different images"):
        comparisons_table({"center": {"one": ONE, "two": other}})


def test_other_images_of_the_same_names_cannot_be_combined_or_compared():
    one, other = (
        replace(scores, about=scores.about | {"images": hashed}) for scores, hashed in ((ONE, "1"), (TWO, "2"))
    )
    with pytest.raises(ValueError, match="one and two were tested on different images or classes"):
        combine([one, other])
    with pytest.raises(ValueError, match="different images"):
        comparisons_table({"center": {"one": one, "two": other}})


def test_protocols_are_described_per_run_if_they_differ():
    one, two = (replace(s, about={"protocol_text": text}) for s, text in ((ONE, "224 crops"), (TWO, "128 crops")))
    tested = {"center": {"a": one, "b": two}, "full": {"a": one, "b": one}}
    assert protocol_lines(tested) == ["center, a: 224 crops", "center, b: 128 crops", "full: 224 crops"]


def test_the_confusion_matrix_counts_every_image():
    assert confusion_matrix(ONE).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_errors_come_with_n_intervals_and_the_combination():
    _, rows = errors_table({"center": {"one": ONE, "two": TWO}, "full": {"one": ONE}})
    assert [row[:3] for row in rows] == [
        ["center", "one", "4"],
        ["center", "two", "4"],
        ["center", "combination of 2", "4"],
        ["full", "one", "4"],
    ]
    assert rows[0][3] == "50.00 (15.00 to 85.00)"
    assert rows[2][3].startswith("0.00")


def test_top1_and_top5_are_in_their_columns():
    labels, names = np.arange(6), np.array([f"{i}.jpg" for i in range(6)])
    falling = np.tile(np.arange(10.0, 0.0, -1.0, dtype=np.float32), (6, 1))  # class 0 first, class 9 last
    few = Scores(falling[:, :9], labels, names, {"run": "one"})
    headers, ((*_, images, top1),) = errors_table({"center": {"one": few}})
    assert (headers[-1][:5], images, top1.split()[0]) == ("top-1", "6", "83.33")
    headers, ((*_, top1, top5),) = errors_table({"center": {"one": Scores(falling, labels, names, {"run": "one"})}})
    assert [header[:5] for header in headers[-2:]] == ["top-1", "top-5"]
    assert all("over images" in header for header in headers[-2:-1])
    assert (top1.split()[0], top5.split()[0]) == ("83.33", "16.67")


def test_comparisons_are_with_the_first():
    headers, rows = comparisons_table({"center": {"one": ONE, "two": TWO}})
    assert rows == [["center", "two", "one", "1", "2", "+25.00 (-56.26 to +100.00)", "1.00"]]
    assert "gain in % (95 % interval over images)" in headers


def test_classes_are_sorted_worst_first_with_their_most_frequent_confusion():
    _, rows = classes_table(replace(ONE, about={"classes": ["ant", "bee", "cat"]}))
    assert rows == [
        ["cat", "1", "1", "100.00 (20.65 to 100.00)", "ant (1)"],
        ["ant", "2", "1", "50.00 (9.45 to 90.55)", "bee (1)"],
        ["bee", "1", "0", "0.00 (0.00 to 79.35)", ""],
    ]


@pytest.fixture
def three_arms(tmp_path):
    return make_three_arms(tmp_path)


def test_comparison_and_classes(three_arms):
    runs = [run for run in read_runs([str(three_arms)]) if run.scores]
    page = comparison_page(runs)
    assert "combination of 4" in page.markdown()
    assert row_of(page, "folder-single-0", "folder-none-0", "0.12")[3:5] == ["0", "4"]
    assert "&lt;dog&gt;" in classes_page(runs[0]).html()
    with pytest.raises(ValueError, match="no views that all were tested on"):
        comparison_page(read_runs([str(three_arms)]))


def test_names_that_look_like_paths_write_no_other_files(tmp_path):
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
