"""config.yaml of run directories, which may come from anyone."""

import pytest
import yaml

from sppnet.runtime.run_directory import read_run_config

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
def test_a_malicious_or_damaged_configuration_is_refused(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.yaml: not the configuration of a run \(.*{words}"):
        read_run_config(tmp_path)
