"""Made-up decisions of transfer, for the tests of their tables."""

import numpy as np

from sppnet.results.scores import Scores, write_scores
from sppnet.results.transferred_features import features
from sppnet.results.transfers import TRANSFER_RULES, read_transfers

ZF5 = {
    "name": "zf5",
    "levels": [6, 3, 2, 1],
    "variant": "alternate",
    "trained_on": "caltech101",
    "on_imagenet": False,
    "seed": 0,
    "setting": '{"width": 0.25}',
    "text": "ZF-5 of a quarter of the filters",
}
UNTRAINED = {"trained_on": None}
RAW_PIXELS = {"name": "pixels", "levels": None, "variant": None, "trained_on": None, "seed": None, "setting": "{}"}
IMAGENET = {"trained_on": "imagenet", "on_imagenet": True, "setting": '{"width": 1.0}'}


def made_about(layer="fc7", split=0, network=None, **changes):
    """Makes `Scores.about` of decisions; `network`: changes of ZF5."""
    return {
        "rules": TRANSFER_RULES,
        "checkpoint": "abc",
        "network": ZF5 | (network or {}),
        "layer": layer,
        "length": 4096,
        "view": "full",
        "scale": 224,
        "aligned": False,
        "C": 1.0,
        "solver": "SVC on the Gram matrix",
        "data": {"source": "folder", "root": "/somewhere/photos"},
        "data_text": "folder photos",
        "split": split,
        "splits": 3,
        "n_train": 20,
        "images": f"test {split}",
        "train_images": f"train {split}",
        "classes": ["ant", "bee", "<cat>", "dog"],
        "run": "runs/made",
    } | changes


def made_decisions(about, *, wrong, n=40):
    """Makes decisions of `n` images with one label each, the first `wrong` of them wrong."""
    classes = len(about["classes"])
    labels = np.arange(n) % classes
    predicted = (labels + (np.arange(n) < wrong)) % classes
    names = np.array([f"{i}.jpg" for i in range(n)])
    return Scores(2 * np.eye(classes, dtype=np.float32)[predicted] - 1, labels, names, about)


def made_several_labels(about, hits, n=40, seed=0):
    """Makes decisions of `n` images with several labels. The larger `hits`, the better they fit the labels."""
    random = np.random.default_rng(seed)
    labels = random.choice(np.array([-1, 0, 1], np.int8), (n, len(about["classes"])), p=[0.6, 0.1, 0.3])
    noise = np.random.default_rng(seed + 1).normal(size=labels.shape)
    return Scores((noise + hits * labels).astype(np.float32), labels, np.array([f"{i}.jpg" for i in range(n)]), about)


def write_decisions(run, scores, title="photos-full224-1a2b3c4d"):
    """Saves decisions where `transfer` does, and returns the path."""
    about = scores.about
    untrained = "-untrained" if about["network"]["trained_on"] is None and about["layer"] != "pixels" else ""
    path = run / "transfer" / title / f"{about['layer']}{untrained}-split{about['split']}.npz"
    write_scores(path, scores)
    return path


def make_transfer(run, wrong, layer="fc7", network=None, n=40, **changes):
    """Saves decisions of one feature, a split for each number of wrong images in `wrong`; returns their paths."""
    return [
        write_decisions(run, made_decisions(made_about(layer, split, network, **changes), wrong=count, n=n))
        for split, count in enumerate(wrong)
    ]


def only_feature(*places):
    (feature,) = features(read_transfers([str(place) for place in places]))
    return feature
