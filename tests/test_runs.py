"""Runs: finding them, grouping them by setting, reading their scores; errors for damaged or malicious files."""

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from made_runs import made_scores, make_run, make_three_arms
from made_transfers import made_about, made_several_labels, make_transfer
from sppnet.results.runs import distinct_texts, grouped, read_runs
from sppnet.results.scores import SCORING_RULES, write_scores
from sppnet.results.tables import table_page
from test_records import RESULT
from test_run_directory import CONFIG


@pytest.fixture
def three_arms(tmp_path):
    return make_three_arms(tmp_path)


def test_runs_are_found_in_folders_and_by_patterns(three_arms):
    assert len(read_runs([str(three_arms)])) == 6
    assert len(read_runs([str(three_arms / "*single*")])) == 2
    assert len(read_runs([str(three_arms / "folder-none-0"), str(three_arms / "*-none-*")])) == 3
    with pytest.raises(ValueError, match="no run directories there"):
        read_runs([str(three_arms / "nothing*")])


def test_folders_of_nothing_but_decisions_of_transfer_are_no_error(tmp_path):
    make_transfer(tmp_path / "resnet50", [3])
    for pattern in (tmp_path, tmp_path / "resnet50", tmp_path / "resnet50" / "transfer"):
        assert read_runs([str(pattern)]) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no run directories there"):
        read_runs([str(tmp_path), str(tmp_path / "empty")])


def test_scores_with_a_label_for_every_class_are_refused_as_those_of_a_classifier(tmp_path):
    run = make_run(tmp_path, "single", wrong={"center": 3})
    write_scores(run / "scores" / "voc.npz", made_several_labels(made_about(), 1.0))
    with pytest.raises(ValueError, match=r"voc\.npz: a label for every class"):
        _ = read_runs([str(run)])[0].scores


def test_the_root_of_the_data_may_differ_but_not_its_last_folder(three_arms):
    assert len(grouped(read_runs([str(three_arms / "*none*")]))) == 1
    moved = three_arms / "folder-none-1" / "config.yaml"
    moved.write_text(moved.read_text().replace("photos", "drawings"))
    assert len(grouped(read_runs([str(three_arms / "*none*")]))) == 2


def test_runs_of_some_classes_are_a_group_of_their_own_and_null_is_all_classes(three_arms):
    def groups(classes):
        changed = config | {"data": config["data"] | {"classes": classes}}
        file.write_text(yaml.safe_dump(changed))
        return list(grouped(read_runs([str(three_arms / "*none*")])).values())

    file = three_arms / "folder-none-1" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    assert len(groups(None)) == 1
    few = groups(["dog", "cat"])
    assert len(few) == 2
    assert [runs[0].setting_text().count("2 of the classes") for runs in few] == [0, 1]


def test_runs_with_the_same_text_are_told_apart_by_the_settings_in_which_they_differ(tmp_path):
    crops = {"crop_area": [0.2, 1.0]}
    for place, variant, recipe in [
        ("0", "single", {}),
        ("1", "none", crops),
        ("2", "none", crops | {"dropout": 0.2}),
        ("3", "single", {"epochs": 9}),
    ]:
        make_run(tmp_path / place, variant, **recipe)
    runs = read_runs([str(tmp_path / "*")])
    texts = distinct_texts(runs, "pooling", "sizes")
    added = [text.removeprefix(run.setting_text()) for text, run in zip(texts, runs, strict=True)]
    assert added == ["", "; recipe.crop_area=[0.2,1.0]", "; recipe.crop_area=[0.2,1.0]; recipe.dropout=0.2", ""]
    headings = [block.splitlines()[0] for block in table_page("table2", runs).markdown().split("\n## ")[1:]]
    assert len(set(headings)) == len(headings) == 4


@pytest.mark.parametrize(
    "content", ["a: [", "no sections", "backbone: 1\n", "!!python/object/apply:os.system ['true']\n"]
)
def test_the_error_names_a_damaged_configuration(three_arms, content):
    (three_arms / "folder-none-0" / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"folder-none-0/config\.yaml: not the configuration of a run") as error:
        read_runs([str(three_arms)])
    assert "\n" not in str(error.value)


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


def test_scores_belong_to_the_run_that_validated_on_the_same_contents_wherever_they_are(tmp_path):
    run = make_run(tmp_path, "single")
    config = yaml.safe_load((run / "config.yaml").read_text())
    result = json.loads((run / "result.json").read_text()) | {"validation_images": "123"}
    (run / "result.json").write_text(json.dumps(result))
    moved = {"data": {"source": "prepared", "root": "/elsewhere"}}
    write_scores(run / "scores" / "center.npz", made_scores("center", 3, config, images="456"))
    assert read_runs([str(tmp_path)])[0].scores == {}
    write_scores(run / "scores" / "center.npz", made_scores("center", 3, config, images="123", **moved))
    assert list(read_runs([str(tmp_path)])[0].scores) == ["center"]


WORDS = st.sampled_from(["", "zf5", "timm", "imagenet", "x|y", "a\nb", "\ud800", "\0", "$x_", "architecture", "root"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.sampled_from([10**15, 10**400, -1, 0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def changed(draw, content):
    """Returns `content` with up to three keys, at the top or in a section, replaced or removed."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from(sorted(content)))
        section = content
        if isinstance(content[key], dict) and content[key] and draw(st.booleans()):
            section, key = content[key], draw(st.sampled_from(sorted(content[key], key=str)))
        if draw(st.booleans()):
            section[key] = draw(VALUES)
        elif section is not content:
            del section[key]
    return content


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_untrusted_run_directories_make_a_table_or_one_error_that_names_the_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run = folder / f"run{seed}"
        run.mkdir()
        config = changed(data.draw, CONFIG | {"seed": seed})
        (run / "config.yaml").write_text(yaml.dump(config, Dumper=NoAliases))
        (run / "result.json").write_text(json.dumps(changed(data.draw, RESULT | {"checkpoint": "abc"})))
    try:
        page = table_page("table2", read_runs([str(folder)]))
        page.write(folder, "table2")
    except ValueError as error:
        message = str(error)
        assert str(folder) in message
        assert "\n" not in message


class NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True
