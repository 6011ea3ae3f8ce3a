"""From three trained networks to the paper's tables by the command line, and the errors on the way."""

import json
import re
import shutil
from pathlib import Path

import hydra
import numpy as np
import pytest

from conftest import call_script, make_image_folder
from sppnet.commands import evaluate, tables

PROJECT = Path(__file__).parent.parent
SMALL = [
    *("data=folder", "recipe=fast", "trainer=cpu", "trainer.precision=32-true", "trainer.workers=0"),
    *("backbone.width=0.05", "hidden=16", "recipe.epochs=2", "recipe.batch_size=4", "recipe.warmup_epochs=0"),
]
CPU = ["hardware.accelerator=cpu", "hardware.workers=0", "hardware.precision=float32"]


def succeeds(done):
    """Returns the output of a command that ended without an error."""
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with three trained arms of Table 2."""
    cwd = tmp_path_factory.mktemp("place")
    make_image_folder(cwd / "images", train=5, val=3)
    assert call_script("train", "-m", "experiment=glob(table2_zf5_*)", *SMALL, "data.root=images", cwd=cwd) == 0
    return cwd


def arms(place):
    found = {path.name.split("-")[0].split("_")[2]: path for path in (place / "runs").glob("table2_*")}
    assert sorted(found) == ["alternate", "none", "single"]
    return found


@pytest.mark.slow
def test_three_trained_arms_are_tested_by_four_protocols_and_shown_on_pages(place, run_here):
    views = "views=[center,ten_crop,full,ten_crop_maps]"
    out = succeeds(run_here("evaluate", "run=runs/table2_*", views, *CPU, cwd=place))
    assert out.count("a network without a pyramid cannot be tested on") == 2
    assert "combination of 3" in out
    assert "McNemar p" in out
    for name, path in arms(place).items():
        protocols = ["center", "ten_crop"] if name == "none" else ["center", "full", "ten_crop", "ten_crop_maps"]
        assert sorted(file.stem for file in (path / "scores").iterdir()) == protocols

        # Training validates on the centre crop.
        result = json.loads((path / "result.json").read_text())
        with np.load(path / "scores" / "center.npz") as scores:
            assert (scores["scores"].argmax(1) != scores["labels"]).sum() == result["top1_wrong"]
            assert len(scores["names"]) == result["n"] == 6
            assert json.loads(str(scores["about"]))["images"] == result["validation_images"]

    again = succeeds(run_here("evaluate", "run=runs/table2_*", views, *CPU, cwd=place))
    assert again.count("scored already") == 10

    table = succeeds(run_here("tables", "table2", cwd=place))
    assert [line.split("|")[1].strip() for line in table.splitlines() if "| ten_crop" in line] == [
        "no SPP", "SPP, one size", "SPP, two sizes",
    ]  # fmt: skip
    page = (place / "runs" / "tables" / "table2.html").read_text()
    assert "<svg" in page
    assert "SPP, two sizes" in page

    assert "## " in succeeds(run_here("tables", "all", "runs=runs/table2_*", "out=tables", cwd=place))
    assert sorted(path.stem for path in (place / "tables").glob("*.html")) == ["table2", "table3", "table4"]

    sweep = succeeds(run_here("tables", "sweep", "runs=runs", cwd=place))
    assert "| none (one 6 x 6 grid) |" in sweep
    assert "| 6, 3, 2, 1 " in sweep

    single = f"run={arms(place)['single'].relative_to(place)}"
    out = succeeds(run_here("evaluate", single, "views=[center,full]", "scales=[180,224,240]", *CPU, cwd=place))
    assert "center at 180: skipped, as its windows are 224 pixels wide" in out
    scales = succeeds(run_here("tables", "scales", f"runs={single[4:]}", cwd=place))
    rows = [line.split("|")[1].strip() for line in scales.splitlines() if line.startswith("|")]
    assert rows[2:] == ["180", "224", "240", "256"]
    assert "## Errors by class" in succeeds(run_here("tables", "classes", f"runs={single[4:]}", cwd=place))


@pytest.mark.slow
def test_other_data_with_the_same_classes_and_a_checkpoint_file(place, run_here):
    make_image_folder(place / "others", classes=("dog", "cat"), train=2, val=2)
    checkpoint = arms(place)["single"] / "checkpoints" / "last.ckpt"
    copy = place / "copied.ckpt"
    shutil.copy(checkpoint, copy)
    other = ["data=folder", "data.root=others", "part=all", "exclude=[val/cat/0.jpg]"]
    out = succeeds(run_here("evaluate", "run=copied.ckpt", "views=[full]", *other, *CPU, cwd=place))
    assert "7 images of folder (all)" in out
    (file,) = (place / "copied.ckpt.scores").glob("full-*.npz")
    with np.load(file) as scores:
        assert "val/cat/0.jpg" not in scores["names"]
        assert len(scores["names"]) == 7


def spoil(place):
    """Makes data with other classes, a run without scores and one with a damaged file.

    Returns the paths that SINGLE and NONE in commands stand for.
    """
    if not (place / "cars").exists():
        make_image_folder(place / "cars", classes=("audi", "bmw"), train=2, val=2)
        untested, damaged = (shutil.copytree(arms(place)["single"], place / name) for name in ("untested", "damaged"))
        shutil.rmtree(untested / "scores", ignore_errors=True)
        (damaged / "scores").mkdir(exist_ok=True)
        (damaged / "scores" / "center.npz").write_bytes(b"PK\x03\x04 cut off")
    return {name.upper(): f"runs/{arms(place)[name].name}" for name in ("single", "none")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("evaluate", [], "run: missing; give it as run=VALUE"),
        ("evaluate", ["run=SINGLE", "views=[centre]"], "views=centre: must be one of center, full, full_aligned"),
        ("evaluate", ["run=SINGLE", "hardware.megapixel=3"], "hardware.megapixel"),
        ("evaluate", ["run=SINGLE", "data=folder", "data.root=cars"], "only in the network cat, dog"),
        ("tables", ["table5"], "table5: must be one of table2, table3"),
        ("tables", ["table2", "runs=damaged"], "center.npz: not a scores file"),
    ],
)
def test_errors_are_one_line(place, script, arguments, message, run_here):
    for name, path in spoil(place).items():
        arguments = [argument.replace(name, path) for argument in arguments]
    done = run_here(script, *arguments, cwd=place)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=SINGLE", "views=[]"], "views: missing"),
        (["run=SINGLE", "+views.center.scale=[256]"], "views.center.scale: no such key; did you mean scales"),
        (["run=SINGLE", "views.center.scales=[200]"], "scales=[200]: must be at least view_size=224"),
        (["run=SINGLE", "views.center.scales=[big]"], "views.center.scales[0]=big: must be a whole number"),
        (["run=SINGLE", "+views.mine.positions=[middle]"], "middle must be one of center, top_left"),
        (["run=nowhere"], "run=nowhere: no such run directory or checkpoint"),
        (["run=images"], "images/checkpoints/last.ckpt: no such checkpoint"),
        (["run=[SINGLE,NONE]", "scores=x"], "is for one run"),
        (["run=SINGLE", "part=test"], "part='test': must be one of train, val, all"),
        (["run=SINGLE", "exclude=[no.jpg]"], "exclude=no.jpg: no image of val has this name"),
        (["run=SINGLE", "data.root=nowhere"], "nowhere: there is no such folder"),
        (["run=SINGLE", "data=folder"], "data.root: missing"),
        (["run=NONE", "views=[full]"], "none of them suits the networks"),
        (["run=SINGLE", "hardware.precision=half"], "precision=half: must be bf16, float32 or null"),
        (["run=SINGLE", "views=[full]", "scales=[20]"], "the backbone needs at least"),
    ],
)
def test_a_wrong_evaluation_is_refused_by_key_and_value(place, monkeypatch, arguments, message):
    for name, path in spoil(place).items():
        arguments = [argument.replace(name, path) for argument in arguments]
    monkeypatch.chdir(place)
    with hydra.initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        config = hydra.compose("evaluate", [*CPU, *arguments])
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        evaluate.evaluate(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table2", "runs"], "runs: must be runs=PATTERN, out=FOLDER or combine=A+B"),
        (["table2", "run=x"], "run: no such key; did you mean runs?"),
        (["table2", "runs=nowhere"], "runs=nowhere: no run directories there"),
        (["classes", "runs=runs"], "classes is for one run"),
        (["compare", "runs=untested"], "untested: no views that all were tested on"),
        (["classes", "runs=untested"], "untested: not tested yet"),
    ],
)
def test_a_wrong_table_is_refused(place, monkeypatch, arguments, message):
    spoil(place)
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match=re.escape(message)):
        tables.main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["evaluate", "tables", "report", "transfer"])
def test_help_fits_a_page(script, tmp_path, run_here):
    out = succeeds(run_here(script, "--help", cwd=tmp_path))
    assert f"sppnet {script}" in out
    assert len(out.splitlines()) <= 40
