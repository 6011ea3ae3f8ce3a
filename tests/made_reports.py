"""Run directories with scores of real image files, for the tests of reports."""

import json

import numpy as np
import yaml

from made_runs import made_scores, make_run
from sppnet.data.sources import content_digests, images_fingerprint, open_data
from sppnet.results.scores import Scores, write_scores


def make_tested_run(folder, root, variant="single", seed=0, views=("center", "full"), source="folder", **result):
    """Makes a finished run with random probabilities for the validation images in `root`, and returns its directory.

    Args:
        folder: where run directories are.
        root: a folder with train/ and val/.
        result: changes of result.json.
    """
    data = open_data("folder", root=str(root))
    n, classes = len(data.val), len(data.classes)
    fingerprint = images_fingerprint(data.val, content_digests(data.val, "reading"))
    run = make_run(folder, variant, seed, source=source, n=n)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["root"] = str(root)
    (run / "config.yaml").write_text(yaml.safe_dump(config))

    record = json.loads((run / "result.json").read_text())
    wrong = min(n, record["top1_wrong"])
    history = [
        {"epoch": 1, "size": 224, "train_loss": 2.0, "images_per_second": 9.0},
        {"epoch": 2, "size": 180, "train_loss": 1.5, "images_per_second": 9.0, "top1_wrong": wrong, "n": n},
    ]
    record |= {"top1_wrong": wrong, "top5_wrong": 0, "top1_error": wrong / n, "num_classes": classes}
    record |= {"validation_images": fingerprint, "history": history} | result
    (run / "result.json").write_text(json.dumps(record))

    names = np.array([data.val.name(i) for i in range(n)])
    for i, name in enumerate(views):
        values = np.random.default_rng([seed, i]).dirichlet(np.ones(classes), n).astype(np.float32)
        about = made_scores(name, 0, config, n, images=fingerprint, classes=list(data.classes), run=str(run)).about
        write_scores(run / "scores" / f"{name}.npz", Scores(values, data.val.labels, names, about))
    return run
