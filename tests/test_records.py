import json
import os
import platform
import re
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sppnet.results.paper import table_page
from sppnet.results.records import (
    Epoch,
    Result,
    Scores,
    read_result,
    read_scores,
    result_text,
    write_result,
    write_scores,
)
from sppnet.results.runs import read_runs
from sppnet.runtime import environment as environment_module
from sppnet.runtime.environment import environment
from sppnet.runtime.files import write_json
from sppnet.runtime.progress import clock, duration
from sppnet.runtime.run_directory import read_run_config

RESULT = {
    "network": "zf5 (width 0.25), pyramid 6, 3, 2, 1, 1,000 parameters",
    "data": "shapes",
    "n": 500,
    "num_classes": 10,
    "protocol": "centre crop 224",
    "top1_error": 0.1,
    "top1_wrong": 50,
    "top5_wrong": 5,
    "epochs": 4,
    "seconds": 3725.0,
    "hardware": "2 cores of a processor",
    "training_images": 100,
    "history": [{"images_per_second": 50.0}],
}
OLD_VALUES = {key: value for key, value in RESULT.items() if key not in ("top1_error", "history")}


# As the first version to write all keys wrote them.
FULL_RESULT = """{
  "data": "shapes",
  "network": "zf5",
  "protocol": "centre crop 224 of images at shorter side 256, one view",
  "top1_error": 0.1,
  "top5_error": 0.01,
  "top1_wrong": 50,
  "top5_wrong": 5,
  "n": 500,
  "num_classes": 10,
  "training_images": 100,
  "unreadable_training_images": 0,
  "data_fingerprint": "123",
  "epochs": 2,
  "seconds": 3725.0,
  "seed": 9223372036854775807,
  "precision": "32-true",
  "versions": {
    "python": "3.11.2",
    "sppnet": null
  },
  "commit": null,
  "hardware": "2 cores of a processor",
  "history": [
    {
      "epoch": 1,
      "size": 224,
      "train_loss": 2.25,
      "learning_rate": 0.01,
      "images_per_second": 50.0,
      "seconds": 1800.0
    },
    {
      "epoch": 2,
      "size": 180,
      "train_loss": 1.5,
      "learning_rate": 0.01,
      "images_per_second": 60.0,
      "seconds": 1925.0,
      "top1_wrong": 50,
      "top5_wrong": 5,
      "n": 500
    }
  ],
  "checkpoint": "abc",
  "validation_images": "456"
}
"""


def test_a_result_is_written_as_it_was_read(tmp_path):
    (tmp_path / "result.json").write_text(FULL_RESULT)
    write_result(tmp_path / "copy", read_result(tmp_path))
    assert (tmp_path / "copy" / "result.json").read_text() == FULL_RESULT
    assert [file.name for file in (tmp_path / "copy").iterdir()] == ["result.json"]


def test_a_result_has_its_errors_and_epochs(tmp_path):
    (tmp_path / "result.json").write_text(FULL_RESULT)
    result = read_result(tmp_path)
    assert (result.top1_error, result.top5_error) == (0.1, 0.01)
    assert [epoch.size for epoch in result.history] == [224, 180]
    assert [epoch.n for epoch in result.history] == [None, 500]  # the first was not validated


def test_a_result_of_an_old_version_is_read_without_what_it_lacks(tmp_path):
    write_json(tmp_path / "result.json", RESULT | {"a key of another version": 1})
    result = read_result(tmp_path)
    assert result == Result(**OLD_VALUES, history=(Epoch(images_per_second=50.0),))
    assert (result.seed, result.commit, result.validation_images, result.history[0].size) == (None, None, None, None)


def test_a_result_has_one_value_per_line_and_missing_folders_are_made(tmp_path):
    file = tmp_path / "runs" / "one" / "result.json"
    write_json(file, {"n": 500, "data": "shapes"})
    assert file.read_text() == '{\n  "n": 500,\n  "data": "shapes"\n}\n'


def test_a_network_that_is_always_wrong_has_a_result(tmp_path):
    write_json(tmp_path / "result.json", RESULT | {"top1_error": 1.0, "top1_wrong": 500, "top5_wrong": 500})
    result = read_result(tmp_path)
    assert (result.top1_wrong, result.top1_error) == (500, 1.0)


def test_an_unfinished_run_has_no_result(tmp_path):
    assert read_result(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"top1_error": "abc"}'])
def test_a_damaged_result_is_named(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json: not a result of a run"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("top1_error", [0.1], "top1_error must be a number from 0 to 1"),
        ("top1_error", float("nan"), "top1_error must be a number from 0 to 1"),
        ("n", "500", "n must be a whole number from 1"),
        ("n", True, "n must be a whole number from 1"),
        ("n", 10**400, "n must be a whole number from 1"),
        ("top1_wrong", 501, "more images are wrong than n=500"),
        ("seconds", None, "seconds must be a number from 0"),
        ("hardware", 7, "hardware must be text"),
        ("history", [], "history must be a list of epochs"),
        ("history", 5, "history must be a list of epochs"),
        ("history", [{}], "history must be a list of epochs with images_per_second"),
        ("history", [{"images_per_second": 50.0, "size": "64"}], r"history\[0\]\.size must be a whole number from 1"),
        ("network", ["zf5"], "network must be text"),
        ("versions", ["3.11"], "versions must be names with text or null"),
        ("hardware", "\ud800", "surrogates not allowed"),
    ],
)
def test_a_result_with_another_value_is_refused_by_key(tmp_path, key, value, words):
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {key: value}))
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/result\.json: not a result of a run \(.*{words}.*\); delete it"
    ):
        read_result(tmp_path)


def test_a_result_that_is_too_deep_or_too_large_is_refused(tmp_path):
    for text in ("[" * 100_000, '{"n": ' + "9" * 5000 + "}", " " * (65 << 20)):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(ValueError, match=r"result\.json: not a result of a run"):
            read_result(tmp_path)


CONFIG = {
    "backbone": {"architecture": "zf5", "width": 0.1, "normalization": "none"},
    "pooling": {"levels": [6, 3, 2, 1]},
    "sizes": {"cycle": [224]},
    "data": {"source": "folder", "root": "/data/photos"},
    "recipe": {"epochs": 2, "batch_size": 4, "learning_rate": 0.1},
    "hidden": 16,
    "seed": 0,
}


def test_a_configuration_comes_back_as_it_was_written(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert read_run_config(tmp_path) == CONFIG


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("recipe", None, None, "recipe is not a section"),
        ("data", None, ["folder"], "data is not a section"),
        ("pooling", "levels", 5, "pooling.levels must be null or a list of whole numbers from 1"),
        ("pooling", "levels", [], "pooling.levels must be null or a list"),
        ("sizes", "cycle", "224", "sizes.cycle must be null or a list"),
        ("sizes", "cycle", None, "sizes must have either cycle or uniform"),
        ("recipe", "epochs", "many", "recipe.epochs must be a whole number from 1"),
        ("recipe", "learning_rate", float("nan"), "recipe.learning_rate must be a number above 0"),
        ("backbone", "width", float("inf"), "backbone.width must be a number above 0"),
        ("data", "root", 7, "data.root must be null or text"),
        ("data", "since", yaml.safe_load("2020-01-01"), "date is not JSON serializable"),
    ],
)
def test_a_configuration_with_another_value_is_refused_by_key(tmp_path, section, key, value, words):
    changed = {section: value if key is None else CONFIG[section] | {key: value}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | changed))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.yaml: not the configuration of a run \(.*{words}"):
        read_run_config(tmp_path)


def billion_laughs():
    lines = ["a0: &a0 [lol, lol]", *(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i in range(1, 10))]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (billion_laughs(), "alias"),
        ("a: &a [*a]", "alias"),
        ("[" * 10_000, ""),
        ("a: " + "x" * 100_000, "100,003 bytes, at most 100,000"),
        ("a: " + "9" * 5000, ""),
        ("a: 2001-99-99", ""),
        ("\0", ""),
        ("", "must be keys with values"),
    ],
)
def test_a_configuration_that_is_a_trap_is_refused(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.yaml: not the configuration of a run \(.*{words}"):
        read_run_config(tmp_path)


WORDS = st.sampled_from(["", "zf5", "timm", "imagenet", "x|y", "a\nb", "\ud800", "\0", "$x_", "architecture", "root"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.sampled_from([10**15, 10**400, -1, 0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def changed(draw, content):
    """`content` with up to three keys, at the top or in a section, replaced or removed."""
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
def test_records_of_strangers_make_a_table_or_one_error_that_names_the_file(tmp_path_factory, data):
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


SCORES = Scores(np.full((3, 2), 0.5, np.float32), np.array([0, 1, 0]), np.array(["a", "b", "c"]), {"views": "center"})


def test_scores_come_back_as_they_were_written(tmp_path):
    write_scores(tmp_path / "center.npz", SCORES)
    scores = read_scores(tmp_path / "center.npz")
    assert np.array_equal(scores.scores, SCORES.scores)
    assert scores.labels.tolist() == [0, 1, 0]
    assert scores.names.tolist() == ["a", "b", "c"]
    assert scores.about == SCORES.about


def test_scores_of_one_image_are_read_and_of_none_refused(tmp_path):
    for n in (1, 0):
        some = Scores(SCORES.scores[:n], SCORES.labels[:n], SCORES.names[:n], SCORES.about)
        write_scores(tmp_path / f"{n}.npz", some)
    assert read_scores(tmp_path / "1.npz").labels.tolist() == [0]
    with pytest.raises(ValueError, match=r"0\.npz: not a scores file \(0 scores, 0 labels and 0 names"):
        read_scores(tmp_path / "0.npz")


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def npy(array, shape=None):
    """The bytes of an .npy file; `shape` is what its header says."""
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {shape or array.shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + array.tobytes()


MEMBERS = {
    "scores": npy(SCORES.scores),
    "labels": npy(SCORES.labels),
    "names": npy(SCORES.names),
    "about": npy(np.array(json.dumps({"views": "center"}))),
}


def test_an_archive_that_unfolds_to_more_than_it_holds_is_refused_unread(tmp_path):
    path = tmp_path / "center.npz"
    archive(path, MEMBERS)
    read_scores(path)
    archive(path, MEMBERS | {"scores": npy(np.zeros((5000, 1000), np.float32))}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"center\.npz: not a scores file \(scores unfolds to 20,000,\d+ bytes, more"):
        read_scores(path)


@pytest.mark.parametrize("shape", [(2**40, 2), (2**62, 2**62), (10_000, 2)])
def test_an_array_that_says_it_is_larger_than_it_is_is_refused(tmp_path, shape):
    path = tmp_path / "center.npz"
    archive(path, MEMBERS | {"scores": npy(SCORES.scores, shape)})
    with pytest.raises(ValueError, match=r"center\.npz: not a scores file \(scores says \(.*more than the file holds"):
        read_scores(path)


def test_text_beside_scores_that_nests_too_deep_is_refused(tmp_path):
    archive(tmp_path / "center.npz", MEMBERS | {"about": npy(np.array("[" * 100_000))})
    with pytest.raises(ValueError, match=r"center\.npz: not a scores file"):
        read_scores(tmp_path / "center.npz")


def test_a_value_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "result.json", RESULT)
    with pytest.raises(TypeError):
        write_json(tmp_path / "result.json", {"top1_error": object()})
    assert json.loads((tmp_path / "result.json").read_text()) == RESULT
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_the_table_gives_errors_with_interval_n_and_protocol(tmp_path):
    assert result_text(Result.from_dict(RESULT), tmp_path).splitlines() == [
        "  network        zf5 (width 0.25), pyramid 6, 3, 2, 1, 1,000 parameters",
        "  data           shapes (500 validation images, 10 classes)",
        "  protocol       centre crop 224",
        "  top-1 error    10.00 %  (95 % interval 7.67 to 12.94 %)",
        "  top-5 error    1.00 %  (95 % interval 0.43 to 2.32 %)",
        "  trained        4 epochs in 1 h 2 min on 2 cores of a processor",
        f"  run directory  {tmp_path}",
        f"  TensorBoard    tensorboard --logdir {tmp_path}",
    ]


def test_the_environment_is_plain_and_names_versions_and_hardware():
    found = json.loads(json.dumps(environment()))
    versions = found["versions"]
    assert sorted(versions) == ["python", "pytorch-lightning", "sppnet", "timm", "torch", "torchvision"]
    assert all(versions.values())
    assert versions["python"] == platform.python_version()
    assert found["hardware"]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads Linux's description of the processor")
def test_the_hardware_is_the_cores_this_process_may_use_and_the_name_of_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        found = environment()["hardware"]
    finally:
        os.sched_setaffinity(0, usable)

    cores, processor = re.fullmatch("([0-9]+) cores of (.+)", found).groups()
    assert cores == "1"
    known = Path("/proc/cpuinfo").read_text()  # names the processor on x86; what it says on others differs
    assert f"model name\t: {processor}\n" in known or "model name" not in known


def git(folder, *arguments):
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_the_commit_is_that_of_the_source_tree_with_a_plus_where_it_was_changed(tmp_path, monkeypatch, capfd):
    source = tmp_path / "checkout" / "sppnet" / "records.py"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(environment_module, "__file__", str(source))
    assert environment()["commit"] is None  # a folder outside of any checkout

    source.write_text("as committed\n")
    git(source.parent, "init", "--quiet")
    git(source.parent, "add", "records.py")
    git(source.parent, "commit", "--quiet", "--message=first")
    git(source.parent, "tag", "--annotate", "--message=first", "v1")
    commit = git(source.parent, "rev-parse", "HEAD")[:12]
    assert environment()["commit"] == commit

    source.write_text("changed\n")
    assert environment()["commit"] == f"{commit}+"
    assert capfd.readouterr() == ("", "")  # git's own messages do not reach the user


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.4, 61, 3599, 3600)] == ["0:00", "0:59", "1:01", "59:59", "1:00:00"]


@pytest.mark.parametrize(
    ("hours", "minutes", "seconds", "text"),
    [
        (0, 0, 0, "0 min 0 s"),
        (0, 0, 59.6, "1 min 0 s"),
        (0, 59, 59, "59 min 59 s"),
        (1, 0, 0, "1 h 0 min"),
        (47, 59, 59, "47 h 59 min"),
        (48, 0, 0, "2 days 0 h"),
        (49, 30, 0, "2 days 1 h"),
        (24_000, 0, 0, "1,000 days 0 h"),
    ],
)
def test_durations_are_given_to_two_units(hours, minutes, seconds, text):
    assert duration(3600 * hours + 60 * minutes + seconds) == text
