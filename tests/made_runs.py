"""Run directories with made-up results and scores, for the tests of tables, sweeps and comparisons."""

import json

import numpy as np
import yaml

from sppnet.results.scores import SCORING_RULES, Scores, write_scores
from test_views import SHIPPED, shipped

CLASSES = 4
SIZES = {"none": [224], "single": [224], "30bins": [224], "alternate": [224, 180]}
LEVELS = {"none": None, "30bins": [4, 3, 2, 1]}


def make_run(
    folder,
    variant,
    seed=0,
    source="folder",
    wrong=None,
    finished=True,
    n=40,
    training_images=100,
    levels=None,
    sizes=None,
    **recipe,
):
    """Makes a run directory with a made-up result and scores.

    Args:
        variant: a key of VARIANTS, or any other name with `levels`.
        levels, sizes: instead of those of the variant.
        wrong: protocol -> number of wrong images.
        n, training_images: numbers of images.
        recipe: changes of the recipe.
    """
    run = folder / f"{source}-{variant}-{seed}"
    run.mkdir(parents=True)
    config = {
        "backbone": {"architecture": "zf5", "width": 0.1, "normalization": "none"},
        "pooling": {"levels": LEVELS.get(variant, [6, 3, 2, 1]) if levels is None else levels},
        "hidden": 16,
        "sizes": sizes or ({"uniform": [180, 224]} if variant == "random" else {"cycle": SIZES.get(variant, [224])}),
        "data": {"source": source, "root": f"/somewhere/{seed}/photos"},
        "recipe": {"epochs": 2, "batch_size": 4, "learning_rate": 0.1} | recipe,
        "seed": seed,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if finished:
        counts = {"top1_wrong": 20 - 2 * len(config["pooling"]["levels"] or []), "top5_wrong": 5, "n": n}
        result = {
            **counts,
            "top1_error": counts["top1_wrong"] / n,
            "num_classes": CLASSES,
            "training_images": training_images,
            "seconds": 3600.0,
            "hardware": "2 x GPU",
            "checkpoint": "abc",
            "history": [{"images_per_second": 50.0}],
        }
        (run / "result.json").write_text(json.dumps(result))
    for views, count in (wrong or {}).items():
        write_scores(run / "scores" / f"{views}.npz", made_scores(views, count, config, n))
    return run


def made_scores(views, count, config, n=40, **changes):
    """Makes scores of `n` images, the first `count` of them wrong. `changes`: of `Scores.about`."""
    labels = np.arange(n) % CLASSES
    predicted = (labels + (np.arange(n) < count)) % CLASSES
    protocol = vars(shipped(views)) if views in SHIPPED else {}
    about = {
        "views": views,
        "protocol": protocol,
        "data": config["data"],
        "part": "val",
        "exclude": [],
        "checkpoint": "abc",
        "rules": SCORING_RULES,
        "protocol_text": f"{views} of 224",
        "classes": ["ant", "bee", "cat", "<dog>"],
    } | changes
    names = np.array([f"{i}.jpg" for i in range(n)])
    return Scores(np.eye(CLASSES, dtype=np.float32)[predicted], labels, names, about)


def make_three_arms(folder):
    """Two seeds without and with a pyramid, tested by the protocols of Tables 2 and 3, and two unfinished runs."""
    for seed in (0, 1):
        make_run(folder, "none", seed, wrong={"ten_crop": 20 + seed})
        make_run(folder, "single", seed, wrong={"ten_crop": 16, "center": 19, "full": 17})
    make_run(folder, "none", seed=2, finished=False)
    make_run(folder, "alternate", finished=False)
    return folder


def row_of(page, *words):
    """Returns the cells of the only row of the page's Markdown that has all the words."""
    rows = [
        line for line in page.markdown().splitlines() if line.startswith("|") and all(word in line for word in words)
    ]
    assert len(rows) == 1, rows
    return [cell.strip() for cell in rows[0].strip("|").split("|")]
