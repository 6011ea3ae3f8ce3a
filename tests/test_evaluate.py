"""The command `evaluate`: which images it tests on, by which views, under which name; which commands it refuses."""

import json
import shutil
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from conftest import make_image_folder
from sppnet.backbones import build_backbone
from sppnet.commands import evaluate
from sppnet.commands.naming import run_directory
from sppnet.data.sources import content_digests, images_fingerprint, open_data
from sppnet.network import SPPNet, load_network, save_network
from sppnet.results.records import read_result
from sppnet.results.runs import read_runs
from sppnet.results.scores import read_scores
from sppnet.runtime.published import data_to_record
from sppnet.runtime.run_directory import RunDirectory, read_run_config
from sppnet.use.publish import write_published
from test_configs import CONFIGS, composed

CPU = ["hardware.accelerator=cpu", "hardware.workers=0", "hardware.precision=float32"]


def make_run(run, root, *overrides, finished=True):
    """Makes a run directory of an untrained network on a folder of images."""
    config = composed("recipe=paper", "data=folder", f"data.root={root}", "backbone.width=0.05", "hidden=8", *overrides)
    RunDirectory(run, run_directory(config).config).claim()
    torch.manual_seed(0)
    options = OmegaConf.to_container(config.data)
    data = open_data(options.pop("source"), **options)
    network = SPPNet(
        build_backbone("zf5", width=0.05), tuple(config.pooling.levels), len(data.classes), hidden=8,
        classes=data.classes, initialization="fan_in",
    )  # fmt: skip
    (run / "checkpoints").mkdir()
    save_network(network, run / "checkpoints" / "last.ckpt")
    if finished:
        result = {
            "top1_error": 0.5,
            **dict.fromkeys(("top1_wrong", "top5_wrong"), 1),
            "n": 2,
            "num_classes": 2,
            "training_images": 2,
            "seconds": 1.0,
            "hardware": "a CPU",
            "history": [{"images_per_second": 1.0}],
            "data_fingerprint": data.fingerprint(),
            "validation_images": images_fingerprint(data.val, content_digests(data.val, "reading")),
        }
        (run / "result.json").write_text(json.dumps(result))
    return run


def test(*arguments):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose("evaluate", [*CPU, *arguments])
    evaluate.evaluate(config)


test.__test__ = False  # for pytest


def make_place(place):
    """Makes a folder with images and a run on them."""
    make_image_folder(place / "images", train=2, val=3)
    make_run(place / "run", place / "images", "sizes.cycle=[64]")
    return place


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_place(tmp_path)


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


def files(run="run"):
    return sorted(path.stem for path in Path(run, "scores").iterdir())


# Which images.


def test_the_images_of_a_run_are_recognized_wherever_they_are(place, capsys):
    test("run=run")
    shutil.move("images", "moved elsewhere")
    test("run=run", "data.root='moved elsewhere'")
    assert "center: scored already (run/scores/center.npz)" in capsys.readouterr().out
    assert files() == ["center"]
    assert list(read_runs(["run"])[0].scores) == ["center"]


def test_other_images_in_a_folder_of_the_same_name_get_other_scores(place, capsys):
    make_image_folder(place / "B" / "images", train=2, val=3)
    dog, cat = (place / "B" / "images" / "val" / name / "1.jpg" for name in ("dog", "cat"))
    dog.write_bytes(cat.read_bytes())
    test("run=run")
    test("run=run", "data.root=B/images")
    assert "scored already" not in capsys.readouterr().out
    assert len(files()) == 2
    validation = read_scores(place / "run" / "scores" / "center.npz")
    (other,) = (read_scores(path) for path in (place / "run" / "scores").glob("center-*.npz"))
    assert validation.about["images"] != other.about["images"]
    assert list(validation.names) == list(other.names)
    same = np.flatnonzero(validation.names != "val/dog/1.jpg")
    assert np.array_equal(validation.scores[same], other.scores[same])
    assert not np.array_equal(validation.scores, other.scores)
    assert [scores.about["images"] for scores in read_runs(["run"])[0].scores.values()] == [validation.about["images"]]


def test_changed_validation_images_are_reported(place, capsys):
    (place / "images" / "val" / "cat" / "2.jpg").unlink()
    test("run=run")
    assert "run: its validation images have changed since training; tables will skip these" in capsys.readouterr().out
    assert read_runs(["run"])[0].scores == {}


def test_saved_scores_are_shown_by_their_settings(place, capsys):
    command = ["run=run", "data=folder", "data.root=images/val", "part=all", "exclude=[cat/0.jpg]"]
    command += ["views.center.scales=[70]"]
    test(*command)
    capsys.readouterr()
    test(*command)
    out = capsys.readouterr().out
    title = "center with scales=[70] on data=folder data.root=images/val part=all exclude=[cat/0.jpg]"
    assert f"{title}: scored already (run/scores/center-" in out


def test_a_run_that_is_not_finished_is_tested_on_its_data(place, capsys):
    make_run(place / "unfinished", place / "images", "sizes.cycle=[64]", finished=False)
    test("run=unfinished")
    assert "unfinished: has not finished training" in capsys.readouterr().out
    assert files("unfinished") == ["center"]


def test_folders_without_a_checkpoint_are_skipped_in_one_line_where_a_pattern_matches_them(place, capsys):
    (place / "runs" / "tables").mkdir(parents=True)
    shutil.move("run", "runs/a")
    test("run=runs/*")
    assert "run=runs/*: skipping what has no checkpoint, runs/tables\n" in capsys.readouterr().out
    assert files("runs/a") == ["center"]


# Splitting.


def test_a_folder_without_splits_is_tested_only_if_part_is_given(place):
    command = ["run=run", "data=folder", "data.root=images/val"]
    with pytest.raises(ValueError, match=r"^data\.root=\S+/images/val: has no val/ part; give part=all to test on all"):
        test(*command)
    with pytest.raises(ValueError, match="give part=all"):
        test("run=run", "data.root=images/val")
    assert not (place / "run" / "scores").exists()
    test(*command, "part=all")
    test(*command, "data.val_fraction=0.34")
    sizes = sorted(len(read_scores(path).labels) for path in (place / "run" / "scores").glob("*.npz"))
    assert sizes == [2, 6]


def test_a_class_of_one_image_can_be_tested(place):
    for name in ("1.jpg", "2.jpg"):
        (place / "images" / "val" / "cat" / name).unlink()
    test("run=run", "data=folder", "data.root=images/val", "part=all")
    (file,) = (place / "run" / "scores").iterdir()
    assert read_scores(file).names.tolist() == ["cat/0.jpg", "dog/0.jpg", "dog/1.jpg", "dog/2.jpg"]


def test_the_split_of_training_is_the_split_of_the_test(place):
    make_run(place / "split", place / "images" / "train", "sizes.cycle=[64]")
    test("run=split")
    shutil.copytree("images/train", "moved")
    test("run=split", "data.root=moved")
    assert files("split") == ["center"]
    with pytest.raises(ValueError, match="has no val/ part"):
        test("run=split", "data.root=images/val")


def published(run, **changes):
    """Publishes a run with further settings of its data, and returns what it records of the data."""
    (config, result), folder = (read_run_config(Path(run)), read_result(Path(run))), Path(f"{run}-net")
    data = data_to_record({**config["data"], **changes}, result.data_fingerprint)
    write_published(folder, load_network(run), "", crop_side=64, data=data)
    return json.loads((folder / "config.json").read_text()).get("data")


def test_a_published_network_is_tested_on_the_split_of_its_training(place, capsys):
    options = ("sizes.cycle=[64]", "data.val_fraction=0.34", "data.split_seed=3")
    make_run(place / "split", place / "images" / "train", *options)
    test("run=split")
    assert published("split").keys() == {"source", "val_fraction", "split_seed", "fingerprint"}
    test("run=split-net", "data.root=images/train", "views=center")
    (file,) = (place / "split-net.scores").iterdir()
    expected = read_scores(place / "split/scores/center.npz")
    assert read_scores(file).names.tolist() == expected.names.tolist()
    assert read_scores(file).scores.tolist() == expected.scores.tolist()
    with pytest.raises(ValueError, match=r"split-net: was trained on data=folder; give data\.root=PATH, where"):
        test("run=split-net")
    with pytest.raises(ValueError, match="has no val/ part"):  # of other images
        test("run=split-net", "data.root=images/val")
    with pytest.raises(ValueError, match="has no val/ part"):  # another split, of images that it was trained on
        test("run=split-net", "data=folder", "data.root=images/train")
    for secret in ({"train_list": "/home/me/list"}, {"source": "hub"}, {"class_pattern": "(a+)+"}):
        assert published("split", **secret) is None
        with pytest.raises(ValueError, match=r"split-net: has no config\.yaml that names its data"):
            test("run=split-net", "data.root=images/train")


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("source", "hub", "data.source must be one of folder, table"),
        ("split_seed", "x", "data.split_seed must be a whole number"),
        ("val_fraction", 2, "data.val_fraction must be a number from 0 to 1"),
        ("classes", [1], "data.classes must be null or a list of text"),
        (None, 3, "data must be a section"),
    ],
)
def test_a_wrong_record_of_published_data_is_refused(place, key, value, line):
    published("run")
    file = place / "run-net" / "config.json"
    config = json.loads(file.read_text())
    config["data"] = value if key is None else {"source": "folder", "fingerprint": "x", key: value}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=line):
        test("run=run-net", "data.root=images")


def test_a_table_without_parts_is_tested_only_if_part_is_given(place):
    pairs = [(part, name) for part in ("train", "val") for name in ("cat", "dog")]
    lines = [f"images/{part}/{name}/{i}.jpg,{name}\n" for part, name in pairs for i in range(2)]
    (place / "photos.csv").write_text("path,label\n" + "".join(lines[:3]))
    command = ["run=run", "data=table", "data.file=photos.csv"]
    test(*command, "part=all")
    (file,) = (place / "run" / "scores").iterdir()
    assert read_scores(file).names.tolist() == [line.split(",")[0] for line in lines[:3]]
    (place / "photos.csv").write_text("path,label\n" + "".join(lines))
    with pytest.raises(ValueError, match=r"data.file=\S+photos.csv: has no val_file or split_column; give part=all"):
        test(*command)
    test(*command, "data.val_fraction=0.5")
    assert len(list((place / "run" / "scores").iterdir())) == 2


def test_a_run_of_some_classes_is_tested_on_those(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_image_folder(tmp_path / "images", ("ant", "cat", "dog"), train=2, val=3)
    make_run(tmp_path / "run", tmp_path / "images", "sizes.cycle=[64]", "data.classes=[dog,ant]")
    test("run=run")
    assert files() == ["center"]
    assert list(read_runs(["run"])[0].scores) == ["center"]
    expected = [f"val/{name}/{i}.jpg" for name in ("ant", "dog") for i in range(3)]
    assert read_scores(tmp_path / "run/scores/center.npz").names.tolist() == expected

    # Elsewhere, too, with part=all on a folder without parts.
    shutil.move("images", "moved")
    test("run=run", "data.root=moved")
    assert files() == ["center"]
    test("run=run", "data.root=moved/train", "part=all")
    (other,) = (read_scores(path) for path in (tmp_path / "run" / "scores").glob("center-*.npz"))
    assert other.names.tolist() == [f"{name}/{i}.jpg" for name in ("ant", "dog") for i in range(2)]

    capsys.readouterr()
    test("run=run", "data=folder", "data.root=moved/train", "data.classes=[ant,dog]", "part=all")
    assert "center on data=folder data.root=moved/train data.classes=[ant,dog] part=all" in capsys.readouterr().out


# Views.


def test_views_follow_the_crop_side_of_each_run(place, capsys):
    make_run(place / "larger", place / "images", "sizes=random", "sizes.uniform=[72,112]")
    test("run=[run,larger]", "views=[center,full]")
    out = capsys.readouterr().out
    assert "center, run: 64 crops (center) at shorter side 73\n" in out
    assert "center, larger: 112 crops (center) at shorter side 128\n" in out
    assert "full, run: whole image at shorter side 73" in out
    assert files("larger") == ["center", "full"]
    assert read_scores(place / "run" / "scores" / "center.npz").about["protocol"]["scales"] == [73]


def test_a_crop_side_can_be_given(place, capsys):
    test("run=run", "crop_side=112")
    assert "center with crop_side=112: 112 crops (center) at shorter side 128" in capsys.readouterr().out
    (name,) = files()
    assert name.startswith("center-")
    assert list(read_runs(["run"])[0].scores) == ["center with crop_side=112"]


def test_a_checkpoint_without_configuration_is_tested_at_224_with_a_note(place, capsys):
    shutil.copy("run/checkpoints/last.ckpt", "copied.ckpt")
    test("run=copied.ckpt", "data=folder", "data.root=images")
    out = capsys.readouterr().out
    assert (
        "copied.ckpt: no config.yaml names its crop side; views are for crops of 224, or give crop_side=PIXELS" in out
    )
    assert "center: 224 crops (center) at shorter side 256" in out
    test("run=copied.ckpt", "data=folder", "data.root=images", "crop_side=64")
    assert "64 crops (center) at shorter side 73" in capsys.readouterr().out


def test_a_checkpoint_in_a_run_directory_is_tested_as_its_run(place, capsys):
    shutil.copy("run/checkpoints/last.ckpt", "run/checkpoints/best.ckpt")
    for path in ("run", "run/checkpoints/best.ckpt"):
        test(f"run={path}")
        assert "center: 64 crops (center) at shorter side 73" in capsys.readouterr().out
    saved = read_scores(place / "run" / "checkpoints" / "best.ckpt.scores" / "center.npz")
    assert (saved.scores == read_scores(place / "run" / "scores" / "center.npz").scores).all()


def test_sizes_that_are_given_in_pixels_are_pixels(place, capsys):
    test("run=run", "views.center.scales=[80]", "+views.mine.full_scales=[90]")
    out = capsys.readouterr().out
    assert "center with scales=[80]: 64 crops (center) at shorter side 80" in out
    assert "mine with full_scales=[90]: whole image at shorter side 90" in out


def test_protocols_at_other_scales(place, capsys):
    test("run=run", "views=[center,full]", "scales=[60,96]")
    out = capsys.readouterr().out
    assert "center at 60: skipped, as its windows are 64 pixels wide" in out
    assert "center-96: 64 crops (center) at shorter side 96" in out
    assert sorted(read_runs(["run"])[0].scores) == ["center-96", "full-60", "full-96"]


# What is refused, in one line, with nothing written.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=5"], "run=5: must be a run directory, a checkpoint, a pattern, or a list of them"),
        (["run=null"], "run=null: must be a run directory"),
        (["run=[1,2]"], "run=[1, 2]: must be a run directory"),
        (["run=[]"], "run=[]: must be a run directory"),
        (["run=''"], "run: empty; give it as run=VALUE"),
        (["run={a: 1}"], "run={'a': 1}: must be a run directory"),
        (["run=run", "scales=[]"], "scales=[]: must name at least one shorter side"),
        (["run=run", "scales=[100000]", "views=[full]"], "scales=[100000]: must be from 1 to 4096 pixels"),
        (["run=run", "scales=[0]", "views=[full]"], "scales=[0]: must be from 1 to 4096 pixels"),
        (["run=run", "scales=[-5]"], "scales=[-5]: must be from 1 to 4096 pixels"),
        (["run=run", "scales=[big]"], "scales[0]=big: must be a whole number"),
        (["run=run", "views.center.scales=[1/0]"], "views.center.scales[0]=1/0: must be a whole number"),
        (["run=run", "views.center.view_size=100000"], "must be at least view_size=100000"),
        (["run=run", "crop_side=0"], "crop_side=0: must be from 1 to 4096"),
        (["run=run", "crop_side=100000"], "crop_side=100000: must be from 1 to 4096"),
        (["run=run", "+views.mine=5"], "views.mine=5: must be a section"),
        (["run=run", "hardware.workers=1000000"], "hardware.workers=1000000: must be from 0 to"),
        (["run=run", "hardware.megapixels=inf"], "hardware.megapixels=inf: must be above 0, at most 10,000"),
        (["run=run", "hardware.devices=1000000"], "hardware.devices=1000000: must be 1 to"),
        (["run=run", "data.root=5"], "5: there is no such folder"),
        (["run=run", "exclude=[val/cat/0.jpg,val/cat/1.jpg,val/cat/2.jpg,val/dog/0.jpg,val/dog/1.jpg,val/dog/2.jpg]"],
         "exclude: leaves none of the 6 images of val"),
    ],
)  # fmt: skip
def test_a_wrong_evaluation_is_refused(shared_place, monkeypatch, arguments, message):
    monkeypatch.chdir(shared_place)
    before = sorted(shared_place.rglob("*"))
    with pytest.raises((ValueError, OSError)) as error:
        test(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(shared_place.rglob("*")) == before


def test_the_shipped_configuration_is_complete():
    file = OmegaConf.load(CONFIGS / "evaluate.yaml")
    assert {"run", "scales", "crop_side", "data", "part", "exclude", "scores", "hardware"} <= set(file)
