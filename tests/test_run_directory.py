"""Run directories: config.yaml, which may come from anyone, and one process at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import started_process
from sppnet.runtime.run_directory import RunDirectory, read_run_config, sizes_in_words

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


def test_sizes_are_named_with_what_is_not_usual():
    words = {
        (224, 180): {"cycle": [224, 180], "uniform": None, "every": "epoch", "multiple": 1},
        ("random", 180, 224): {"uniform": [180, 224]},
        (224, 180, "per batch"): {"cycle": [224, 180], "every": "batch"},
        ("random", 64, 96, "multiples of 32", "per batch"): {"uniform": [64, 96], "every": "batch", "multiple": 32},
    }
    assert {tuple(sizes_in_words(sizes)): sizes for sizes in words.values()} == words


@pytest.mark.parametrize("seed", [0, 10**15, 2**63 - 1])
def test_every_seed_that_can_be_trained_is_read(tmp_path, seed):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"seed": seed}))
    assert read_run_config(tmp_path)["seed"] == seed


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("recipe", None, None, "recipe is not a section"),
        ("data", None, ["folder"], "data is not a section"),
        ("pooling", "levels", 5, "pooling.levels must be null or a list of whole numbers from 1"),
        ("pooling", "levels", [], "pooling.levels must be null or a list"),
        ("sizes", "cycle", "224", "sizes.cycle must be null or a list"),
        ("sizes", "multiple", 0, "sizes.multiple must be a whole number from 1"),
        ("sizes", "cycle", None, "sizes must have either cycle or uniform"),
        ("recipe", "epochs", "many", "recipe.epochs must be a whole number from 1"),
        ("recipe", "learning_rate", float("nan"), "recipe.learning_rate must be a number above 0"),
        ("backbone", "width", float("inf"), "backbone.width must be a number above 0"),
        ("data", "root", 7, "data.root must be null or text"),
        ("data", "classes", "cat", "data.classes must be null or a list of text"),
        ("data", "classes", ["cat", 1], "data.classes must be null or a list of text"),
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
def test_a_malicious_or_damaged_configuration_is_refused(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.yaml: not the configuration of a run \(.*{words}"):
        read_run_config(tmp_path)


def test_the_configuration_of_a_run_directory_runs_nothing(tmp_path):
    owned = tmp_path / "owned"
    for line in (f"!!python/object/apply:os.mkdir ['{owned}']", f"{{_target_: os.mkdir, path: {owned}}}"):
        (tmp_path / "config.yaml").write_text(f"seed: {line}\n")
        with pytest.raises(ValueError, match=r"config\.yaml"):
            RunDirectory(tmp_path, CONFIG).claim()
        assert not owned.exists()


def test_a_run_directory_of_another_network_is_refused(tmp_path):
    RunDirectory(tmp_path / "run", CONFIG).claim()
    RunDirectory(tmp_path / "run", CONFIG).claim()
    other = CONFIG | {"backbone": CONFIG["backbone"] | {"width": 0.5}}
    with pytest.raises(ValueError, match=r"backbone\.width is 0\.1 there and 0\.5 here"):
        RunDirectory(tmp_path / "run", other).claim()
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_a_run_from_before_classes_could_be_chosen_is_the_run_with_all_of_them(tmp_path):
    def claim(*folder, **data):
        RunDirectory(tmp_path.joinpath(*folder), CONFIG | {"data": CONFIG["data"] | data}).claim()

    claim("old")
    claim("old", classes=None)
    with pytest.raises(ValueError, match=r"data\.classes is None there and \['ant', 'cat'\] here"):
        claim("old", classes=["cat", "ant"])
    claim("new", classes=["cat", "ant"])
    claim("new", classes=["ant", "cat"])
    assert read_run_config(tmp_path / "new")["data"]["classes"] == ["cat", "ant"]


def test_a_folder_with_other_things_is_no_run_directory(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "letter.txt").touch()
    with pytest.raises(ValueError, match=r"found letter\.txt, photos, expected a new folder or a run directory"):
        RunDirectory(tmp_path, CONFIG).claim()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letter.txt", "photos"]
    with pytest.raises(ValueError, match=r"letter\.txt: found a file, expected a new folder"):
        RunDirectory(tmp_path / "letter.txt", CONFIG).claim()


def test_a_kill_while_a_run_directory_is_made_leaves_nothing(tmp_path):
    stale = tmp_path / f"config.yaml.partial{2**22 + 1}"  # of a process that no longer runs
    stale.touch()
    RunDirectory(tmp_path, CONFIG).claim()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_next_training_removes_the_temporary_files_of_a_killed_one(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    stale = [tmp_path / f"result.json.partial{2**22 + 1}", tmp_path / f"checkpoints/last.ckpt.partial{2**22 + 1}"]
    for path in stale:
        path.touch()
    with RunDirectory(tmp_path, {}).training():
        assert not any(path.exists() for path in stale)


def test_a_run_directory_is_for_one_process_at_a_time(tmp_path):
    code = """
import sys
from pathlib import Path
from sppnet.runtime.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1]), {}).training():
    print("holds it", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started_process(command, env=environment, **pipes) as holder:
        assert holder.stdout.readline() == "holds it\n"
        held = rf": process {holder.pid} on \S+, since \S+ \S+, trains here"
        with pytest.raises(ValueError, match=held), RunDirectory(tmp_path, {}).training():
            pass
        holder.kill()
        holder.wait()
    with RunDirectory(tmp_path, {}).training():  # the lock ends with its process
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()
    assert (tmp_path / "lock").read_text() == ""
