"""The command `transfer`: which networks, layers and data it takes, what it prints, and what it leaves behind."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import timm
import torch

from conftest import SCRIPTS, call_script, make_image_folder, started_process
from sppnet.commands import frozen_networks, transfer
from sppnet.results.scores import read_scores
from sppnet.results.transferred_features import features
from sppnet.results.transfers import read_transfers
from sppnet.runtime.checkout import shown_command
from sppnet.runtime.hardware import Hardware
from sppnet.transfer import evaluator
from sppnet.transfer.probe import Svm
from test_configs import CONFIGS
from test_protocols import make_voc

CPU = ["hardware.accelerator=cpu", "hardware.workers=0", "hardware.precision=float32", "svm.jobs=1"]
SMALL = [
    *(
        "data=folder",
        "data.root=images",
        "recipe=fast",
        "trainer=cpu",
        "trainer.precision=32-true",
        "trainer.workers=0",
    ),
    *("backbone.width=0.05", "hidden=8", "recipe.epochs=1", "recipe.batch_size=4", "recipe.warmup_epochs=0"),
]
PHOTOS = ["data=folder", "data.root=photos", "splits=2", "view=crop", "scales=[64]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two trained runs, a run without a pyramid, and photos of other classes."""
    place = tmp_path_factory.mktemp("trained")
    make_image_folder(place / "images", train=3, val=2)
    make_image_folder(place / "all", ("ant", "bee", "wasp"), train=4, val=1)
    (place / "all" / "train").rename(place / "photos")
    train = ["train", *SMALL, "sizes.cycle=[64]"]
    assert call_script(*train, "run=run", cwd=place) == 0
    assert call_script(*train, "run=other", "seed=1", cwd=place) == 0
    assert call_script(*train, "run=flat", "pooling=none", cwd=place) == 0
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of it, as the current folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test(*arguments):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose("transfer", [*CPU, *arguments])
    transfer.transfer(config)


test.__test__ = False  # for pytest


def files(run="run"):
    """Returns the names of the files of decisions in a run directory."""
    return sorted(path.stem for path in Path(run, "transfer").rglob("*.npz"))


def decided(*layers, splits=2):
    """Returns the names of files of these layers."""
    return sorted(f"{layer}-split{i}" for layer in layers for i in range(splits))


ALL = decided(
    "pixels", *(f"{layer}{suffix}" for layer in ("pool5", "fc6", "fc7") for suffix in ("", "-untrained-seed0"))
)


def table(out):
    """Returns the cells of the rows of the printed tables."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0] != "layer" and not row[0].startswith("---")]


# Networks.


def test_a_run_is_tested_beside_its_untrained_twin_and_pixels(place, capsys):
    test("run=run", *PHOTOS)
    out = capsys.readouterr().out
    assert files() == ALL
    assert "folder photos: 12 images of 3 classes, 2 splits into 9 to train on and 3 to test on\n" in out
    assert "\nrun: zf5 (width 0.05, normalization " in out
    rows = table(out)
    assert [row[0] for row in rows] == [
        *("pool5", "fc6", "fc7"), *("pool5, untrained", "fc6, untrained", "fc7, untrained"), "pixels",
    ]  # fmt: skip
    assert all(row[1] == "crop 64" and row[3] == "2" for row in rows)
    assert all(row[-1] for row in rows[:3])
    assert f"a page of it: {shown_command('tables')} transfer runs=run\n" in out

    result = json.loads((place / "run" / "result.json").read_text())
    found = features(read_transfers(["run"]))
    assert [(feature.trained, feature.is_pixels) for feature in found] == 3 * [(True, False)] + 3 * [(False, False)] + [
        (False, True)
    ]
    about = found[0].about
    assert about["checkpoint"] == result["checkpoint"]
    assert (about["network"]["trained_on"], about["network"]["seed"]) == ("folder", 0)
    assert about["network"]["variant"] == "single"
    assert about["data"] == {
        "source": "folder", "root": str(place / "photos"), "val_fraction": None, "split_seed": 0, "classes": None,
        "class_pattern": None, "train_list": None, "val_list": None,
    }  # fmt: skip
    assert sorted(path.name for path in (place / "run").iterdir()) == [
        *("checkpoints", "config.yaml", "features", "lock", "result.json", "tensorboard", "transfer")
    ]


def test_the_same_command_again_runs_no_network_and_prints_the_same(place, capsys, monkeypatch):
    test("run=run", *PHOTOS)
    first = capsys.readouterr().out
    monkeypatch.setattr(evaluator, "extract_features", None)
    test("run=run", *PHOTOS)
    again = capsys.readouterr().out
    assert again.count("done already (run/transfer/") == 2
    assert table(again) == table(first)


def test_a_page_of_tables_is_made_of_it(place, run_here):
    test("run=run", *PHOTOS, "layers=[pool5]")
    done = run_here("tables", "transfer", "runs=run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "folder photos: 3 classes, 9 training and 3 test images" in done.stdout
    assert (place / "runs" / "tables" / "transfer.html").is_file()


def test_several_runs_are_tested_one_after_the_other(place, capsys):
    test("run=[run,oth*]", *PHOTOS, "layers=[pool5]", "baselines=[]")
    out = capsys.readouterr().out
    assert out.index("\nrun: zf5") < out.index("\nother: zf5")
    assert len(table(out)) == 2
    assert files() == files("other") == decided("pool5")
    (feature,) = features(read_transfers(["run", "other"]))
    assert sorted(feature.runs) == [0, 1]


def test_all_runs_are_checked_before_the_first_is_tested(place):
    with pytest.raises(ValueError, match=r"^view=crop at a scale of 72: the network has no pyramid and takes 64 x 64"):
        test("run=[run,flat]", *PHOTOS, "scales=[72]")
    assert not (place / "run" / "transfer").exists()


def test_folders_without_a_checkpoint_are_skipped_in_one_line_where_a_pattern_matches_them(place, capsys):
    """Such as pages of tables, and the decisions of networks that were not trained here."""
    (place / "runs" / "tables").mkdir(parents=True)
    (place / "runs" / "transfer-resnet50-pretrained-0a1b2c3d" / "transfer").mkdir(parents=True)
    shutil.move("run", "runs/a")
    shutil.move("other", "runs/b")
    test("run='runs/*'", *PHOTOS, "layers=[pool5]", "baselines=[]")
    out = capsys.readouterr().out
    line = "run=runs/*: skipping what has no checkpoint, runs/tables, runs/transfer-resnet50-pretrained-0a1b2c3d\n"
    assert out.count(line) == 1
    assert files("runs/a") == files("runs/b") == decided("pool5")
    with pytest.raises(FileNotFoundError, match=r"^runs/tables/checkpoints/last\.ckpt: no such checkpoint$"):
        test("run=[runs/a,runs/tables]", *PHOTOS, "layers=[fc7]")
    assert files("runs/a") == decided("pool5")


def test_settings_and_a_single_network_are_built_once(place, monkeypatch):
    built = []

    def count(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments: (built.append(name), original(*arguments))[1])

    monkeypatch.setattr(Svm, "__post_init__", lambda self: built.append("svm"))
    monkeypatch.setattr(Hardware, "__post_init__", lambda self: built.append("hardware"))
    count(frozen_networks, "load_run")
    count(frozen_networks, "untrained_twin")
    test("run=run", *PHOTOS[:4], "layers=[pool5]", "scales=[48,64]")
    assert sorted(built) == ["hardware", "load_run", "svm", "untrained_twin"]


def test_memory_is_checked_for_all_runs_and_scales_before_images_are_read(place, monkeypatch):
    """The Gram matrix of 30 images takes 15 kB. At view=crop a map at scale 36 is one cell, and larger ones more."""
    make_image_folder(place / "more", train=15, val=1)
    monkeypatch.setattr("sppnet.data.sources.content_digests", None)
    command = ["data=folder", "data.root=more/train", "splits=2", "view=crop", "layers=[conv5]", "baselines=[]"]
    command += ["svm.gigabytes=1e-5"]
    line = r"^conv5: SVMs on the features of 24 training images take .*, and svm\.gigabytes allows 1e-05"
    with pytest.raises(ValueError, match=line):
        test("run=run", *command, "scales=[36,224]")
    assert call_script("train", *SMALL, "sizes.cycle=[64]", "backbone.width=0.1", "run=wider", cwd=place) == 0
    with pytest.raises(ValueError, match=line):
        test("run=[run,wider]", *command, "scales=[36]")
    with pytest.raises(TypeError):
        test("run=run", *command, "scales=[36]")


def test_a_checkpoint_file_has_its_files_beside_it(place, capsys):
    shutil.copy("run/checkpoints/last.ckpt", "copied.ckpt")
    test("run=copied.ckpt", *PHOTOS, "layers=[fc7]", "baselines=[untrained]")
    assert files("copied.ckpt.transferred") == decided("fc7", "fc7-untrained-seed0")
    (trained, _) = features(read_transfers(["copied.ckpt.transferred"]))
    assert trained.about["network"]["trained_on"] == "checkpoint copied.ckpt"
    assert trained.trained
    test("run=run", *PHOTOS, "layers=[fc7]", "baselines=[]")
    by_run = read_scores(next(Path("run/transfer").rglob("fc7-split0.npz")))
    by_file = read_scores(next(Path("copied.ckpt.transferred").rglob("fc7-split0.npz")))
    assert (by_run.scores == by_file.scores).all()


def test_a_run_that_is_not_finished_is_tested_with_a_note(place, capsys):
    (place / "run" / "result.json").unlink()
    test("run=run", *PHOTOS, "layers=[pool5]")
    assert "run: has not finished training; this tests its last checkpoint\n" in capsys.readouterr().out


def test_a_network_of_timm_takes_weights_from_a_file_and_gives_pool5(place, capsys):
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), "weights.pth")
    built = ["backbone=timm", "backbone.name=test_resnet", "pooling=spp30", *PHOTOS]
    test(*built, "backbone.weights=weights.pth")
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("transfer-test_resnet-pretrained-")
    assert files(run) == decided("pixels", "pool5", "pool5-untrained-seed0")
    found = features(read_transfers([str(run)]))
    assert [feature.about["network"]["trained_on"] for feature in found] == ["timm", None, None]
    assert "gain over untrained" in capsys.readouterr().out

    # Other weights under the same name are another network.
    torch.save(timm.create_model("test_resnet").state_dict(), "weights.pth")
    test(*built, "backbone.weights=weights.pth", "baselines=[]")
    assert "done already" not in capsys.readouterr().out


def test_a_network_of_random_weights_is_its_own_baseline(place, capsys):
    test("backbone=zf5", "backbone.width=0.05", "seed=3", *PHOTOS)
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("transfer-zf5-untrained-seed3-")
    assert files(run) == decided("pixels", "pool5")
    assert [row[0] for row in table(capsys.readouterr().out)] == ["pool5, untrained", "pixels"]
    test("backbone=zf5", "backbone.width=0.05", "seed=4", *PHOTOS)
    assert len(list(Path("runs").iterdir())) == 2


def test_layers_of_random_weights_are_refused(place):
    line = (
        r"^layers=\[pool5,fc6\]: fc6 has random weights, as this network was not trained here; use layers up to pool5$"
    )
    with pytest.raises(ValueError, match=line):
        test("backbone=zf5", "backbone.width=0.05", *PHOTOS, "layers=[pool5,fc6]")
    assert not (place / "runs").exists()


# Layers and views.


def test_a_network_without_a_pyramid_takes_square_views_of_its_side(place, capsys):
    with pytest.raises(
        ValueError, match=r"^view=full at a scale of 64: .*; use view=crop or view=warp at a scale of 64$"
    ):
        test("run=flat", *PHOTOS, "view=full")
    for view in ("crop", "warp"):
        test("run=flat", *PHOTOS, f"view={view}", "layers=[pool5,fc7]")
    assert len({feature.about["view"] for feature in features(read_transfers(["flat"]))}) == 2


def test_several_scales_views_and_paddings_are_told_apart(place, capsys):
    test("run=run", *PHOTOS, "view=full", "scales=[64,80]", "layers=[conv4,pool5_6x6]", "baselines=[]")
    assert [row[:2] for row in table(capsys.readouterr().out)] == [
        [layer, view] for view in ("full 64", "full 80") for layer in ("conv4", "pool5_6x6")
    ]
    test("run=run", *PHOTOS, "view=full", "layers=[pool5_6x6]", "baselines=[]", "aligned=true")
    assert len(features(read_transfers(["run"]))) == 5
    assert len(list(Path("run/transfer").iterdir())) == 3


def test_without_baselines_there_is_the_network_alone(place, capsys):
    test("run=run", *PHOTOS, "baselines=[]", "layers=[fc7,fc7]")
    assert files() == decided("fc7")
    (row,) = table(capsys.readouterr().out)
    assert row[-1] == ""


def test_pixels_can_be_the_only_layer(place):
    test("run=run", *PHOTOS, "layers=[pixels]")
    assert files() == decided("pixels")


def test_values_may_be_written_as_text(place):
    test("run=run", *PHOTOS, "scales=['64']", "aligned=yes", "splits='1'", "layers=[pool5]", "baselines=[]")
    (feature,) = features(read_transfers(["run"]))
    assert (feature.about["scale"], feature.about["aligned"], feature.splits) == (64, True, [0])


# Data.


def test_settings_that_change_decisions_are_kept_apart(place):
    command = ["run=run", *PHOTOS, "layers=[pool5]", "baselines=[]"]
    test(*command)
    for change in ("svm.C=10", "exclude=[ant/0.jpg]", "data.classes=[ant,bee]", "data.split_seed=5"):
        test(*command, change)
    assert len(list(Path("run/transfer").iterdir())) == 5
    assert len(list(Path("run/features").iterdir())) == 3  # the same for another C and without some images


def test_data_may_be_moved(place, capsys):
    command = ["run=run", *PHOTOS, "layers=[pool5]"]
    test(*command)
    Path("new place").mkdir()
    shutil.move("photos", "new place")
    test(*command, "data.root='new place/photos'")
    assert capsys.readouterr().out.count("done already") == 2


def test_a_folder_may_have_a_number_as_its_name(place):
    shutil.move("photos", "2012")
    test("run=run", *PHOTOS, "data.root=2012", "layers=[pool5]", "baselines=[]")
    assert features(read_transfers(["run"]))[0].about["data"]["root"] == str(place / "2012")


def test_home_is_spelled_out(place, monkeypatch, run_here):
    monkeypatch.setenv("HOME", str(place))
    arguments = ["run=~/run", *PHOTOS, "data.root=~/photos", "layers=[pool5]", "baselines=[]", *CPU]
    done = run_here("transfer", *arguments, cwd=place / "images")
    assert done.returncode == 0, done.stderr
    assert files() == decided("pool5")


def test_images_of_several_labels_are_counted_in_average_precision(place, capsys):
    images = sorted((place / "photos").rglob("*.jpg"))
    make_voc(place / "voc", lambda name: images[int(name[-1])].read_bytes())
    test("run=run", "data=voc2007", "data.root=voc", "view=crop", "scales=[64]", "layers=[pool5]")
    out = capsys.readouterr().out
    assert "voc2007: 8 images of 3 classes, 1 split into 5 to train on and 3 to test on" in out
    assert "mAP in %, 11 points" in out
    assert len(table(out)) == 3


def test_an_unreadable_image_is_named_and_can_be_excluded(place, capsys):
    (place / "photos" / "bee" / "2.jpg").write_bytes(b"no image")
    command = ["run=run", *PHOTOS, "layers=[pool5]", "baselines=[]"]
    with pytest.raises(ValueError, match=r"^bee/2\.jpg: .*skip it with exclude=\[bee/2\.jpg\]$"):
        test(*command)
    assert not files()
    test(*command, "exclude=[bee/2.jpg]")
    assert files() == decided("pool5")


# The command line.


def test_a_sweep_tests_every_combination(place, run_here):
    arguments = ["-m", "view=crop,warp", "run=run", *PHOTOS[:3], "scales=[64]", "layers=[pool5]", "baselines=[]", *CPU]
    done = run_here("transfer", *arguments, cwd=place)
    assert done.returncode == 0, done.stderr
    assert {path.name.split("-")[1] for path in Path("run/transfer").iterdir()} == {"crop64", "warp64"}


def test_ctrl_c_is_one_line_and_the_same_command_resumes(place, run_here):
    """The images are enlarged, so that the command takes seconds."""
    arguments = ["run=run", *PHOTOS, "scales=[1500]", "layers=[pool5]", "baselines=[]", *CPU]
    command = [sys.executable, SCRIPTS / "transfer.py", *arguments]
    with started_process(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, limit=120) as process:
        assert process.stdout.readline().startswith("folder photos: 12 images")
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
    # Python ends by the signal itself, which is 130 for a shell, if it came while a string was executed.
    assert process.returncode in (130, -signal.SIGINT)
    assert errors == "interrupted; the same command resumes with the images and splits that are left\n"
    assert run_here("transfer", *arguments, cwd=place).returncode == 0
    assert files() == decided("pool5")


@pytest.mark.parametrize(
    ("script", "experiment", "meant"),
    [
        ("transfer", "demo", "train"),
        ("transfer", "[demo,table2_zf5_none]", "train"),
        ("train", "transfer_caltech51", "transfer"),
        ("benchmark", "transfer_caltech51", "transfer"),
        ("evaluate", "demo", "train"),
    ],
)
def test_an_experiment_of_another_command_says_which(script, experiment, meant, tmp_path, run_here):
    done = run_here(script, f"experiment={experiment}", cwd=tmp_path)
    assert done.returncode == 2
    name = experiment.strip("[]").split(",")[0]
    command = rf"(python scripts/{meant}\.py|sppnet {meant})"
    assert re.search(rf"^error: experiment={name}: is for another command: {command} experiment={name}$", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_sweep_over_experiments_of_another_command_says_which(tmp_path, run_here):
    done = run_here("transfer", "-m", "run=run", "experiment=glob(table2_zf5_*)", cwd=tmp_path)
    assert done.returncode == 2
    assert "experiment=table2_zf5_alternate: is for another command" in done.stderr
    assert "(job 1 of " in done.stderr


def test_decisions_on_other_data_of_the_same_folder_name_are_kept_apart(place):
    """Two folders named photos, the second with another number of classes and fewer splits."""
    make_image_folder(place / "more", ("cup", "hat"), train=4, val=3)
    (place / "more" / "train").rename(place / "more" / "photos")
    other = ["data=folder", "data.root=more/photos", "splits=1", "view=crop", "scales=[64]"]
    for data in (PHOTOS, other, PHOTOS):
        test("run=run", *data, "layers=[fc7]", "baselines=[]")
    found = features(read_transfers(["run"]))
    assert sorted((len(one.about["classes"]), len(one.splits)) for one in found) == [(2, 1), (3, 2)]


def test_untrained_twins_of_other_seeds_keep_their_decisions(place):
    for seed in (0, 1):
        test("run=run", *PHOTOS, "layers=[fc7]", f"seed={seed}", "baselines=[untrained]")
    assert files() == decided("fc7", "fc7-untrained-seed0", "fc7-untrained-seed1")
