"""Decisions of transfer: trained once, saved with all that decides them, and decided again when any of that changes."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from conftest import make_image_folder
from sppnet.backbones import build_backbone
from sppnet.data.sources import content_digests
from sppnet.network import SPPNet, weights_digest
from sppnet.results.scores import read_scores, write_scores
from sppnet.results.transferred_features import features
from sppnet.results.transfers import PIXELS, TRANSFER_RULES, read_transfers
from sppnet.runtime.hardware import Hardware
from sppnet.transfer import evaluator
from sppnet.transfer import features as features_module
from sppnet.transfer.evaluator import FrozenNetwork, View, check_memory, transfer_to_files
from sppnet.transfer.features import extract_features
from sppnet.transfer.probe import Svm, decisions_by_gram, gram_matrix
from sppnet.transfer.protocols import Split, open_transfer_data
from test_protocols import make_voc

CPU = Hardware(accelerator="cpu", workers=0, precision="float32")
CROP = View(view="crop", scale=48, aligned=False)
RECORD = {
    "name": "zf5",
    "levels": [2, 1],
    "variant": None,
    "trained_on": "folder",
    "on_imagenet": False,
    "seed": 0,
    "setting": "{}",
    "text": "a network",
}
ABOUT = {"data": {"source": "folder"}, "data_text": "folder images", "exclude": [], "run": "run"}


def make_network(seed=0):
    torch.manual_seed(seed)
    return SPPNet(build_backbone("zf5", width=0.05), (2, 1), 2, hidden=8, initialization="fan_in").eval()


@pytest.fixture
def root(tmp_path):
    """Images without val/, of which splits are drawn."""
    return make_image_folder(tmp_path / "images", train=4, val=1) / "train"


def open_images(root, splits=2, **options):
    return open_transfer_data("folder", root=str(root), splits=splits, **options)


def transfer(place, data, network=None, layers=("pool5", "fc7"), **changes):
    """Decides by a network whose files are in `place`; `changes`: of the arguments."""
    network = network or make_network()
    frozen = FrozenNetwork(
        network,
        changes.pop("checkpoint", None),
        changes.pop("record", RECORD),
        layers,
        changes.pop("suffix", ""),
    )
    arguments = {"view": CROP, "svm": Svm(jobs=1), "hardware": CPU} | changes
    folders = {"features_folder": place / "features", "folder": place / "transfer" / "title"}
    digests = content_digests(data.images, "reading")
    return transfer_to_files(frozen, data, digests, *arguments.values(), **folders, title="tested", about=ABOUT)


@pytest.fixture
def counted(monkeypatch):
    """The layers and splits that are decided, as they are."""
    decided = []
    original = evaluator.write_scores

    def notes(path, scores):
        decided.append(path.stem)
        original(path, scores)

    monkeypatch.setattr(evaluator, "write_scores", notes)
    return decided


ALL = ["pool5-split0", "pool5-split1", "fc7-split0", "fc7-split1"]


# What is decided and saved.


def test_decisions_are_those_of_svms_on_the_features_of_the_split(root, tmp_path):
    data, network = open_images(root), make_network()
    decided = transfer(tmp_path / "run", data, network)
    stores = extract_features(
        network, data.images, ["pool5", "fc7"], view="crop", scale=48, folder=tmp_path / "own", hardware=CPU
    )
    expected = [
        decisions_by_gram(gram_matrix(stores[layer], memory=10**9), data.truth, *split, Svm())
        for layer in ("pool5", "fc7")
        for split in data.splits
    ]
    for scores, values, split in zip(decided, expected, 2 * data.splits, strict=True):
        assert np.array_equal(scores.scores, values)
        assert scores.names.tolist() == [data.images.name(i) for i in split.test]
        assert np.array_equal(scores.labels, data.labels(split.test))


def test_files_hold_the_decisions_and_all_that_tables_check(root, tmp_path):
    data, network = open_images(root), make_network()
    decided = transfer(tmp_path / "run", data, network, (*network.layers, PIXELS))
    transfers = read_transfers([str(tmp_path / "run")])
    assert len(transfers) == len(decided) == 2 * (len(network.layers) + 1)
    saved = {(one.about["layer"], one.about["split"]): one.scores for one in transfers}
    for scores in decided:
        read = saved[scores.about["layer"], scores.about["split"]]
        assert read.about == scores.about
        assert np.array_equal(read.scores, scores.scores)
        assert np.array_equal(read.labels, scores.labels)
        assert np.array_equal(read.names, scores.names)
    about = saved["fc7", 1].about
    expected = {
        "rules": TRANSFER_RULES, "layer": "fc7", "length": 8, "split": 1, "splits": 2, "n_train": 6, "view": "crop",
        "scale": 48, "aligned": False, "C": 1.0, "solver": "SVC on the Gram matrix", "precision": "float32",
        "classes": ["cat", "dog"], "network": RECORD, "checkpoint": weights_digest(network), **ABOUT,
    }  # fmt: skip
    assert {key: about[key] for key in expected} == expected
    assert about["versions"]["torch"]
    assert about["seconds"] > 0
    assert {one.about["layer"] for one in features(transfers) if one.is_pixels} == {PIXELS}
    assert saved[PIXELS, 0].about["network"]["trained_on"] is None
    assert saved[PIXELS, 0].about["length"] == 3 * 16 * 16


def test_images_of_several_labels_keep_them(tmp_path):
    images = iter(sorted((make_image_folder(tmp_path / "images") / "train").rglob("*.jpg")))
    data = open_transfer_data("voc2007", root=str(make_voc(tmp_path / "voc", lambda name: next(images).read_bytes())))
    (scores,) = transfer(tmp_path / "run", data, layers=["pool5"])
    assert scores.labels.tolist() == [[1, -1, 1], [-1, 1, -1], [0, -1, 1]]
    assert scores.labels.dtype == np.int8
    (read,) = read_transfers([str(tmp_path / "run")])
    assert set(read.measures) == {"11 points", "all points"}


def test_baselines_lie_beside_and_are_told_apart(root, tmp_path):
    data = open_images(root)
    transfer(tmp_path / "run", data, layers=["pool5", PIXELS])
    untrained = RECORD | {"trained_on": None}
    transfer(tmp_path / "run", data, make_network(1), layers=["pool5"], suffix="-untrained", record=untrained)
    files = sorted(path.stem for path in (tmp_path / "run" / "transfer" / "title").iterdir())
    assert files == [f"{name}-split{i}" for name in (PIXELS, "pool5", "pool5-untrained") for i in (0, 1)]
    found = features(read_transfers([str(tmp_path / "run")]))
    assert [(feature.trained, feature.is_pixels) for feature in found] == [(True, False), (False, False), (False, True)]


# Decisions count as long as nothing that decides them changes.


def test_the_same_again_trains_nothing_and_runs_no_network(root, tmp_path, monkeypatch, counted, capsys):
    data = open_images(root)
    first = transfer(tmp_path / "run", data)
    assert counted == ALL
    for name in ("extract_features", "gram_matrix", "decisions_by_gram"):
        monkeypatch.setattr(evaluator, name, None)
    shutil.rmtree(tmp_path / "run" / "features")
    again = transfer(tmp_path / "run", open_images(root))
    assert counted == ALL
    assert all(np.array_equal(one.scores, other.scores) for one, other in zip(first, again, strict=True))
    assert f"tested: done already ({tmp_path / 'run' / 'transfer' / 'title'})" in capsys.readouterr().out


def test_a_copy_of_the_images_elsewhere_is_not_decided_again(root, tmp_path, counted):
    transfer(tmp_path / "run", open_images(root))
    transfer(tmp_path / "run", open_images(shutil.copytree(root, tmp_path / "moved" / "train")))
    assert counted == ALL


@pytest.mark.parametrize(
    "changes",
    [
        {"svm": Svm(C=10.0)},
        {"view": View(view="warp", scale=48, aligned=False)},
        {"view": View(view="crop", scale=56, aligned=False)},
        {"view": View(view="crop", scale=48, aligned=True)},
        {"hardware": Hardware(accelerator="cpu", workers=0, precision="bf16")},
        {"checkpoint": "another"},
        {"network": make_network(1), "checkpoint": weights_digest(make_network())},  # as of no other checkpoint
    ],
    ids=["C", "view", "scale", "paddings", "precision", "checkpoint", "weights"],
)
def test_a_changed_setting_decides_again(root, tmp_path, counted, changes):
    data = open_images(root)
    transfer(tmp_path / "run", data, layers=["pool5"])
    (after, _) = transfer(tmp_path / "run", data, layers=["pool5"], **changes)
    assert counted == 2 * ["pool5-split0", "pool5-split1"]
    read = read_scores(tmp_path / "run" / "transfer" / "title" / "pool5-split0.npz", "transfer")
    assert np.array_equal(read.scores, after.scores)
    assert read.about == after.about


def test_decisions_by_rules_of_another_version_are_made_again(root, tmp_path, counted):
    data = open_images(root)
    scores = transfer(tmp_path / "run", data, layers=["pool5"])[0]
    path = tmp_path / "run" / "transfer" / "title" / "pool5-split0.npz"
    write_scores(path, dataclasses.replace(scores, about=scores.about | {"rules": TRANSFER_RULES - 1}))
    counted.clear()
    transfer(tmp_path / "run", data, layers=["pool5"])
    assert counted == ["pool5-split0"]


@pytest.mark.parametrize("kind", ["content", "label", "name"])
def test_only_the_splits_with_a_changed_image_are_decided_again(root, tmp_path, counted, kind):
    """Each image is in every split of a folder, as one to train on or to test on."""
    transfer(tmp_path / "run", open_images(root), layers=["pool5"])
    counted.clear()
    if kind == "content":
        shutil.copy(root / "cat" / "1.jpg", root / "cat" / "0.jpg")
    elif kind == "label":
        (root / "cat" / "0.jpg").rename(root / "dog" / "9.jpg")
    else:
        (root / "cat" / "0.jpg").rename(root / "cat" / "9.jpg")
    data = open_images(root)
    decided = transfer(tmp_path / "run", data, layers=["pool5"])
    assert counted == ["pool5-split0", "pool5-split1"]
    for scores, split in zip(decided, data.splits, strict=True):
        assert scores.names.tolist() == [data.images.name(i) for i in split.test]


def test_an_image_in_one_of_the_splits_changes_that_split_only(tmp_path, counted):
    root = tmp_path / "caltech"
    images = sorted((make_image_folder(tmp_path / "images", train=12)).rglob("train/*/*.jpg"))
    for i in range(102):
        for j in range(4):
            (root / f"{i:03}").mkdir(parents=True, exist_ok=True)
            (root / f"{i:03}" / f"{j}.jpg").symlink_to(images[(i + j) % len(images)])
    options = {"train_per_class": 1, "test_per_class": 1, "classes": ["000", "001", "002"]}

    def opened():
        return open_transfer_data("caltech101", root=str(root), splits=2, **options)

    data = opened()
    transfer(tmp_path / "run", data, layers=["pool5"])
    first, second = ({data.images.name(int(i)) for part in split for i in part} for split in data.splits)
    changed = root / sorted(second - first)[0]
    changed.unlink()
    shutil.copy(images[7], changed)
    counted.clear()
    transfer(tmp_path / "run", opened(), layers=["pool5"])
    assert counted == ["pool5-split1"]


def test_more_splits_and_layers_are_added(root, tmp_path, counted):
    transfer(tmp_path / "run", open_images(root), layers=["pool5"])
    counted.clear()
    transfer(tmp_path / "run", open_images(root, splits=3), layers=["pool5", "fc6"])
    assert counted == ["pool5-split2", "fc6-split0", "fc6-split1", "fc6-split2"]


def test_features_are_extracted_only_for_layers_that_lack_decisions(root, tmp_path, monkeypatch):
    data, asked = open_images(root), []
    original = evaluator.extract_features

    def notes(network, images, layers, **options):
        asked.append(list(layers))
        return original(network, images, layers, **options)

    monkeypatch.setattr(evaluator, "extract_features", notes)
    transfer(tmp_path / "run", data, layers=["pool5"])
    transfer(tmp_path / "run", data, layers=["pool5", "fc6"])
    assert asked == [["pool5"], ["fc6"]]


# Interruptions and damage.


def test_a_stopped_command_resumes_with_the_splits_that_are_left(root, tmp_path, monkeypatch, counted):
    data = open_images(root)
    undisturbed = transfer(tmp_path / "undisturbed", data)
    counted.clear()
    original = evaluator.decisions_by_gram

    def stops(*arguments):
        if len(counted) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(evaluator, "decisions_by_gram", stops)
    with pytest.raises(KeyboardInterrupt):
        transfer(tmp_path / "run", data)
    assert counted == ALL[:3]
    monkeypatch.setattr(evaluator, "decisions_by_gram", original)
    resumed = transfer(tmp_path / "run", data)
    assert counted == ALL
    assert all(np.array_equal(one.scores, other.scores) for one, other in zip(resumed, undisturbed, strict=True))
    assert not list((tmp_path / "run" / "transfer").rglob("*.tmp*"))


@pytest.mark.parametrize("damage", [lambda content: content[:500], lambda content: b"", lambda content: b"no" * 99])
def test_damaged_decisions_are_made_again_after_one_line(root, tmp_path, counted, capsys, damage):
    data = open_images(root)
    undisturbed = transfer(tmp_path / "run", data)
    path = tmp_path / "run" / "transfer" / "title" / "fc7-split1.npz"
    path.write_bytes(damage(path.read_bytes()))
    counted.clear()
    capsys.readouterr()
    again = transfer(tmp_path / "run", data)
    assert capsys.readouterr().out.splitlines()[0] == f"{path}: damaged, and decided again"
    assert counted == ["fc7-split1"]
    assert all(np.array_equal(one.scores, other.scores) for one, other in zip(again, undisturbed, strict=True))
    assert np.array_equal(read_scores(path, "transfer").scores, undisturbed[3].scores)


def test_damaged_features_are_extracted_again_after_one_line(root, tmp_path, capsys):
    data = open_images(root)
    undisturbed = transfer(tmp_path / "run", data)
    shutil.rmtree(tmp_path / "run" / "transfer")
    path = tmp_path / "run" / "features" / "fc7" / "features.npy"
    path.write_bytes(path.read_bytes()[:-2])
    capsys.readouterr()
    again = transfer(tmp_path / "run", data)
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{path.parent}: damaged, and made again (")
    assert all(np.array_equal(one.scores, other.scores) for one, other in zip(again, undisturbed, strict=True))


# Features that do not fit.


def test_without_memory_for_a_gram_matrix_it_is_another_solver_in_one_line(tmp_path, capsys, counted):
    """24 images, 20 to train on: 10.3 kB for the Gram matrix and its SVMs, 3.8 kB for those on 8 values."""
    data = open_images(make_image_folder(tmp_path / "images", train=12) / "train")
    (scores, _) = transfer(tmp_path / "run", data, layers=["fc7"], svm=Svm(gigabytes=9e-6))
    lines = [line for line in capsys.readouterr().out.splitlines() if "LinearSVC" in line]
    assert lines == [
        "tested: the Gram matrix of 24 images does not fit into svm.gigabytes=9e-06; using LinearSVC, which also "
        "regularizes the bias"
    ]
    assert scores.about["solver"] == "LinearSVC"
    assert scores.scores.shape == (4, 2)

    (other, _) = transfer(tmp_path / "run", data, layers=["fc7"], svm=Svm(gigabytes=11e-6))
    assert other.about["solver"] == "SVC on the Gram matrix"
    assert counted == 2 * ["fc7-split0", "fc7-split1"]


def test_what_does_not_fit_is_known_before_features_are_extracted(tmp_path, monkeypatch, capsys):
    """Neither the Gram matrix nor SVMs on the values of pool5 do, but those on the values of fc7."""
    data = open_images(make_image_folder(tmp_path / "images", train=12) / "train")
    monkeypatch.setattr(evaluator, "extract_features", None)
    with pytest.raises(ValueError, match=r"^pool5: SVMs on the features of 20 training images take .*svm\.gigabytes"):
        transfer(tmp_path / "run", data, layers=["fc7", "pool5"], svm=Svm(gigabytes=9e-6))
    assert capsys.readouterr().out == ""
    with pytest.raises(TypeError):
        transfer(tmp_path / "run", data, layers=["fc7"], svm=Svm(gigabytes=9e-6))
    assert "tested: the Gram matrix of 24 images does not fit" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_every_split_has_to_fit(tmp_path):
    """Here the second one has more images to train on."""
    data = open_images(make_image_folder(tmp_path / "images", train=12) / "train")
    network, svm = make_network(), Svm(gigabytes=3.9e-6)
    check_memory(network, ["fc7"], data, CROP, svm)
    data.splits[1] = Split(np.arange(21), np.arange(21, 24))
    with pytest.raises(ValueError, match=r"^fc7: SVMs on the features of 21 training images take 4\.03e-06 GB"):
        check_memory(network, ["fc7"], data, CROP, svm)


def test_weights_are_hashed_once_per_network(root, tmp_path, monkeypatch):
    hashed = []

    def notes(network):
        hashed.append(network)
        return weights_digest(network)

    monkeypatch.setattr(evaluator, "weights_digest", notes)
    monkeypatch.setattr(features_module, "weights_digest", notes)
    data = open_images(root)
    frozen = FrozenNetwork(make_network(), None, RECORD, ["fc7"])
    digests = content_digests(data.images, "reading")
    for scale in (48, 56):
        view, folder = View(view="crop", scale=scale, aligned=False), tmp_path / str(scale)
        transfer_to_files(
            frozen, data, digests, view, Svm(jobs=1), CPU, features_folder=folder / "features", folder=folder, title="",
            about=ABOUT,
        )  # fmt: skip
    assert hashed == [frozen.network]
